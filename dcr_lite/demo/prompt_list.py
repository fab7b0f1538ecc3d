"""Lists of prompts, read from lines of text, CSV or JSON Lines, and their scores, written as CSV."""

import csv
import io
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import parse_jsonl
from dcr_lite.demo.score import Score
from dcr_lite.demo.texts import COLUMNS
from dcr_lite.errors import UserError

PROMPT_COLUMNS = ("prompt", "text", "question")  # of a CSV or JSON Lines file, the first of them that it has
MAX_BYTES = 5_000_000
# What spreadsheets take for the beginning of a formula; the last four are its wide forms.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
KEPT_FILES = 5  # of scores: Gradio keeps what it has offered for download


def read_prompt_list(raw: bytes, name: str) -> list[str]:
    """The prompts in ``raw``, the content of a file called ``name``.

    *.jsonl: objects with a field of PROMPT_COLUMNS. *.csv: a header with one of PROMPT_COLUMNS, or a single column.
    Anything else: one prompt per line, unless it begins like CSV or JSON Lines. Raises UserError with the line."""
    _require_small(len(raw), name)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not UTF-8 text (byte {error.start}). Give a CSV or JSON Lines file, saved as UTF-8."
        ) from None
    if "\0" in text:
        raise UserError(f"{name}: not a text file. Give a CSV or JSON Lines file, saved as UTF-8.")
    if name.lower().endswith((".jsonl", ".ndjson")) or text.lstrip().startswith("{"):
        return parse_jsonl(raw, name, _prompt_field)
    first = text.split("\n", 1)[0].replace('"', "").strip()
    for separator in (";", "\t"):
        if separator in first and _is_header(first.split(separator)):
            raise UserError(
                f"{name}: its columns are separated by {separator!r}. Save it with commas between them, and texts with "
                "commas in quotes."
            )
    if name.lower().endswith(".csv") or _is_header(first.split(",")):
        prompts = _from_csv(text, name)
    else:
        prompts = [line.strip() for line in text.split("\n")]
    prompts = [prompt for prompt in prompts if prompt.strip()]
    if not prompts:
        raise UserError(f"{name}: no prompts in it. Write one per line, or in a column called prompt.")
    return prompts


def read_prompt_file(path: Path) -> list[str]:
    """The prompts in a file. Raises UserError as ``read_prompt_list``; a file that is too large is not read."""
    _require_small(path.stat().st_size, path.name)
    return read_prompt_list(path.read_bytes(), path.name)


def _require_small(size: int, name: str) -> None:
    if size > MAX_BYTES:
        raise UserError(f"{name} has {size / 1e6:,.0f} MB; the limit is {MAX_BYTES / 1e6:.0f} MB. Split it.")


def _key(names: Iterable[Any]) -> Any:
    """The first of PROMPT_COLUMNS among ``names``, whatever its case; None where there is none."""
    lower = {str(name).strip().lower(): name for name in names}
    return next((lower[column] for column in PROMPT_COLUMNS if column in lower), None)


def _prompt_field(fields: dict[str, object], place: str) -> str:
    value = fields.get(_key(fields) or "")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: no text in a field called {', '.join(PROMPT_COLUMNS)}")
    return value


def _is_header(cells: list[str]) -> bool:
    """Whether the cells are names of columns, of a word each or those of ``write_scores``; a prompt may begin with
    "Question, " as well."""
    return _key(cells) is not None and all(len(cell.split()) <= 1 or cell in COLUMNS for cell in cells)


def _from_csv(text: str, name: str) -> list[str]:
    try:
        reader = csv.reader(io.StringIO(text), strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise UserError(
            f"{name}: not well-formed CSV ({error}). Put texts with commas or line breaks in quotes."
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
    header = rows[0][1]
    column = header.index(key)
    for line, row in rows[1:]:
        if len(row) <= column:
            raise UserError(f"{name}, line {line}: no column {key!r} in it")
        if len(row) > len(header):
            raise UserError(f"{name}, line {line}: more columns than the header has. Put texts with commas in quotes.")
    return [row[column] for _, row in rows[1:]]


def score_row(score: Score) -> list[Any]:
    """The values of COLUMNS."""
    like = score.similarity
    similarities = [round(like.toxic, 3), round(like.seemingly_toxic, 3)] if like else [None, None]
    return [score.prompt, score.verdict, round(score.refusal_probability, 3), *similarities]


def write_scores(scores: list[Score], folder: Path) -> Path:
    """A CSV file of COLUMNS and the answers in ``folder``, where only the newest files are kept. A text that begins as
    a formula does gets an apostrophe before it."""
    for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[: 1 - KEPT_FILES]:
        old.unlink(missing_ok=True)
    path = folder / f"scores-{uuid.uuid4().hex[:8]}.csv"
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, "answer"])
        writer.writerows(map(_no_formula, [*score_row(score), score.answer]) for score in scores)
    return path


def _no_formula(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(FORMULA) else cell
