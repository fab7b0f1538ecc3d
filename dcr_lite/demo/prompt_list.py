"""A list of prompts as people have it: lines of text, CSV, or JSON Lines."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import parse_jsonl
from dcr_lite.errors import UserError

COLUMNS = ("prompt", "text", "question")  # of a CSV or JSON Lines file, the first of them that it has
MAX_BYTES = 5_000_000


def read_prompt_list(raw: bytes, name: str) -> list[str]:
    """The prompts in ``raw``, the content of a file called ``name``. *.jsonl: objects with a field of COLUMNS. *.csv: a
    header with a column of COLUMNS, or a single column. Anything else: one prompt a line, unless it looks like JSON
    Lines. Raises UserError naming the line and the cure."""
    _require_small(len(raw), name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: no text in UTF-8 (byte {error.start}). Give a CSV or JSON Lines file, saved as UTF-8."
        ) from None
    if "\0" in text:
        raise UserError(f"{name}: no text file. Give a CSV or JSON Lines file, saved as UTF-8.")
    if name.lower().endswith((".jsonl", ".ndjson")) or text.lstrip().startswith("{"):
        return parse_jsonl(raw, name, lambda fields, place: _chosen(fields, place))
    if name.lower().endswith(".csv") or _has_header(text):
        prompts = _from_csv(text, name)
    else:
        prompts = [line.strip() for line in text.split("\n")]
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{name}: no prompts in it. Put one on each line, or in a column called prompt.")
    return prompts


def read_prompt_file(path: Path) -> list[str]:
    """The prompts in a file, by its name's ending; too large a one is not even read."""
    _require_small(path.stat().st_size, path.name)
    return read_prompt_list(path.read_bytes(), path.name)


def _require_small(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size / 1e6:,.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB. Split it.")


def _key(names: Iterable[Any]) -> Any:
    """The name among COLUMNS, whatever its case; None where there is none."""
    lower = {str(name).strip().lower(): name for name in names}
    return next((lower[column] for column in COLUMNS if column in lower), None)


def _chosen(fields: dict[str, object], place: str) -> str:
    value = fields.get(_key(fields) or "")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: no text in a field called {', '.join(COLUMNS)}")
    return value


def _has_header(text: str) -> bool:
    first = text.split("\n", 1)[0].strip()
    return _key(first.replace('"', "").split(",")) is not None


def _from_csv(text: str, name: str) -> list[str]:
    try:
        rows = [
            (reader.line_num, row) for reader in [csv.reader(io.StringIO(text), strict=True)] for row in reader if row
        ]
    except csv.Error as error:
        raise UserError(
            f"{name}: no well-formed CSV ({error}). Put texts with commas or line breaks in quotes."
        ) from None
    if not rows:
        return []
    key = _key(rows[0][1])
    if key is None:
        if any(len(row) > 1 for _, row in rows):
            raise UserError(
                f"{name}: none of its columns ({', '.join(c[:40] for c in rows[0][1])}) is called prompt. "
                "Rename the one with the prompts, or put texts with commas in quotes."
            )
        return [row[0] for _, row in rows]
    column = rows[0][1].index(key)
    for line, row in rows[1:]:
        if len(row) <= column:
            raise UserError(f"{name}, line {line}: no column {key!r} in it")
    return [row[column] for _, row in rows[1:]]
