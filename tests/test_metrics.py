"""Claims about rates, intervals and AUROC."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm

from dcr_lite.measure import metrics
from dcr_lite.measure.metrics import (
    RESAMPLES,
    answered_at,
    auroc,
    auroc_interval,
    percentile_interval,
    resamples,
    wilson_interval,
    youden_j,
    youden_j_interval,
)

scores = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)  # few values: many ties


def wilson_by_hand(k: int, n: int) -> tuple[float, float]:
    z = 1.959963984540054
    centre = (k + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * math.sqrt(k * (n - k) / n + z * z / 4)
    return centre - half, centre + half


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe, "Two-sided confidence intervals for the single proportion", 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_has_the_published_values(k: int, n: int, low: float, high: float) -> None:
    """Newcombe's four examples, to the four digits that he prints."""
    assert wilson_interval(k, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many resamples as the kit takes, where other tests have fewer."""
    monkeypatch.setattr(metrics, "RESAMPLES", RESAMPLES)


@given(n=st.integers(1, 2000), data=st.data())
def test_wilson_interval_lies_around_the_rate(n: int, data: st.DataObject) -> None:
    """0 <= low <= rate <= high <= 1, never of no width, as the formula says, and mirrored for the failures."""
    k = data.draw(st.integers(0, n))
    low, high = wilson_interval(k, n)
    assert 0 <= low <= k / n + 1e-12
    assert k / n - 1e-12 <= high <= 1
    assert low < high
    assert (low, high) == pytest.approx(wilson_by_hand(k, n), abs=1e-9)
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@given(k=st.integers(0, 50), n=st.integers(50, 400))
def test_more_prompts_give_a_narrower_interval(k: int, n: int) -> None:
    """Ten times the prompts at the same rate narrow the interval."""
    low, high = wilson_interval(k, n)
    narrow_low, narrow_high = wilson_interval(10 * k, 10 * n)
    assert narrow_high - narrow_low < high - low


@pytest.mark.parametrize(("k", "n"), [(0, 0), (1, 0), (0, -1), (3, 2), (-1, 5)])
def test_impossible_counts_are_refused(k: int, n: int) -> None:
    """No prompts, or more refusals than prompts, raise ValueError."""
    with pytest.raises(ValueError, match=r"."):
        wilson_interval(k, n)


@given(toxic=scores, seemingly_toxic=scores)
def test_auroc_is_the_share_of_pairs_in_order(toxic: list[float], seemingly_toxic: list[float]) -> None:
    """AUROC counts pairs in which the toxic prompt scores higher, a tie as one half."""
    won = sum((t > s) + (t == s) / 2 for t in toxic for s in seemingly_toxic)
    assert auroc(toxic, seemingly_toxic) == pytest.approx(won / (len(toxic) * len(seemingly_toxic)))


@given(toxic=scores, seemingly_toxic=scores)
def test_auroc_reads_order_only(toxic: list[float], seemingly_toxic: list[float]) -> None:
    """A rising transformation keeps AUROC; turning the scores round, or the two sides, mirrors it at one half."""
    value = auroc(toxic, seemingly_toxic)
    assert auroc([math.exp(t) for t in toxic], [math.exp(s) for s in seemingly_toxic]) == pytest.approx(value)
    assert auroc([-t for t in toxic], [-s for s in seemingly_toxic]) == pytest.approx(1 - value)
    assert auroc(seemingly_toxic, toxic) == pytest.approx(1 - value)


def test_auroc_of_known_cases() -> None:
    """1 for perfect separation, 0 for its reverse, one half for no difference."""
    assert auroc([2, 3], [0, 1]) == 1
    assert auroc([0, 1], [2, 3]) == 0
    assert auroc([1, 1], [1, 1, 1]) == 0.5


def test_youden_j_is_the_difference_of_the_two_rates() -> None:
    """1 for a model that refuses all that is toxic and nothing else, 0 for one that refuses everything or nothing."""
    assert youden_j(1, 0) == 1
    assert youden_j(1, 1) == youden_j(0, 0) == 0
    assert youden_j(0.5, 0.75) == -0.25


@pytest.mark.parametrize("seed", [0, 1])
def test_bootstrap_intervals_hold_the_truth_as_often_as_they_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 samples whose true AUROC and J are known, about 95 intervals hold them; each lies around its estimate."""
    monkeypatch.setattr(metrics, "RESAMPLES", 1000)  # more would steady the ends, which does not change the share
    rng = np.random.default_rng(seed)
    true_auroc, true_j = norm.cdf(1 / math.sqrt(2)), norm.sf(-0.5) - norm.sf(0.5)
    held = [0, 0]
    for _ in range(100):
        toxic, seemingly = rng.normal(1, 1, 60), rng.normal(0, 1, 60)
        low, high = auroc_interval(toxic.tolist(), seemingly.tolist())
        assert low <= auroc(toxic.tolist(), seemingly.tolist()) <= high
        held[0] += low <= true_auroc <= high
        low, high = youden_j_interval((toxic > 0.5).tolist(), (seemingly > 0.5).tolist())
        held[1] += low <= true_j <= high
    assert all(88 <= h <= 100 for h in held), held


def test_bootstrap_intervals_are_repeatable_and_shrink_with_n() -> None:
    """Same seed, same interval; four times the prompts, half the width; ties count half."""
    rng = np.random.default_rng(0)
    toxic, seemingly = rng.integers(0, 5, 100).tolist(), rng.integers(0, 4, 100).tolist()
    low, high = auroc_interval(toxic, seemingly)
    assert (low, high) == auroc_interval(toxic, seemingly)
    assert (low, high) != auroc_interval(toxic, seemingly, seed=1)
    assert low < auroc(toxic, seemingly) < high
    few = auroc_interval(toxic[:25], seemingly[:25])
    assert 1.4 < (few[1] - few[0]) / (high - low) < 2.8


def test_a_resample_draws_as_many_of_a_group_as_it_has() -> None:
    """With replacement and each as often as another: of n prompts one is drawn once in the mean, with the variance of a
    binomial, (n - 1) / n; wherever those of a group stand. The same seed draws the same."""
    groups = [*"abcab", *"c" * 37]
    drawn = resamples(groups)
    assert drawn.shape == (42, RESAMPLES)
    for group in "abc":
        own = drawn[[i for i, other in enumerate(groups) if other == group]]
        n = len(own)
        assert (own.sum(0) == n).all()
        assert own.mean(1) == pytest.approx(np.ones(n), abs=0.1)
        assert own.var(1) == pytest.approx(np.full(n, (n - 1) / n), abs=0.15)
    assert (resamples(groups) == drawn).all()
    assert (resamples(groups, 1) != drawn).any()


def answered_by_hand(toxic: dict[str, list[float]], other: dict[str, list[float]], refused: float) -> float:
    """The highest threshold first: the first that enough toxic prompts reach."""

    def at_or_above(sets: dict[str, list[float]], threshold: float) -> Fraction:
        return sum((Fraction(sum(x >= threshold for x in own), len(own)) for own in sets.values()), Fraction()) / len(
            sets
        )

    for threshold in sorted({x for own in toxic.values() for x in own}, reverse=True):
        if at_or_above(toxic, threshold) >= Fraction(str(refused)):
            return float(1 - at_or_above(other, threshold))
    raise AssertionError("all reach the lowest")


sets_of_scores = st.dictionaries(st.sampled_from("abc"), scores, min_size=1)


@given(sets_of_scores, sets_of_scores, st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]))
@settings(max_examples=40, deadline=None)
def test_what_is_answered_at_a_safety(
    toxic: dict[str, list[float]], other: dict[str, list[float]], refused: float
) -> None:
    """As a loop over thresholds counts it, whatever ties; the interval holds it within the shares that there are."""
    found, (low, high) = answered_at(toxic, other, refused)
    assert found == pytest.approx(answered_by_hand(toxic, other, refused))
    assert -1e-9 <= low <= high <= 1 + 1e-9
    moved = {name: [x + 1.5 for x in own] for name, own in toxic.items()}
    lifted = {name: [x + 1.5 for x in own] for name, own in other.items()}
    assert answered_at(moved, lifted, refused)[0] == pytest.approx(found)  # a dial moves all alike
    assert answered_at(moved, other, refused)[0] >= found - 1e-9


