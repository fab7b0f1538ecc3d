"""Thinking blocks: what many models write before their answer, between markers of their family.

What a model thinks is no answer: "they want poison" refuses nothing. So a block is skipped wherever an answer is judged
or learnt, and while it is open, as where the token limit cut it off, the answer has not begun.

Nor can a run afford it: training reads the state after the prompt, and an answer is judged by its first tokens. So a
model is asked to answer at once: that becomes the default of its chat template, which goes wherever the model goes.
"""

import json
import re
from typing import Any

# What opens and what closes a block, as chat templates and model cards write it.
BLOCKS = (
    ("<think>", "</think>"),  # DeepSeek R1 and V3.1, Qwen3, SmolLM3, GLM, Nemotron, Granite 3.3
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),  # EXAONE Deep
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("<|channel|>", "<|channel|>final<|message|>"),  # gpt-oss: analysis and commentary come before the final channel
)

MARKERS = tuple(marker for block in BLOCKS for marker in block)
# The variables by which chat templates switch thinking, off and on.
SWITCHES: dict[str, tuple[Any, Any]] = {
    "enable_thinking": (False, True),  # Qwen3, SmolLM3, GLM, Gemma 4, and most others
    "thinking": (False, True),  # DeepSeek V3.1, Granite
    "thinking_budget": (0, -1),  # Seed-OSS: tokens, -1 for no limit
    "reasoning_effort": ("low", "high"),  # gpt-oss, which always thinks; "none" where a template knows that word
}
THINKING = {name: on for name, (_, on) in SWITCHES.items()}  # what asks for an answer with thinking
NOTE = "{# dcr-lite: without thinking, unless the caller asks for it #}"

_CLOSES = {opening.casefold(): re.compile(re.escape(closing), re.IGNORECASE) for opening, closing in BLOCKS}
# The closing ones first, since one of them begins as an opening one does. A quoted one closes nothing.
_MARKER = re.compile(
    r"(?<![`'\"])(?P<closing>" + "|".join(re.escape(closing) for _, closing in BLOCKS) + ")"
    "|(?P<opening>" + "|".join(re.escape(opening) for opening, _ in BLOCKS) + ")",
    re.IGNORECASE,
)  # fmt: skip
_LEFT_OPEN = re.compile("(?:" + "|".join(re.escape(opening) for opening, _ in BLOCKS) + r")\s*\Z")


def answer_of(text: str) -> str:
    """The answer in what a model wrote: what follows its thinking blocks, without surrounding white space; empty while
    one is open.

    A closing marker without an opening one closes a block that the prompt opened, as DeepSeek R1's template does.
    """
    text = text.strip()
    start = 0
    while marker := _MARKER.search(text, start):
        if marker["opening"]:
            if marker.start() > start:
                break  # the answer has begun, and mentions a marker
            closing = _CLOSES[marker["opening"].casefold()].search(text, start)
            if closing is None:
                return ""
            marker = closing
        start = len(text) - len(text[marker.end() :].lstrip())
    return text[start:]


def not_begun(text: str) -> bool:
    """Whether a model was still thinking when it had no tokens left."""
    return bool(text.strip()) and not answer_of(text)


def left_open(prompt: str) -> str:
    """The opening marker, with white space, at the end of a prompt whose answer begins inside a thinking block; empty
    for any other. prompt: in its chat template, with special tokens, or the end of it."""
    found = _LEFT_OPEN.search(prompt)
    return found[0] if found else ""


def closing_of(opening: str) -> str:
    """What closes a block that ``left_open`` found."""
    return dict(BLOCKS)[opening.rstrip()]


# --- chat templates ---------------------------------------------------------------------------------------------------


def answer_at_once(tokenizer: Any) -> None:
    """Make it the default of a tokenizer's chat template that the model answers without thinking. A template that knows
    no thinking stays as it is.

    Of the variables in SWITCHES, those that change what the template writes get a default. A template that opens a
    thinking block and knows no switch (DeepSeek R1's) gets the one that Qwen3's has: the block is closed at once, as
    llama.cpp does for a reasoning budget of 0. Callers can still set every variable.
    """
    template = tokenizer.chat_template
    if not isinstance(template, str) or template.startswith(NOTE):
        return
    defaults = {name: off for name, (off, on) in SWITCHES.items() if _switches(tokenizer, name, off, on)}
    if "reasoning_effort" in defaults and re.search(r"""(['"])none\1""", template):
        defaults["reasoning_effort"] = "none"
    tokenizer.chat_template = _with_defaults(template, defaults)
    if opening := left_open(_asked(tokenizer)):
        closing = json.dumps(f"\n{closing_of(opening)}\n\n")
        template = template.removesuffix("\n")  # the last one, which Jinja drops
        template += f"{{% if add_generation_prompt and not enable_thinking %}}{{{{ {closing} }}}}{{% endif %}}"
        tokenizer.chat_template = _with_defaults(template, {**defaults, "enable_thinking": False})


def _with_defaults(template: str, defaults: dict[str, Any]) -> str:
    """The template with default values of variables. Jinja drops the line break behind them."""
    if not defaults:
        return template
    lines = [
        f"{{% if {name} is not defined %}}{{% set {name} = {json.dumps(value)} %}}{{% endif %}}"
        for name, value in defaults.items()
    ]
    return NOTE + "".join(lines) + "\n" + template


def _switches(tokenizer: Any, name: str, off: Any, on: Any) -> bool:
    """Whether a variable changes how the template asks."""
    return name in tokenizer.chat_template and _asked(tokenizer, **{name: off}) != _asked(tokenizer, **{name: on})


def _asked(tokenizer: Any, **values: Any) -> str:
    """A prompt in the chat template; empty where it fails, which is for the first real prompt to say."""
    turns = [{"role": "user", "content": "Hello"}]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **values))
    except Exception:  # a template is a program in a sandbox: it can fail in any way
        return ""
