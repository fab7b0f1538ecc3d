"""Judges a file of answers: the same rows with verdicts and scores: ``dcr-lite judge``."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Fields, field_error, parse_jsonl, read_bytes
from dcr_lite.errors import UserError
from dcr_lite.files import beside, jsonl, write_jsonl
from dcr_lite.judges.agreement import agreement_words, agreements, with_verdicts
from dcr_lite.judges.interface import Exchange, short, verdict
from dcr_lite.judges.judging import Scores, for_json, judge_rows
from dcr_lite.judges.opening import DEFAULT, CueJudge, open_judges
from dcr_lite.measure.judge import opening_match, string_match
from dcr_lite.measure.kinds import kind_of
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.run.terminal import progress_bar

STANDARD = "-"  # the name of standard input and output


def judge_file(
    path: str, out: str, literature: bool = False, names: Sequence[str] = DEFAULT, key_variable: str | None = None
) -> list[str]:
    """Judge a file of answers, write the labelled rows to ``out`` and return what the terminal shows: ``summary``.

    What is judged is kept beside ``out`` until that is written, so that the same command goes on; with "-" for standard
    output it is not. Arguments and errors as for ``label_answers``.
    """
    kept = None if out == STANDARD or set(names) == {CueJudge.name} else beside(Path(out), ".judging.jsonl")
    rows, scores = label_answers(path, literature, names, key_variable, kept)
    write_rows(rows, out)
    if kept:
        kept.unlink(missing_ok=True)
    return summary(rows, scores)


def label_answers(
    path: str,
    literature: bool = False,
    names: Sequence[str] = DEFAULT,
    key_variable: str | None = None,
    kept: Path | None = None,
) -> tuple[list[dict[str, Any]], Scores]:
    """The rows {prompt, response, ...} of a JSON Lines file, or of standard input for "-", and the judges' scores.

    Each row has ``refused`` (true or false) and ``score`` (0 to 1) of the first judge, null where it gives no verdict,
    and the ``kind`` that goes with it where there is a prompt; of several judges also ``judges`` and ``judges_part``,
    see ``with_verdicts``; with ``literature`` the two string matches. Other fields are kept. names, key_variable: as
    ``open_judges`` takes them. kept: as for ``judge_rows``.

    Raises UserError with file and line where a response, or a prompt that a judge has to see, is missing or no text.
    """
    rows = _read(path, ("response",) if set(names) == {CueJudge.name} else ("prompt", "response"))
    judges = open_judges(names, key_variable=key_variable)
    asked = [Exchange(str(row.get("prompt", "")), row["response"]) for row in rows]
    if kept:
        with progress_bar("Judging", len(rows) * len(judges)) as shown:
            scores = judge_rows(judges, asked, kept, shown.advance, shown.skip)
    else:
        scores = judge_rows(judges, asked)
    first = scores[judges[0].name]
    rows = [_labelled(row, score) for row, score in zip(rows, first, strict=True)]
    if len(judges) > 1:
        rows = with_verdicts(rows, scores)
    if literature:
        for row in rows:
            row["string_match"] = string_match(row["response"])
            row["opening_match"] = opening_match(row["response"])
    return rows, scores


def _labelled(row: dict[str, Any], score: float) -> dict[str, Any]:
    refused, prompt = verdict(score), row.get("prompt")
    kind: dict[str, Any] = {"kind": None} if "kind" in row else {}  # an older one may contradict the verdict
    if isinstance(prompt, str) and refused is not None:
        kind["kind"] = kind_of(prompt, row["response"], refused)
    return {**row, "refused": refused, **kind, "score": for_json(score)}


def _read(path: str, needed: Sequence[str]) -> list[dict[str, Any]]:
    def parse(fields: Fields, place: str) -> dict[str, Any]:
        for key in needed:
            if not isinstance(fields.get(key), str):
                raise field_error(fields, key, place)
        return dict(fields)

    if path == STANDARD:
        return parse_jsonl(sys.stdin.buffer.read(), "standard input", parse)
    return parse_jsonl(read_bytes(Path(path)), path, parse)


def summary(rows: Sequence[dict[str, Any]], scores: Scores) -> list[str]:
    """Lines for the terminal: the refusals that each judge sees, and how far each two agree, also by ``method`` where
    the rows have that field."""
    lines = []
    for name, given in scores.items():
        verdicts = [found for score in given if (found := verdict(score)) is not None]
        low, high = wilson_interval(sum(verdicts), len(verdicts))
        who = f"{short(name)}: " if len(scores) > 1 else ""
        none = f"; no verdict on {len(given) - len(verdicts):,} more" if len(verdicts) < len(given) else ""
        lines.append(
            f"{who}{len(verdicts):,} answers, {sum(verdicts):,} refusals: {sum(verdicts) / len(verdicts):.3f} "
            f"(95 % {low:.3f}-{high:.3f}){none}"
        )
    methods = [str(row["method"]) for row in rows if "method" in row]
    for pair in agreements(scores, methods if len(methods) == len(rows) else ()):
        lines.append(f"{' and '.join(map(short, pair['judges']))} {agreement_words(pair)}")
        lines += [f"  {method}: {agreement_words(found)}" for method, found in pair["by"].items()]
    return lines


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
