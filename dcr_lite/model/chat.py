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

import re
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import chain
from typing import Any

from dcr_lite.data.rows import Asked, Before, Conversation, messages_of
from dcr_lite.errors import MethodError, UserError, first_line
from dcr_lite.model.thinking import MARKERS, THINKING, left_open

Tokenizer = Any  # a transformers tokenizer
Message = dict[str, str]  # role: system, user or assistant; content
# Turns as the template writes them: their text; the prompts and answers in it, which are read as text; what stands
# before, between and after them, with its special tokens.
Turns = tuple[str, list[str], list[str]]

OWN = "own"  # leave the tokenizer as it is: a chat model has its format
# The special tokens of each format, which a tokenizer of the family has as one token each.
FORMATS = {
    "chatml": ("<|im_start|>", "<|im_end|>"),
    "llama3": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "mistral": ("[INST]", "[/INST]"),
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
}
OPENING_TOKENS = 24  # more than the opening of a thinking block has at the end of a prompt
NO_FORMAT = "None of the kit's formats fits: put a chat template into its tokenizer_config.json, as chat_template"
MARK = "\N{LEFT WHITE SQUARE BRACKET}turn\N{RIGHT WHITE SQUARE BRACKET}"  # stands for a prompt: what is around it?


def set_format(tokenizer: Tokenizer, name: str) -> None:
    """Give the tokenizer the chat format ``name``, a key of FORMATS; OWN leaves it as it is.

    Raises UserError where the tokenizer lacks the format's special tokens (it is of another family) or an end token.
    """
    if name == OWN:
        return
    known = tokenizer.get_vocab()
    if missing := [token for token in FORMATS[name] if token not in known]:
        fitting = [other for other, tokens in FORMATS.items() if set(tokens) <= known.keys()]
        if tokenizer.chat_template:
            fitting.append(OWN)
        cure = f"Take --chat-format {' or '.join(fitting)}" if fitting else NO_FORMAT
        raise UserError(
            f"{tokenizer.name_or_path} does not know {', '.join(missing)} of the chat format {name!r}. {cure}."
        )
    if tokenizer.eos_token is None:
        raise UserError(f"{tokenizer.name_or_path} has no end-of-text token, so answers would never end")
    template = files("dcr_lite.model") / "chat_formats" / f"{name}.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")


def _render(tokenizer: Tokenizer, messages: list[Message], answer_next: bool, thinking: bool = False) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path} has no chat template, so it is no chat model. Name its instruct or chat version "
            f"or, to train or to show a base model, give it a format: --chat-format {', '.join(FORMATS)}."
        )
    try:
        values = THINKING if thinking else {}
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer_next, **values)
        return str(text)
    except Exception as error:  # a template is a program in a sandbox: it can fail in any way
        raise UserError(f"{tokenizer.name_or_path}: its chat template fails ({first_line(error)})") from None


def prompt_text(tokenizer: Tokenizer, prompt: str, thinking: bool = False) -> str:
    """One user turn up to where the model answers, as the chat template writes it. thinking: let it think first."""
    return _render(tokenizer, [{"role": "user", "content": prompt}], True, thinking)


def can_think(tokenizer: Tokenizer) -> bool:
    """Whether the chat template can ask for an answer with thinking and for one without."""
    return prompt_text(tokenizer, MARK, thinking=True) != prompt_text(tokenizer, MARK)


def _encode(tokenizer: Tokenizer, texts: list[str], split_special_tokens: bool = False) -> list[list[int]]:
    if not texts:  # of a process whose share is none
        return []
    # The template writes its own special tokens; adding them again would double the first one.
    found = tokenizer(texts, add_special_tokens=False, split_special_tokens=split_special_tokens)
    return [list(ids) for ids in found["input_ids"]]


def _encode_turns(tokenizer: Tokenizer, turns: Sequence[Turns]) -> list[list[int]]:
    """Token ids of each of ``turns``. Raises UserError where a content spells a special token and the template writes
    something else."""
    special = {str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special}
    rows = _encode(tokenizer, [text for text, _, _ in turns])
    for number, (text, said, (first, *others)) in enumerate(turns):
        spelled = [(content, token) for content in said for token in special if token in content]
        if not spelled:
            continue
        both = zip(said, others, strict=True)  # the template may change white space at the ends of a content
        pattern = "".join(rf"(\s*{re.escape(content.strip())}\s*){re.escape(after)}" for content, after in both)
        written = re.fullmatch(re.escape(first) + pattern, text)
        if written is None:
            content, token = spelled[0]
            raise UserError(f"{content[:60]!r}... holds {token}, a special token of the model. Take it out.")
        inner, outer = _encode(tokenizer, list(written.groups()), True), _encode(tokenizer, [first, *others])
        rows[number] = [*outer[0], *chain(*chain(*zip(inner, outer[1:], strict=True)))]
    return rows


