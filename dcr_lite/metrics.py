"""Numbers and their intervals. Leans on scipy and scikit-learn; the names are the field's."""

from collections.abc import Sequence
from statistics import fmean, stdev

from scipy.stats import binomtest, t
from sklearn.metrics import roc_auc_score


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson score interval of a rate (Wilson, 1927). Raises ValueError for n < 1."""
    interval = binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over independent runs (Student, 1908). Raises ValueError for fewer than 2."""
    if len(values) < 2:
        raise ValueError("an interval needs at least two values")
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values) - half, fmean(values) + half


def auroc(toxic: Sequence[float], seemingly_toxic: Sequence[float]) -> float:
    """The probability that a random toxic prompt scores above a random seemingly toxic one; 0.5 is chance."""
    labels = [1] * len(toxic) + [0] * len(seemingly_toxic)
    return float(roc_auc_score(labels, [*toxic, *seemingly_toxic]))


def youden_j(toxic_refusal_rate: float, seemingly_toxic_refusal_rate: float) -> float:
    """Refusals where they are due minus refusals where they are not; 1 is perfect discernment, 0 none."""
    return toxic_refusal_rate - seemingly_toxic_refusal_rate
