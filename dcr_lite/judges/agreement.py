"""How far two judges agree: Cohen's kappa with an interval, overall and by group; the answers on which they part."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcr_lite.judges.interface import verdict
from dcr_lite.judges.judging import Scores, for_json
from dcr_lite.measure.metrics import RESAMPLES

Verdict = bool | None  # None: the judge gave none


def cohens_kappa(first: Sequence[bool], second: Sequence[bool]) -> float | None:
    """Agreement beyond chance (Cohen, 1960): (observed - expected) / (1 - expected), the expected agreement that of two
    independent judges with the same rates. 1 is full agreement, 0 what chance would give. None where it is undefined:
    without answers, and where both judges give all of them the same verdict."""
    return _number(float(_kappa(_counts(first, second)[None])[0]))


def kappa_interval(first: Sequence[bool], second: Sequence[bool], seed: int = 0) -> tuple[float, float] | None:
    """The 95 % percentile bootstrap interval of kappa, the answers resampled; None where kappa is undefined. Resamples
    in which it is undefined are left out. Of full agreement the interval has no width, however few the answers."""
    counts = _counts(first, second)
    if cohens_kappa(first, second) is None:
        return None
    n = int(counts.sum())
    # Resampling answers is drawing the four counts anew.
    drawn = _kappa(np.random.default_rng(seed).multinomial(n, counts / n, RESAMPLES).astype(float))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(low), float(high)


def _counts(first: Sequence[bool], second: Sequence[bool]) -> NDArray[np.float64]:
    """How many answers (neither, the second alone, the first alone, both) call refusals: (4,)"""
    cells = [2 * a + b for a, b in zip(first, second, strict=True)]
    return np.bincount(np.asarray(cells, int), minlength=4).astype(float)


def _kappa(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kappa of each row of counts (n, 4): (n,), NaN where it is undefined."""
    with np.errstate(invalid="ignore", divide="ignore"):
        neither, second, first, both = (counts / counts.sum(1, keepdims=True)).T
        rate, other = first + both, second + both
        expected = rate * other + (1 - rate) * (1 - other)
        # Rates of 0 or 1 are exact, so that an undefined kappa is 0 / 0 and nothing near it.
        return (neither + both - expected) / (1 - expected)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def agreement(first: Sequence[Verdict], second: Sequence[Verdict]) -> dict[str, Any]:
    """{n, part, kappa, ci95} over the answers on which both judges gave a verdict; part: on how many they differ."""
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    ours, theirs = [a for a, _ in both], [b for _, b in both]
    interval = kappa_interval(ours, theirs)
    return {
        "n": len(both),
        "part": sum(a != b for a, b in both),
        "kappa": cohens_kappa(ours, theirs),
        "ci95": None if interval is None else list(interval),
    }


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