def _require_window(what: str, text: str, length: int, window: int, where: str) -> None:
    if length > window:
        raise UserError(
            f"the {what} {text[:60]!r}... has {length:,} tokens {where} and the limit is {window:,}. Shorten it, or "
            "leave that row out."
        )


def prompt_window(window: int, answer_tokens: int) -> int:
    """The tokens that a model's window leaves for a prompt. Raises UserError where the answer alone would fill it."""
    if answer_tokens >= window:
        raise UserError(
            f"--answer-tokens {answer_tokens}: this model's window is {window:,} tokens, for prompt and answer "
            "together. Give fewer."
        )
    return window - answer_tokens


def encode_prompts(
    tokenizer: Tokenizer, prompts: list[str], window: int, thinking: bool = False, before: Sequence[Before] = ()
) -> list[list[int]]:
    """Token ids of each prompt in the chat template. ``window``: the longest row allowed, in tokens. ``thinking``: ask
    for an answer with thinking, where the template can. ``before``: of each prompt, if given, the messages before it.

    Raises UserError for a longer prompt: cutting its end would lose the very token whose state is read; and as
    ``encode_messages`` does.
    """
    first, _, after = prompt_text(tokenizer, MARK, thinking).partition(MARK)
    said_before = before or [()] * len(prompts)
    turns = [
        _turns(tokenizer, [*messages_of(earlier), {"role": "user", "content": prompt}], thinking)
        if earlier
        else (prompt_text(tokenizer, prompt, thinking), [prompt], [first, after])
        for prompt, earlier in zip(prompts, said_before, strict=True)
    ]
    rows = _encode_turns(tokenizer, turns)
    for prompt, earlier, row in zip(prompts, said_before, rows, strict=True):
        where = "in the chat template, with the messages before it" if earlier else "in the chat template"
        _require_window("prompt", prompt, len(row), window, where)
    return rows


def encode_asked(tokenizer: Tokenizer, rows: Sequence[Asked], window: int, thinking: bool = False) -> list[list[int]]:
    """The prompts of rows, each behind the messages before it, as ``encode_prompts`` gives and raises."""
    return encode_prompts(tokenizer, [r.prompt for r in rows], window, thinking, [r.before for r in rows])


def with_system_message(tokenizer: Tokenizer, rows: list[list[int]], message: str, window: int) -> list[list[int]]:
    """The same prompts, given as ``encode_prompts`` gives them, under a system message, which takes the place of a
    template's own one. Where a template knows none (Gemma's), it stands before the prompt in the user's turn.

    Raises MethodError for a row that is no single prompt in the chat template, and UserError for one longer than
    ``window`` tokens.
    """
    before, _, after = prompt_text(tokenizer, MARK).partition(MARK)
    prompts = [text[len(before) : len(text) - len(after)] for text in tokenizer.batch_decode(rows)]
    if encode_prompts(tokenizer, prompts, sys.maxsize) != rows:
        raise MethodError(
            f"{tokenizer.name_or_path}: its tokens do not give back the prompts in its chat template, or some of them "
            "stand behind other messages. Leave out rows with the field before, or this method."
        )

    def asked(prompt: str) -> str:
        turns = [{"role": "system", "content": message}, {"role": "user", "content": prompt}]
        return _render(tokenizer, _with_known_roles(tokenizer, turns), True)

    before, _, after = asked(MARK).partition(MARK)
    found = _encode_turns(tokenizer, [(asked(prompt), [prompt], [before, after]) for prompt in prompts])
    for prompt, row in zip(prompts, found, strict=True):
        _require_window("prompt", prompt, len(row), window, f"with the system message {message!r}")
    return found


def knows_system_message(tokenizer: Tokenizer) -> bool:
    """Whether the chat template writes a system message (Gemma 2's fails at one)."""
    try:
        turns = [{"role": "system", "content": MARK}, {"role": "user", "content": "Hello"}]
        return MARK in _render(tokenizer, turns, True)
    except UserError:
        return False


