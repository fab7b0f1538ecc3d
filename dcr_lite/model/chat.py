"""Chat templates: every prompt and answer becomes token ids here, so that both stages, the evaluation and the demo see
the same tokens. Base models, which bring no template, are given the public one of their family.

A prompt is one turn, whatever it says: a special token that it spells, such as "<|im_end|>", is read as those
characters, as Meta's reference code for Llama does and transformers' apply_chat_template alone does not. Else a prompt
could end its turn and forge the next.

A model that can think before it answers is asked to answer at once (``thinking.answer_at_once``), in both stages and
wherever else it is asked, unless ``thinking`` says otherwise.

A base model has read no conversations, so its format can be chosen. The templates in chat_formats/ are the families'
own, with one change: an answer ends with the token that ends *texts*. A base model's end-of-turn token is often
untrained (Llama 3 ships zeros for it), and since no recipe trains the output matrix, it could never be learnt as an
answer's end.
"""

import sys
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from dcr_lite.errors import UserError, first_line
from dcr_lite.model.thinking import MARKERS, THINKING, left_open

Tokenizer = Any  # a transformers tokenizer

OWN = "own"  # leave the tokenizer as it is: a chat model has its format
# The special tokens of each format, which a tokenizer of the family has as one token each.
FORMATS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
OPENING_TOKENS = 24  # more than the opening of a thinking block has at the end of a prompt
MARK = "\N{LEFT WHITE SQUARE BRACKET}turn\N{RIGHT WHITE SQUARE BRACKET}"  # stands for a prompt: what is around it?


def set_format(tokenizer: Tokenizer, name: str) -> None:
    """Give the tokenizer the chat format ``name``, a key of FORMATS; OWN leaves it as it is.

    Raises UserError where the tokenizer lacks the format's special tokens (it is of another family) or an end token.
    """
    if name == OWN:
        return
    known = tokenizer.get_vocab()
    if missing := [token for token in FORMATS[name] if token not in known]:
        raise UserError(
            f"{tokenizer.name_or_path} does not know {', '.join(missing)} of the chat format {name!r}. Take the recipe "
            f"of its family, or --chat-format {OWN} for a model that brings its own format."
        )
    if tokenizer.eos_token is None:
        raise UserError(f"{tokenizer.name_or_path} has no end-of-text token, so answers would never end")
    template = files("dcr_lite.model") / "chat_formats" / f"{name}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")


def _render(tokenizer: Tokenizer, messages: list[dict[str, str]], answer_next: bool, thinking: bool = False) -> str:
    try:
        values = THINKING if thinking else {}
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next, **values)
        return str(text)
    except Exception as error:  # a template is a program in a sandbox: it can fail in any way
        raise UserError(f"{tokenizer.name_or_path}: its chat template fails ({first_line(error)})") from None


