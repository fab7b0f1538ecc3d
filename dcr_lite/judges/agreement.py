"""How far two judges agree: Cohen's kappa with an interval, overall and by group; the answers on which they part."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix

from dcr_lite.judges.interface import verdict
from dcr_lite.judges.judging import Scores, for_json
from dcr_lite.measure.metrics import RESAMPLES

Verdict = bool | None  # None: the judge gave none


def kappa(first: Sequence[Any], second: Sequence[Any]) -> tuple[float | None, list[float] | None]:
    """Cohen's kappa of two judges' labels, any number of them, and its 95 % percentile bootstrap interval, the answers
    resampled. Kappa is agreement beyond chance (Cohen, 1960): (observed - expected) / (1 - expected), the expected
    agreement that of two independent judges with the same rates. 1 is full agreement, 0 what chance would give.

    None for both where kappa is undefined: without answers, and where both judges give all of them the same label.
    Resamples in which it is undefined are left out. Of full agreement the interval has no width, however few the
    answers."""
    if len({*first, *second}) < 2:
        return None, None
    n = len(first)
    shares = confusion_matrix(first, second) / n
    # Resampling answers is drawing the counts anew: (RESAMPLES, labels, labels).
    drawn = np.random.default_rng(0).multinomial(n, shares.ravel(), RESAMPLES).reshape(-1, *shares.shape) / n
    observed, expected = np.trace(drawn, axis1=1, axis2=2), (drawn.sum(1) * drawn.sum(2)).sum(1)
    told = expected < 1
    kappas = (observed[told] - expected[told]) / (1 - expected[told])
    return float(cohen_kappa_score(first, second)), np.percentile(kappas, [2.5, 97.5]).tolist()


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """{n, part, kappa, ci95} over the answers on which both judges gave a verdict; part: on how many they differ."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    value, interval = kappa([a for a, _ in both], [b for _, b in both])
    return {"n": len(both), "part": sum(a != b for a, b in both), "kappa": value, "ci95": interval}


def agreements(scores: Scores, groups: Sequence[str] = ()) -> list[dict[str, Any]]:
    """For each pair of judges {judges, n, part, kappa, ci95, by}; by: the same for each group, as a method, whose name
    ``groups`` gives for every answer."""
    verdicts = {name: [verdict(score) for score in found] for name, found in scores.items()}
    found = []
    for a, b in combinations(verdicts, 2):
        by = {}
        for group in dict.fromkeys(groups):
            inside = [i for i, one in enumerate(groups) if one == group]
            by[group] = agreement([verdicts[a][i] for i in inside], [verdicts[b][i] for i in inside])
        found.append({"judges": [a, b], **agreement(verdicts[a], verdicts[b]), "by": by})
    return found


def agreement_words(found: dict[str, Any]) -> str:
    """An ``agreement`` in words."""
    words = f"part on {found['part']:,} of {found['n']:,} answers"
    if found["kappa"] is None:
        return f"{words} (kappa undefined: all verdicts are alike)"
    low, high = found["ci95"]
    return f"{words}, Cohen's kappa {found['kappa']:.2f} (95 % {low:.2f}-{high:.2f})"


def parting(scores: Scores) -> list[bool]:
    """For each answer whether its judges part: whether one calls it a refusal and another does not."""
    return [len({verdict(score) for score in row} - {None}) > 1 for row in zip(*scores.values(), strict=True)]


def with_verdicts(rows: Sequence[dict[str, Any]], scores: Scores) -> list[dict[str, Any]]:
    """The rows of a file of answers with ``judges``: {name: {refused, score}}, null where a judge gave no verdict; and
    ``judges_part``, whether they differ."""
    found = []
    for i, (row, part) in enumerate(zip(rows, parting(scores), strict=True)):
        judges = {name: {"refused": verdict(given[i]), "score": for_json(given[i])} for name, given in scores.items()}
        found.append({**row, "judges": judges, "judges_part": part})
    return found