def _with_known_roles(tokenizer: Tokenizer, messages: list[Message]) -> list[Message]:
    """The messages; where the template knows no system message (Gemma 2's), one at the beginning stands before the
    prompt in the first turn of the user, as Gemma 3's template writes it."""
    if messages[0]["role"] != "system" or knows_system_message(tokenizer):
        return messages
    system, first, *others = messages
    return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _turns(tokenizer: Tokenizer, messages: list[Message], thinking: bool = False) -> Turns:
    """A conversation up to where the model answers. Raises UserError where the template does not write every turn."""
    messages = _with_known_roles(tokenizer, messages)
    marks = [{**message, "content": f"{MARK}{number}{MARK}"} for number, message in enumerate(messages)]
    first, *others = re.split(rf"{MARK}(\d+){MARK}", _render(tokenizer, marks, True, thinking))
    order = [int(number) for number in others[::2]]  # Mistral's templates write a system message before the last turn
    if sorted(order) != list(range(len(messages))):
        raise UserError(
            f"{tokenizer.name_or_path}: its chat template does not write every turn of a conversation once, so the "
            "model can only be asked single prompts."
        )
    contents = [messages[number]["content"] for number in order]
    return _render(tokenizer, messages, True, thinking), contents, [first, *others[1::2]]


def encode_messages(tokenizer: Tokenizer, messages: list[Message], window: int) -> list[int]:
    """Token ids of a conversation up to where the model answers its last turn, as the chat template writes it: turns of
    user and assistant, beginning and ending with the user's, after a system message if there is one.

    Raises UserError where the template does not write every turn, and for more than ``window`` tokens.
    """
    [row] = _encode_turns(tokenizer, [_turns(tokenizer, messages)])
    if len(row) > window:
        raise UserError(
            f"the conversation has {len(row):,} tokens in the chat template and the limit is {window:,}. Undo a turn, "
            "shorten what you ask, or begin anew."
        )
    return row


def encode_conversations(
    tokenizer: Tokenizer, prompts: list[str], responses: list[str], window: int, ends: Sequence[bool] = (),
    begun: Sequence[str] = (), before: Sequence[Before] = (),
) -> list[tuple[list[int], list[int]]]:  # fmt: skip
    """(prompt ids, answer ids) of each row; the answer ends with the token that ends the model's turn, except where
    ``ends``, one for each row if given, is false. Behind the prompt stands what ``begun`` says of the row, the
    beginning of its answer, and before it the messages that ``before`` gives.

    Prompt ids are exactly those of ``encode_prompts``, so training and evaluation split the text at the same place.
    """
    starts = encode_prompts(tokenizer, prompts, window, before=before)
    answers: list[Turns] = []
    for prompt, response, end in zip(prompts, responses, ends or [True] * len(prompts), strict=True):
        start = prompt_text(tokenizer, prompt)
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        whole = _render(tokenizer, turns, answer_next=False)
        # Some templates leave an empty thinking block out of a finished turn: then the plain answer and the end token.
        answer = whole[len(start) :].rstrip() if whole.startswith(start) else response + tokenizer.eos_token
        first, _, after = answer.partition(response.strip() or answer)
        if not end:
            answer, after = answer.removesuffix(after), ""
        answers.append((answer, [response], [first, after]))
    said = _encode_turns(tokenizer, answers)
    if any(begun):
        more = _encode(tokenizer, list(begun), split_special_tokens=True)
        starts = [start + beginning for start, beginning in zip(starts, more, strict=True)]
    for prompt, start_ids, end_ids in zip(prompts, starts, said, strict=True):
        _require_window("row", prompt, len(start_ids) + len(end_ids), window, "with its answer")
    return list(zip(starts, said, strict=True))


def encode_rows(tokenizer: Tokenizer, rows: Sequence[Conversation], window: int) -> list[tuple[list[int], list[int]]]:
    """``encode_conversations`` of rows, with all that they say of themselves."""
    prompts, answers, ends = [r.prompt for r in rows], [r.response for r in rows], [r.ends for r in rows]
    earlier = [r.begun for r in rows], [r.before for r in rows]
    return encode_conversations(tokenizer, prompts, answers, window, ends, *earlier)


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