def prompt_text(tokenizer: Tokenizer, prompt: str, thinking: bool = False) -> str:
    """One user turn up to where the model answers, as the chat template writes it. thinking: let it think first."""
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, so it is no chat model. Name its instruct or chat "
            f"version, or give a base model the format that it learns: --chat-format {', '.join(FORMATS)}."
        )
    return _render(tokenizer, [{"role": "user", "content": prompt}], True, thinking)


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the chat template can ask for an answer with thinking and for one without."""
    return prompt_text(tokenizer, MARK, thinking=True) != prompt_text(tokenizer, MARK)


def _encode(tokenizer: Tokenizer, texts: list[str], split_special_tokens: bool = False) -> list[list[int]]:
    # The template writes its own special tokens; adding them again would double the first one.
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=split_special_tokens)
    return [list(ids) for ids in found["input_ids"]]


def _encode_turns(
    tokenizer: Tokenizer, texts: list[str], contents: list[str], around: list[tuple[str, str]]
) -> list[list[int]]:
    """Token ids of turns as the template writes them. ``contents``: the prompt or the answer in each, which is read as
    text; ``around``: what the template writes before and after it, with its special tokens. Raises UserError where a
    content spells a special token and the template writes something else."""
    special = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    rows = _encode(tokenizer, texts)
    for number, (text, content, (before, after)) in enumerate(zip(texts, contents, around, strict=True)):
        spelled = [token for token in special if token in content]
        if not spelled:
            continue
        middle = text[len(before) : len(text) - len(after)]
        if before + middle + after != text or middle.strip() != content.strip():
            raise UserError(f"{content[:60]!r}... holds {spelled[0]}, a special token of the model. Take it out.")
        (first, last), (inner,) = _encode(tokenizer, [before, after]), _encode(tokenizer, [middle], True)
        rows[number] = first + inner + last
    return rows


def _require_window(what: str, text: str, length: int, window: int, where: str) -> None:
    if length > window:
        raise UserError(
            f"the {what} {text[:60]!r}... has {length:,} tokens {where} and the limit is {window:,}. Shorten it, or "
            "leave that row out."
        )


def encode_prompts(tokenizer: Tokenizer, prompts: list[str], window: int, thinking: bool = False) -> list[list[int]]:
    """Token ids of each prompt in the chat template. ``window``: the longest row allowed, in tokens. ``thinking``: ask
    for an answer with thinking, where the template can.

    Raises UserError for a longer prompt: cutting its end would lose the very token whose state is read.
    """
    before, _, after = prompt_text(tokenizer, MARK, thinking).partition(MARK)
    texts = [prompt_text(tokenizer, prompt, thinking) for prompt in prompts]
    rows = _encode_turns(tokenizer, texts, prompts, [(before, after)] * len(prompts))
    for prompt, row in zip(prompts, rows, strict=True):
        _require_window("prompt", prompt, len(row), window, "in the chat template")
    return rows


def with_system_message(tokenizer: Tokenizer, rows: list[list[int]], message: str, window: int) -> list[list[int]]:
    """The same prompts, given as ``encode_prompts`` gives them, under a system message, which takes the place of a
    template's own one. Where a template knows none (Gemma's), it stands before the prompt in the user's turn.

    Raises UserError for a row that is no prompt in the chat template, and for one longer than ``window`` tokens.
    """
    before, _, after = prompt_text(tokenizer, MARK).partition(MARK)
    prompts = [text[len(before) : len(text) - len(after)] for text in tokenizer.batch_decode(rows)]
    if encode_prompts(tokenizer, prompts, sys.maxsize) != rows:
        raise UserError(f"{tokenizer.name_or_path}: its tokens do not give back the prompts in its chat template")
    system = {"role": "system", "content": message}
    try:
        in_own_turn = message in _render(tokenizer, [system, {"role": "user", "content": MARK}], True)
    except UserError:
        in_own_turn = False

    def asked(prompt: str) -> str:
        if in_own_turn:
            return _render(tokenizer, [system, {"role": "user", "content": prompt}], True)
        return prompt_text(tokenizer, f"{message}\n\n{prompt}")

    before, _, after = asked(MARK).partition(MARK)
    found = _encode_turns(tokenizer, list(map(asked, prompts)), prompts, [(before, after)] * len(prompts))
    for prompt, row in zip(prompts, found, strict=True):
        _require_window("prompt", prompt, len(row), window, f"with the system message {message!r}")
    return found


def encode_conversations(
    tokenizer: Tokenizer, prompts: list[str], responses: list[str], window: int, ends: Sequence[bool] = ()
) -> list[tuple[list[int], list[int]]]:
    """(prompt ids, answer ids) of each row; the answer ends with the token that ends the model's turn, except where
    ``ends``, one for each row if given, is false.

    Prompt ids are exactly those of ``encode_prompts``, so training and evaluation split the text at the same place.
    """
    starts = encode_prompts(tokenizer, prompts, window)
    answers, around = [], []
    for prompt, response, end in zip(prompts, responses, ends or [True] * len(prompts), strict=True):
        start = prompt_text(tokenizer, prompt)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        whole = _render(tokenizer, turns, answer_next=False)
        # Some templates leave an empty thinking block out of a finished turn: then the plain answer and the end token.
        answers.append(whole[len(start) :].rstrip() if whole.startswith(start) else response + tokenizer.eos_token)
        before, _, after = answers[-1].partition(response.strip() or answers[-1])
        if not end:
            answers[-1], after = answers[-1].removesuffix(after), ""
        around.append((before, after))
    said = _encode_turns(tokenizer, answers, responses, around)
    for prompt, start_ids, end_ids in zip(prompts, starts, said, strict=True):
        _require_window("row", prompt, len(start_ids) + len(end_ids), window, "with its answer")
    return list(zip(starts, said, strict=True))


def decode_answers(tokenizer: Tokenizer, rows: list[list[int]], answers: list[list[int]]) -> list[str]:
    """The text of each answer, given as token ids behind the prompt in ``rows``: without special tokens, except those
    that mark thinking, and with the opening of a thinking block that the prompt has left open. So the text alone says
    what of it is the answer."""
    special = {number: str(t.content) for number, t in tokenizer.added_tokens_decoder.items() if t.special}
    hidden = {number for number, token in special.items() if not any(token in marker for marker in MARKERS)}
    if len(hidden) == len(special):
        texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    else:
        texts = tokenizer.batch_decode([[token for token in answer if token not in hidden] for answer in answers])
    ends = tokenizer.batch_decode([row[-OPENING_TOKENS:] for row in rows])
    return [left_open(end) + text.strip() for end, text in zip(ends, texts, strict=True)]
