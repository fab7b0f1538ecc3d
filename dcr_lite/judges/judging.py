"""Answers judged by several judges, a few at a time: what is judged is kept, so that a stopped judging goes on."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl, write_jsonl
from dcr_lite.judges.interface import Exchange, Judge
from dcr_lite.model.thinking import answer_of

DIGITS = 4  # of a score, everywhere: what a file says of an answer, and what its verdict is of, is one number
CHUNK = 64  # rows between two savings: some seconds of a fast endpoint, four batches of a classifier

Scores = dict[str, list[float]]  # by the judge's name: the score of each row, NaN where there is no verdict


def judge_rows(
    judges: Sequence[Judge],
    rows: Sequence[Exchange],
    kept: Path | None = None,
    progress: Callable[[int], None] = lambda done: None,
    known: Callable[[int], None] | None = None,
) -> Scores:
    """The scores that each judge gives to each row, to DIGITS digits.

    kept: a file for what is judged, by digests of the texts and not by the texts; whoever has written the result
    removes it. None: nothing is kept. progress is told the rows that a judge has done, and known, or else progress, how
    many it had done before.

    Raises UserError where a judge gives no verdict on any row, and what the judges raise.
    """
    rows = [_as_read(row) for row in rows]
    store = _Store(kept)
    found: Scores = {}
    for judge in judges:
        keys = [_key(judge.name, row) for row in rows]
        todo = [i for i, key in enumerate(keys) if key not in store.scores]
        (known or progress)(len(rows) - len(todo))
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            scores = judge.scores([rows[i] for i in chunk])
            store.add({keys[i]: round(score, DIGITS) for i, score in zip(chunk, scores, strict=True)})
            progress(len(chunk))
        found[judge.name] = [store.scores[key] for key in keys]
        if rows and all(map(math.isnan, found[judge.name])):
            raise UserError(
                f"--judge {judge.name}: no verdict on any of {len(rows)} answers. It does not do what the question "
                "asks: choose a larger model."
            )
    return found


class _Store:
    """Scores by key, and the file that they are kept in."""

    def __init__(self, path: Path | None):
        self.path = path
        self.scores: dict[str, float] = {}
        if path and path.exists():
            rows = load_jsonl(path)
            self.scores = {row["key"]: math.nan if row["score"] is None else row["score"] for row in rows}
            write_jsonl(rows, path)  # without a last line that was cut off: more is written behind it

    def add(self, scores: dict[str, float]) -> None:
        """Keep further scores."""
        self.scores |= scores
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for key, score in scores.items():
                file.write(json.dumps({"key": key, "score": for_json(score)}) + "\n")


def _as_read(row: Exchange) -> Exchange:
    """The row without the model's thoughts before its answer, and without halves of characters (lone surrogates), which
    neither tokenizers nor requests take."""
    return Exchange(*(text.encode("utf-8", "replace").decode() for text in (row.prompt, answer_of(row.response))))


def _key(name: str, row: Exchange) -> str:
    return hashlib.sha256(json.dumps([name, row.prompt, row.response]).encode()).hexdigest()


def for_json(score: float) -> float | None:
    """A score as files hold it: null where there is no verdict."""
    return None if math.isnan(score) else score
