"""Rows of JSON Lines, checked: a wrong line is named with its file, its number and the cure."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dcr_lite.errors import UserError
from dcr_lite.names import LABELS


@dataclass(frozen=True)
class Pair:
    """A toxic prompt and the seemingly toxic one that looks like it. ``focus``: the alarming word they share."""

    toxic: str
    seemingly_toxic: str
    kind: str = ""
    focus: str = ""


@dataclass(frozen=True)
class Conversation:
    """A prompt and the answer to learn. ``kind``: its topic, where the file says one. ``refuses``: in a mixture for
    safety SFT, whether it comes from the refusals."""

    prompt: str
    response: str
    kind: str = ""
    refuses: bool = False


@dataclass(frozen=True)
class Prompt:
    """A prompt to measure, its label (one of LABELS) and the set that it belongs to."""

    prompt: str
    label: str
    source: str


Row = TypeVar("Row")


def read_jsonl(path: Path, parse: Callable[[dict[str, object], str], Row]) -> list[Row]:
    """All rows of a JSON Lines file; ``parse(fields, place)`` makes one. Raises UserError naming file and line."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Check the path, or leave the flag out to use the shipped data."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return parse_jsonl(raw, str(path), parse)


def parse_jsonl(raw: bytes, path: str, parse: Callable[[dict[str, object], str], Row]) -> list[Row]:
    """The same for bytes at hand; ``path`` is what messages call them."""
    rows = []
    for number, line in enumerate(raw.split(b"\n"), 1):
        place = f"{path}, line {number}"
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 at byte {error.start}. Save the file as UTF-8.") from None
        if not text:
            continue
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{place}: not JSON ({error.msg} at column {error.colno}). Each line is one object."
            ) from None
        except (RecursionError, ValueError):
            raise UserError(f"{place}: JSON that is nested too deeply or holds too long a number") from None
        if not isinstance(fields, dict):
            raise UserError(f"{place}: {type(fields).__name__} where an object like {{...}} is needed")
        rows.append(parse(fields, place))
    if not rows:
        raise UserError(f"{path}: no rows. It needs at least one JSON object, one per line.")
    return rows


def _text(fields: dict[str, object], key: str, place: str) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or not value.strip():
        what = "is missing" if key not in fields else "is empty" if value == "" or value is None else "is not a text"
        raise UserError(f'{place}: field "{key}" {what}. Found: {", ".join(map(str, fields)) or "no fields"}.')
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise UserError(f'{place}: field "{key}" holds half a character (a lone surrogate); write it whole')
    return value


def read_pairs(path: Path) -> list[Pair]:
    """Rows {toxic, seemingly_toxic, kind?, focus?}."""

    def parse(fields: dict[str, object], place: str) -> Pair:
        toxic, seemingly = _text(fields, "toxic", place), _text(fields, "seemingly_toxic", place)
        return Pair(toxic, seemingly, str(fields.get("kind") or ""), str(fields.get("focus") or ""))

    return read_jsonl(path, parse)


def read_conversations(path: Path) -> list[Conversation]:
    """Rows {prompt, response, kind?}."""

    def parse(fields: dict[str, object], place: str) -> Conversation:
        kind = str(fields.get("kind") or "")
        return Conversation(_text(fields, "prompt", place), _text(fields, "response", place), kind)

    return read_jsonl(path, parse)


def read_prompts(path: Path) -> list[Prompt]:
    """Rows {prompt, label, source?} to measure, or pairs, which give two rows each. The file's name is the default
    source."""

    def parse(fields: dict[str, object], place: str) -> list[Prompt]:
        source = str(fields.get("source") or path.stem)
        if "toxic" in fields and "seemingly_toxic" in fields:
            return [Prompt(_text(fields, label, place), label, source) for label in LABELS[:2]]
        prompt, label = _text(fields, "prompt", place), _text(fields, "label", place)
        if label not in LABELS:
            raise UserError(f'{place}: label "{label}" is none of {", ".join(LABELS)}')
        return [Prompt(prompt, label, source)]

    return [row for rows in read_jsonl(path, parse) for row in rows]


@dataclass(frozen=True)
class Choice:
    """A question, its possible answers, and the number of the right one, counted from 0."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_choices(path: Path) -> list[Choice]:
    """Rows {question, choices, answer}, the answer as a number from 0 or as a letter. Raises UserError naming the
    line."""

    def parse(fields: dict[str, object], place: str) -> Choice:
        question, choices, answer = (fields.get(key) for key in ("question", "choices", "answer"))
        if not isinstance(question, str) or not question.strip():
            raise UserError(f'{place}: field "question" is missing or is no text')
        if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c for c in choices):
            raise UserError(f'{place}: field "choices" has to be a list of two texts or more')
        if isinstance(answer, str) and len(answer) == 1 and answer.isalpha():
            answer = ord(answer.upper()) - ord("A")
        if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
            raise UserError(f'{place}: field "answer" has to be 0 to {len(choices) - 1}, or a letter from A on')
        return Choice(question, tuple(choices), answer)

    return read_jsonl(path, parse)