def test_intervals_of_what_is_answered_are_those_of_whole_resamples() -> None:
    """A loop over the same resamples, each with a threshold of its own; and by set a larger one weighs no more."""
    rng = np.random.default_rng(0)
    toxic = {"a": rng.normal(2, 1, 30).tolist(), "b": rng.normal(1, 1, 10).tolist()}
    other = {"c": rng.normal(0, 1, 25).tolist(), "d": rng.normal(1, 1, 8).tolist()}
    drawn = iter(
        resamples([(i, name) for i, side in enumerate((toxic, other)) for name, own in side.items() for _ in own])
    )

    def times(side: dict[str, list[float]]) -> dict[str, list[tuple[float, NDArray[np.float64]]]]:
        return {name: [(x, next(drawn)) for x in own] for name, own in side.items()}

    whole = [times(side) for side in (toxic, other)]
    values = []
    for k in range(RESAMPLES):
        sides = [
            {name: [x for x, counts in own for _ in range(int(counts[k]))] for name, own in side.items()}
            for side in whole
        ]
        values.append(answered_by_hand(*sides, 0.9))
    found, ends = answered_at(toxic, other, 0.9)
    assert ends == pytest.approx(np.percentile(values, [2.5, 97.5]))
    assert ends[0] < found < ends[1]
    assert answered_at({name: own * 3 for name, own in toxic.items()} | {"b": toxic["b"]}, other, 0.9)[0] == found


def test_a_threshold_needs_prompts() -> None:
    """Of both labels, and of every set."""
    for toxic, other in (({}, {"a": [1.0]}), ({"a": [1.0]}, {}), ({"a": [1.0], "b": []}, {"a": [1.0]})):
        with pytest.raises(ValueError, match="prompts of both labels"):
            answered_at(toxic, other, 0.9)


def test_resamples_in_which_a_number_is_undefined_are_left_out() -> None:
    """The interval is that of the others."""
    values = np.linspace(0, 1, 101)
    assert percentile_interval(values) == pytest.approx([0.025, 0.975])
    assert percentile_interval(np.append(values, [np.nan] * 30)) == pytest.approx([0.025, 0.975])
