"""Refusal rates and discernment of one model's answers by each of several judges."""

from collections.abc import Sequence
from typing import Any

from dcr_lite.judges.interface import Exchange, verdict
from dcr_lite.judges.judging import Scores
from dcr_lite.measure.answers import Measured, discernment_intervals, method_result
from dcr_lite.measure.kinds import kind_of


def exchanges(measured: Sequence[Measured]) -> list[Exchange]:
    """The prompts and answers, as judges read them."""
    return [Exchange(row["prompt"], row["response"]) for row in measured]


def measured_by(scores: Sequence[float], measured: Sequence[Measured]) -> list[Measured]:
    """The answers with the verdicts of the judge that gave these scores, and the kinds that go with them; those without
    a verdict are left out."""
    rows = []
    for row, score in zip(measured, scores, strict=True):
        if (refused := verdict(score)) is not None:
            rows.append({**row, "refused": refused, "kind": kind_of(row["prompt"], row["response"], refused)})
    return rows


def rates_by_judge(scores: Scores, measured: Sequence[Measured]) -> list[dict[str, Any]]:
    """For each judge {name, without_verdict, sets, overall, discernment}: ``method_result`` over the answers on which
    it gave a verdict, ``discernment`` with intervals; and how many those without one are."""
    found = []
    for name, given in scores.items():
        rows = measured_by(given, measured)
        result = method_result(rows) | {"discernment": discernment_intervals(rows)}
        found.append({"name": name, "without_verdict": len(measured) - len(rows), **result})
    return found
