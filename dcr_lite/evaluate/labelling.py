"""Judges a file of answers: the same rows with verdict and score: ``dcr-lite judge``."""

import sys
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Fields, field_error, parse_jsonl, read_bytes
from dcr_lite.errors import UserError
from dcr_lite.files import jsonl, write_jsonl
from dcr_lite.measure.judge import is_refusal, opening_match, refusal_score, string_match
from dcr_lite.measure.kinds import kind_of

STANDARD = "-"  # the name of standard input and output


def label_answers(path: str, literature: bool = False) -> list[dict[str, Any]]:
    """The rows {prompt, response, ...} of a JSON Lines file, or of standard input for "-", each with ``refused`` (true
    or false) and ``score`` (0 to 1), where there is a prompt also ``kind``, and with ``literature`` also the two string
    matches. Other fields are kept.

    Raises UserError with file and line where a response is missing or not a text.
    """
    if path == STANDARD:
        rows = parse_jsonl(sys.stdin.buffer.read(), "standard input", _judged)
    else:
        rows = parse_jsonl(read_bytes(Path(path)), path, _judged)
    if literature:
        for row in rows:
            row["string_match"] = string_match(row["response"])
            row["opening_match"] = opening_match(row["response"])
    return rows


def _judged(fields: Fields, place: str) -> dict[str, Any]:
    response = fields.get("response")
    if not isinstance(response, str):
        raise field_error(fields, "response", place)
    refused, prompt = is_refusal(response), fields.get("prompt")
    kind = {"kind": kind_of(prompt, response, refused)} if isinstance(prompt, str) else {}
    return {**fields, "refused": refused, **kind, "score": round(refusal_score(response), 4)}


def write_rows(rows: list[dict[str, Any]], path: str) -> None:
    """Write JSON Lines to a file, whole or absent, or to standard output for "-", with lone surrogates escaped. Raises
    UserError for a file that cannot be written."""
    if path == STANDARD:
        sys.stdout.buffer.write(jsonl(rows).encode("utf-8", "backslashreplace"))
        return
    try:
        write_jsonl(rows, Path(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Choose another --out.") from None
