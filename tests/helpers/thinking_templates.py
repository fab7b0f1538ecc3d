"""Chat templates of models that can think, in the structure of their families' own and with the tests' tokens."""

from dataclasses import dataclass

USER, MODEL = "<|im_start|>user\n", "<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class Family:
    """A template, and how a prompt ends in it, behind the user's turn, as it is and asked without and with thinking.

    answer: what the model learns as the answer "Sure." behind a prompt that was asked without.
    """

    template: str
    unasked: str
    without: str
    thinking: str
    answer: str = "Sure.<|im_end|>"


def _template(turn: str, prompt: str, before: str = "", after_user: str = "") -> str:
    """A template from what it writes of the model's finished turns and where the answer is to come."""
    return (
        before + "{%- for m in messages %}\n"
        "{%- if m.role == 'user' %}\n"
        "{{- '<|im_start|>user\\n' + m.content + '<|im_end|>\\n' }}\n" + after_user + "{%- else %}\n"
        "{{- '<|im_start|>assistant\\n' }}" + turn + "{{- m.content + '<|im_end|>\\n' }}\n"
        "{%- endif %}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\\n' }}\n" + prompt + "{%- endif %}\n"
    )


_EMPTY = "{{- '<think>\\n\\n</think>\\n\\n' }}\n"

FAMILIES = {
    # An empty block where it is told not to think, and in the last finished turn whatever it is told.
    "Qwen3": Family(
        _template(
            "{%- if loop.last %}" + _EMPTY + "{%- endif %}",
            "{%- if enable_thinking is defined and enable_thinking is false %}\n" + _EMPTY + "{%- endif %}\n",
        ),
        MODEL, MODEL + EMPTY, MODEL,
    ),
    # A mode that stands in the system turn, under today's date; the empty block comes with it.
    "SmolLM3": Family(
        _template(
            "{%- if mode == '/no_think' %}{{- '<think>\\n\\n</think>\\n' }}{%- endif %}",
            "{%- if mode == '/no_think' %}\n{{- '<think>\\n\\n</think>\\n' }}\n{%- endif %}\n",
            before="{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}\n"
            "{%- set mode = '/think' if enable_thinking else '/no_think' -%}\n"
            "{%- set today = strftime_now('%d %B %Y') -%}\n"
            "{{- '<|im_start|>system\\nToday Date: ' ~ today ~ '\\nReasoning Mode: ' + mode + '<|im_end|>\\n' }}\n",
        ),
        MODEL, MODEL + "<think>\n\n</think>\n", MODEL,
    ),
    # A word at the end of the user's turn, and a block on one line.
    "GLM": Family(
        _template(
            "{{- '<think></think>\\n' }}",
            "{{- '<think></think>\\n' if (enable_thinking is defined and not enable_thinking) else '' }}\n",
            after_user="{{- '/nothink\\n' if (enable_thinking is defined and not enable_thinking) else '' }}\n",
        ),
        MODEL, "/nothink\n" + MODEL + "<think></think>\n", MODEL,
    ),
    # Off by default; the block is opened or closed in the prompt, never both.
    "DeepSeek V3.1": Family(
        _template(
            "{{- '</think>' }}",
            "{{- '<think>' if thinking else '</think>' }}\n",
            before="{%- if not thinking is defined %}{%- set thinking = false %}{%- endif %}\n",
        ),
        MODEL + "</think>", MODEL + "</think>", MODEL + "<think>",
    ),
    # No switch: every prompt opens a block, and finished turns have none.
    "DeepSeek R1": Family(
        _template("", "{{- '<think>\\n' }}\n"),
        MODEL + "<think>\n", MODEL + EMPTY, MODEL + "<think>\n",
    ),
    # It always thinks, here as little as it can, and the answer has a channel of its own.
    "gpt-oss": Family(
        _template(
            "{{- '<|channel|>final<|message|>' }}",
            "",
            before="{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'medium' %}{%- endif %}\n",
            after_user="{{- 'Reasoning: ' + reasoning_effort + '\\n' }}\n",
        ),
        "Reasoning: medium\n" + MODEL, "Reasoning: low\n" + MODEL, "Reasoning: high\n" + MODEL,
        "<|channel|>final<|message|>Sure.<|im_end|>",
    ),
    # An effort that is one of the words it knows, "none" among them.
    "Mistral Small 4": Family(
        _template(
            "",
            "",
            before="{%- if reasoning_effort is not defined %}{%- set reasoning_effort = 'none' %}{%- endif %}\n"
            "{%- if reasoning_effort not in ['none', 'high'] %}{{- raise_exception('none or high') }}{%- endif %}\n",
            after_user="{{- '[' + reasoning_effort + ']\\n' }}\n",
        ),
        "[none]\n" + MODEL, "[none]\n" + MODEL, "[high]\n" + MODEL,
    ),
    # A budget of no tokens; the block that says so is the prompt's own.
    "Seed-OSS": Family(
        _template(
            "",
            "{%- if thinking_budget == 0 %}{{- '<seed:think>None.</seed:think>' }}{%- endif %}\n",
            before="{%- if not thinking_budget is defined %}{%- set thinking_budget = -1 %}{%- endif %}\n",
        ),
        MODEL, MODEL + "<seed:think>None.</seed:think>", MODEL,
    ),
    # It is told to think in another turn, and leaves the empty channel out of finished turns.
    "Gemma 4": Family(
        _template(
            "",
            "{%- if not enable_thinking | default(false) -%}{{- '<|channel>thought\\n<channel|>' -}}{%- endif -%}\n",
            after_user="{{- '<|think|>\\n' if enable_thinking is defined and enable_thinking else '' }}\n",
        ),
        MODEL + "<|channel>thought\n<channel|>", MODEL + "<|channel>thought\n<channel|>", "<|think|>\n" + MODEL,
    ),
}  # fmt: skip
