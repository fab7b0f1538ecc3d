"""Marks: what a person said of a model's answers, that it should have answered or should have refused. JSON Lines of
{prompt, wanted, said, model}, to which several programs may append at once."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from filelock import FileLock, Timeout

from dcr_lite.data.rows import Fields, parse_jsonl, read_bytes, text_field
from dcr_lite.errors import UserError
from dcr_lite.files import jsonl, write_whole

Wanted = Literal["answer", "refuse"]
LOCK_SECONDS = 10  # to wait for whoever else appends, which takes a millisecond


@dataclass(frozen=True)
class Mark:
    """A prompt, and what a person wants of a model that is asked it.

    wanted: answer, or refuse. said: what the model said instead. model: which one, by its name; empty if not known.
    """

    prompt: str
    wanted: Wanted
    said: str = ""
    model: str = ""


def read_marks(path: Path) -> list[tuple[Mark, str]]:
    """The marks in a file, each with its file and line, in the order of their prompts' first marks; of several for one
    prompt the last, since a person may come to another mind. A last line that is cut off is left out.

    Raises UserError for any other line that is no mark.
    """
    raw = read_bytes(path)
    whole = raw[: _end_of_whole(raw)]
    if not whole.strip():
        return []
    marks = parse_jsonl(whole, str(path), lambda fields, place: (_mark(fields, place), place))
    return list({mark.prompt: (mark, place) for mark, place in marks}.values())


def append_mark(path: Path, mark: Mark) -> None:
    """Append a mark as one whole line; what a killed process left of a line before it is removed.

    Raises UserError where another process holds the file, and OSError for what the system does not allow.
    """
    line = jsonl([asdict(mark)]).encode("utf-8", "replace")  # half of a character becomes a question mark
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path), path.open("a+b") as file:
        file.seek(0)
        before = file.read()
        end = _end_of_whole(before)
        if end < len(before):
            file.truncate(end)
        file.write(line if before[:end].endswith(b"\n") or not end else b"\n" + line)
        file.flush()
        os.fsync(file.fileno())


def remove_marks(path: Path, prompt: str) -> None:
    """Take all marks of a prompt out of the file. It is as it was or whole without them, and gone with the last mark.

    Raises UserError as ``read_marks`` and ``append_mark`` do, and OSError for what the system does not allow.
    """
    with _alone(path):
        raw = read_bytes(path)
        whole = raw[: _end_of_whole(raw)]
        marks = parse_jsonl(whole, str(path), _mark)
        lines = filter(str.strip, whole.decode("utf-8-sig").split("\n"))
        kept = "".join(f"{line}\n" for line, mark in zip(lines, marks, strict=True) if mark.prompt != prompt)
        if kept:
            write_whole(path, lambda partial: partial.write_bytes(kept.encode()))
        else:
            path.unlink()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Within the block no other process appends to the file."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        lock.acquire(timeout=LOCK_SECONDS)
    except Timeout:
        raise UserError(f"{path}: another program writes to it. Try again, or end that program.") from None
    try:
        yield
    finally:
        lock.release()


def _end_of_whole(raw: bytes) -> int:
    """Where the last whole line ends: one without a line break counts where it is whole JSON, as a person's editor may
    leave it."""
    end = raw.rfind(b"\n") + 1
    try:
        json.loads(raw[end:])
    except (ValueError, RecursionError):
        return end
    return len(raw)


def _mark(fields: Fields, place: str) -> Mark:
    prompt, wanted = text_field(fields, "prompt", place), text_field(fields, "wanted", place)
    if wanted not in get_args(Wanted):
        raise UserError(f'{place}: wanted "{wanted}" is none of {", ".join(get_args(Wanted))}')
    said, model = (str(fields.get(name) or "") for name in ("said", "model"))
    return Mark(prompt, wanted, said, model)  # type: ignore[arg-type]  # it is one of them
