"""Rows of JSON Lines, read and checked. Errors give the file, the line and what to change."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from dcr_lite.errors import UserError
from dcr_lite.names import LABELS

# (role, content) of each message of the conversation before a prompt: one of the system if there is any, then turns of
# user and assistant in order, whole ones.
Before = tuple[tuple[str, str], ...]
# The roles that may follow a role; "" is the beginning.
FOLLOWS = {"": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}


class Asked(Protocol):
    """A row with a prompt, and the messages before it."""

    @property
    def prompt(self) -> str: ...

    @property
    def before(self) -> Before: ...


@dataclass(frozen=True)
class Pair:
    """A toxic prompt and a seemingly toxic one of similar wording, both behind the messages ``before``. ``focus``: the
    alarming word they share."""

    toxic: str
    seemingly_toxic: str
    kind: str = ""
    focus: str = ""
    before: Before = ()


@dataclass(frozen=True)
class Conversation:
    """A prompt and the answer to learn. ``kind``: its topic, if the file gives one. ``refuses``: in a mixture for
    safety SFT, whether the row is one of the refusals. ``ends``: whether the answer's end is learnt too; not where it
    was cut off. ``begun``: what the model has said before that, which is not learnt. ``before``: the messages before
    the prompt, which are not learnt either."""

    prompt: str
    response: str
    kind: str = ""
    refuses: bool = False
    ends: bool = True
    begun: str = ""
    before: Before = ()


@dataclass(frozen=True)
class Prompt:
    """A prompt to measure, its label (one of LABELS), the set that it belongs to, and the messages before it."""

    prompt: str
    label: str
    source: str
    before: Before = ()


@dataclass(frozen=True)
class Choice:
    """A multiple-choice question and the number of the right choice, counted from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


def prompts_of(pairs: Sequence[Pair], source: str = "pairs") -> list[Prompt]:
    """Both sides of pairs as prompts of a set: all toxic ones, then the seemingly toxic ones in the same order."""
    return [Prompt(getattr(pair, side), side, source, pair.before) for side in LABELS[:2] for pair in pairs]


def messages_of(before: Before) -> list[dict[str, str]]:
    """The messages as chat templates and files have them: {role, content} each."""
    return [{"role": role, "content": content} for role, content in before]


def fields_of(row: Pair | Conversation | Prompt) -> dict[str, object]:
    """A row as a file has it: its fields that are not empty."""
    values = asdict(row) | {"before": messages_of(row.before)}
    return {name: value for name, value in values.items() if value}


Fields = dict[str, object]  # of one line
HALF = re.compile("[\ud800-\udfff]")  # of a character, as JSON can escape it
Row = TypeVar("Row")


def read_pairs(path: Path) -> list[Pair]:
    """Rows {toxic, seemingly_toxic, kind?, focus?, before?}."""
    return read_jsonl(path, _pair)


def read_conversations(path: Path) -> list[Conversation]:
    """Rows {prompt, response, kind?, before?}."""
    return read_jsonl(path, _conversation)


def read_prompts(path: Path) -> list[Prompt]:
    """Rows {prompt, label, source?, before?} to measure, or pairs, which give two rows each. The file's name is the
    default source."""
    rows = read_jsonl(path, lambda fields, place: _prompts(fields, place, path.stem))
    return [prompt for prompts in rows for prompt in prompts]


def read_choices(path: Path) -> list[Choice]:
    """Rows {question, choices, answer}, the answer as a number from 0 or as a letter from A."""
    return read_jsonl(path, _choice)


def read_jsonl(path: Path, parse: Callable[[Fields, str], Row]) -> list[Row]:
    """The rows of a JSON Lines file, each made by ``parse(fields, place)``. Raises UserError with file and line."""
    return parse_jsonl(read_bytes(path), str(path), parse)


def read_bytes(path: Path) -> bytes:
    """The content of a file that the user named. Raises UserError where it cannot be read."""
    try:
        if path.is_char_device():
            raise UserError(f"{path}: a device, which may have no end. Give a file.")
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file. Check the path.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise UserError(f"{path}: not a path") from None


def parse_jsonl(raw: bytes, name: str, parse: Callable[[Fields, str], Row]) -> list[Row]:
    """As ``read_jsonl``, for the content of a file that messages call ``name``."""
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        place = f"{name}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
        if text:
            rows.append(parse(_fields(text, place), place))
    if not rows:
        raise UserError(f"{name}: no rows. It needs at least one JSON object, one per line.")
    return rows


