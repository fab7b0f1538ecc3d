"""A file of answers, judged: the same rows with the verdict and its score added."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import parse_jsonl
from dcr_lite.errors import UserError
from dcr_lite.measure.judge import is_refusal, opening_match, refusal_score, string_match

STANDARD = "-"  # the name of standard input and output


def read_bytes(path: str) -> bytes:
    """The content of a file, or of standard input for "-". Raises UserError naming it."""
    if path == STANDARD:
        return sys.stdin.buffer.read()
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file. Give JSON Lines of {{prompt, response}}, or - to read from a pipe."
        ) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def label_answers(raw: bytes, name: str, literature: bool = False) -> list[dict[str, Any]]:
    """The rows {prompt, response, ...} of JSON Lines, each with ``refused`` (true | false) and ``score`` (0 to 1)
    added, and with ``literature`` the two string matches. Other fields stay; an empty answer refuses nothing.

    Raises UserError naming file and line where a response is missing or is no text.
    """

    def parse(fields: dict[str, object], place: str) -> dict[str, Any]:
        response = fields.get("response")
        if not isinstance(response, str):
            what = "is not a text" if "response" in fields else "is missing"
            raise UserError(f'{place}: field "response" {what}. Found: {", ".join(map(str, fields)) or "no fields"}.')
        judged: dict[str, Any] = {**fields, "refused": is_refusal(response), "score": round(refusal_score(response), 4)}
        if literature:
            judged |= {"string_match": string_match(response), "opening_match": opening_match(response)}
        return judged

    return parse_jsonl(raw, name, parse)


def write_rows(rows: Iterable[dict[str, Any]], path: str) -> None:
    """JSON Lines into a file, whole or absent, or to standard output for "-". Raises UserError where it cannot be
    written."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path == STANDARD:
        sys.stdout.write(text)
        return
    target = Path(path)
    partial = target.with_name(target.name + ".partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}). Choose another --out.") from None