def _fields(text: str, place: str) -> Fields:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON ({error.msg} at column {error.colno}). Each line is one object.") from None
    except (RecursionError, ValueError):
        raise UserError(f"{place}: JSON that is nested too deeply or holds too long a number") from None
    if not isinstance(fields, dict):
        raise UserError(f"{place}: {type(fields).__name__} where an object like {{...}} is needed")
    return fields


def field_error(fields: Fields, key: str, place: str) -> UserError:
    """The error of a field that is missing, empty or not a text."""
    what = "is missing" if key not in fields else "is empty" if fields[key] in ("", None) else "is not a text"
    return UserError(f'{place}: field "{key}" {what}. Found: {", ".join(map(str, fields)) or "no fields"}.')


def text_field(fields: Fields, key: str, place: str) -> str:
    """The text in a field that a row needs. Raises UserError where there is none."""
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        raise field_error(fields, key, place)
    return _whole(value, key, place)


def _whole(text: str, key: str, place: str) -> str:
    if HALF.search(text):
        raise UserError(f'{place}: field "{key}" holds half a character (a lone surrogate); write it whole')
    return text


def _optional(fields: Fields, key: str, place: str) -> str:
    value = fields.get(key) or ""
    if not isinstance(value, str | int | float):
        raise field_error(fields, key, place)
    return _whole(str(value), key, place)


def before_field(fields: Fields, place: str) -> Before:
    """The messages before a row's prompt, none where the row has no such field. Raises UserError where they are no
    whole turns of user and assistant behind at most one message of the system."""
    messages = fields.get("before") or []
    if not isinstance(messages, list):
        raise UserError(f'{place}: field "before" has to be a list of messages, each with a role and a content')
    found: list[tuple[str, str]] = []
    for number, message in enumerate(messages, 1):
        where = f'{place}: message {number} of "before"'
        if not isinstance(message, dict):
            raise UserError(f"{where}: {type(message).__name__} where an object with role and content is needed")
        role, expected = message.get("role"), FOLLOWS[found[-1][0] if found else ""]
        if role not in expected:
            raise UserError(f"{where}: its role has to be {' or '.join(expected)}, not {role!r:.40}")
        found.append((role, text_field(message, "content", where)))
    if found and found[-1][0] == "user":
        raise UserError(
            f"{place}: the last message of \"before\" is the user's. Put the assistant's answer behind it, or leave it "
            "out: what the model is asked is the row's own prompt."
        )
    return tuple(found)


def _pair(fields: Fields, place: str) -> Pair:
    toxic, seemingly_toxic = (text_field(fields, side, place) for side in LABELS[:2])
    kind, focus = (_optional(fields, key, place) for key in ("kind", "focus"))
    return Pair(toxic, seemingly_toxic, kind, focus, before_field(fields, place))


def _conversation(fields: Fields, place: str) -> Conversation:
    prompt, response = (text_field(fields, key, place) for key in ("prompt", "response"))
    return Conversation(prompt, response, _optional(fields, "kind", place), before=before_field(fields, place))


def _prompts(fields: Fields, place: str, default_source: str) -> list[Prompt]:
    source, before = _optional(fields, "source", place) or default_source, before_field(fields, place)
    if "toxic" in fields and "seemingly_toxic" in fields:
        return [Prompt(text_field(fields, label, place), label, source, before) for label in LABELS[:2]]
    prompt, label = text_field(fields, "prompt", place), text_field(fields, "label", place)
    if label not in LABELS:
        raise UserError(f'{place}: label "{label}" is none of {", ".join(LABELS)}')
    return [Prompt(prompt, label, source, before)]


def _choice(fields: Fields, place: str) -> Choice:
    question = text_field(fields, "question", place)
    choices, answer = fields.get("choices"), fields.get("answer")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
        raise UserError(f'{place}: field "choices" has to be a list of two texts or more')
    for choice in choices:
        _whole(choice, "choices", place)
    if isinstance(answer, str) and re.fullmatch("[A-Za-z]", answer):
        answer = ord(answer.upper()) - ord("A")
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise UserError(f'{place}: field "answer" has to be 0 to {len(choices) - 1}, or a letter from A on')
    return Choice(question, tuple(choices), answer)
