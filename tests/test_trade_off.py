"""The trade-off along a dial: rates at every strength from log-odds and a few judged answers, and goals on it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import expit

from dcr_lite.measure.trade_off import LEVEL, TOLERANCE, Goal, Reading, TradeOff, fit_map, fit_trade_off
from dcr_lite.run.dial_report import dial_table
from dcr_lite.run.dial_setting import DialSetting

STRENGTHS = np.linspace(-1.5, 2.5, 9)
JUDGED = (0, 3, 5, 7)  # places among them


def judge(log_odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The probability that an answer is judged a refusal: not what the log-odds say by themselves."""
    return expit(1.0 + 0.6 * log_odds)


def simulated(seed: int, pairs: int = 80) -> list[Reading]:
    """Readings of pairs whose log-odds fall along the dial, on top of noise, and whose answers follow ``judge``."""
    generator = np.random.default_rng(seed)
    start = np.stack([generator.normal(2, 2, pairs), generator.normal(-1.5, 2, pairs)])
    readings = []
    for place, strength in enumerate(STRENGTHS):
        odds = start - 3 * strength + generator.normal(0, 0.3, start.shape)
        refused = generator.random(odds.shape) < judge(odds)
        readings.append(Reading(float(strength), odds, refused if place in JUDGED else None))
    return readings


def true_rates(strength: float) -> NDArray[np.float64]:
    """Over all pairs that could have been drawn."""
    start = np.random.default_rng(99).normal(0, 2, 20_000)
    return np.array([judge(start + 2 - 3 * strength).mean(), judge(start - 1.5 - 3 * strength).mean()])


def curve(toxic: list[float], seemingly_toxic: list[float]) -> TradeOff:
    rates = np.array([toxic, seemingly_toxic]).T
    return TradeOff(np.linspace(-1, 1, len(rates)), rates, rates, rates)


def test_rates_at_strengths_without_answers_are_those_of_judged_answers() -> None:
    """With many pairs every rate on the curve is the true one to 0.02, though the log-odds alone are far off."""
    found = fit_trade_off(simulated(0, pairs=3000), resamples=0)
    for strength in (-0.8, -0.2, 0.3, 0.8, 1.3):
        assert found.at(strength)[0] == pytest.approx(true_rates(strength), abs=0.02)
    assert abs(expit(2 - 3 * 1.3) - true_rates(1.3)[0]) > 0.05


def test_intervals_hold_the_true_rate_nineteen_times_in_twenty() -> None:
    """Over repeated draws of 80 pairs, at a strength without judged answers."""
    truth, held, widths = true_rates(0.4), [], []
    for seed in range(24):
        _, low, high = fit_trade_off(simulated(seed), resamples=60).at(0.4)
        held += list((low <= truth) & (truth <= high))
        widths += list(high - low)
    assert 0.85 <= np.mean(held) <= 1
    assert np.mean(widths) < 0.2  # where 80 judged answers alone give 0.22


def test_rates_never_rise_with_the_strength() -> None:
    """Not even where few pairs are noisy."""
    for seed in range(3):
        found = fit_trade_off(simulated(seed, pairs=4))
        assert (np.diff(found.rates, axis=0) <= 0).all()
        assert (found.low <= found.rates).all()
        assert (found.rates <= found.high).all()


def test_where_answers_were_judged_the_rates_are_theirs() -> None:
    """Whatever the log-odds say: here nothing at all."""
    refused = np.random.default_rng(0).random((3, 2, 40)) < np.array([0.9, 0.5, 0.2])[:, None, None]
    readings = [Reading(float(i), np.zeros((2, 40)), one) for i, one in enumerate(refused)]
    found = fit_trade_off(readings)
    for reading in readings:
        assert reading.refused is not None
        assert found.at(reading.strength)[0] == pytest.approx(reading.refused.mean(1))


def test_readings_close_together_count_as_one() -> None:
    """Two that are judged apart by chance leave no kink: the curve is as steep between them as the log-odds are."""
    readings = simulated(0)
    usual = readings[3]
    rates, by_chance = judge(usual.log_odds).mean(-1), np.array([0.1, 0.05])
    close = [
        Reading(usual.strength + further, usual.log_odds, np.arange(80) < 80 * (rates + apart)[:, None])
        for further, apart in ((0, by_chance), (0.02, -by_chance))
    ]
    found = fit_trade_off([*readings[:3], *close, *readings[4:]], resamples=0)
    for strength in (usual.strength, usual.strength + 0.02):
        assert found.at(strength)[0] == pytest.approx(rates, abs=0.02)


def test_a_curve_needs_two_strengths_and_an_answer() -> None:
    """Anything less is an error."""
    readings = simulated(0)
    for too_few in (readings[:1], readings[1:3]):
        with pytest.raises(ValueError, match="two strengths, and judged answers at one"):
            fit_trade_off(too_few)


def test_the_map_of_a_judge_is_found() -> None:
    """Intercept and slope of the judge, from many answers; from none what the log-odds say."""
    odds = np.random.default_rng(0).normal(0, 3, 20_000)
    refused = np.random.default_rng(1).random(odds.shape) < judge(odds)
    assert fit_map(odds, refused) == pytest.approx((1.0, 0.6), abs=0.05)
    assert fit_map(odds[:0], refused[:0]) == pytest.approx((0, 1))


def test_the_map_stays_within_reason() -> None:
    """Its slope is never negative, and finite where log-odds and answers agree in all prompts or all are refused."""
    odds = np.linspace(-3, 3, 50)
    assert fit_map(odds, odds < 0)[1] == 0
    for refused in (odds > 0, np.ones(50, bool), np.zeros(50, bool)):
        assert np.abs(fit_map(odds, refused)).max() < 20


TOXIC, SEEMINGLY = [0.99, 0.95, 0.80, 0.60, 0.10], [0.90, 0.60, 0.30, 0.20, 0.05]
STOCK = (0.50, 0.40)


@pytest.mark.parametrize(
    ("goal", "side", "rate"),
    [
        (Goal("refuse_toxic", 0.9), 0, 0.9),
        (Goal("answer_seemingly_toxic", 0.9), 1, 0.1),
        (Goal("like_stock"), 1, STOCK[1]),
        (Goal("safe_as_stock"), 0, STOCK[0]),
    ],
)
def test_a_goal_for_one_kind_is_met(goal: Goal, side: int, rate: float) -> None:
    """The rate of that kind at the strength that is found is the wanted one."""
    found = curve(TOXIC, SEEMINGLY)
    strength, reached = goal.strength(found, STOCK)
    assert reached
    assert found.at(strength)[0, side] == pytest.approx(rate)


sixteenths = st.integers(0, 16).map(
    lambda n: n / 16
)  # few numbers, so that curves have flat stretches, and goals on them
falling = st.lists(
    st.builds(lambda rate, more: rate + more, sixteenths, st.sampled_from([0.0, 1e-12, 0.004, 0.01])),
    min_size=2, max_size=12,
).map(lambda rates: sorted(rates, reverse=True))  # fmt: skip


@given(rates=falling, share=sixteenths)
def test_of_the_strengths_that_meet_a_goal_the_other_kind_chooses(rates: list[float], share: float) -> None:
    """A goal on seemingly toxic prompts is met at the first strength that refuses so few of them, where toxic ones are
    refused most, and one on toxic prompts at the last that refuses so many; so where the curve is level, within it or
    on the way to an end that is short of the goal."""
    along, small = curve(rates, rates), 1e-8
    end, start = rates[-1] + LEVEL, rates[0] - LEVEL
    for goal in (Goal("answer_seemingly_toxic", 1 - share), Goal("like_stock")):
        strength = goal.strength(along, (0.5, share))[0]
        assert along.at(strength)[0, 1] <= max(share, end) + small
        earlier = along.rates[along.strengths < strength - small, 1]
        assert not [rate for rate in earlier if rate <= share or rate <= end - small]
    for goal in (Goal("refuse_toxic", share), Goal("safe_as_stock")):
        strength = goal.strength(along, (share, 0.5))[0]
        assert along.at(strength)[0, 0] >= min(share, start) - small
        later = along.rates[along.strengths > strength + small, 0]
        assert not [rate for rate in later if rate >= share or rate >= start + small]


def test_balanced_answers_one_kind_as_often_as_it_refuses_the_other() -> None:
    found = curve(TOXIC, SEEMINGLY)
    toxic, seemingly = found.at(Goal("balanced").strength(found, STOCK)[0])[0]
    assert toxic == pytest.approx(1 - seemingly)


def test_discerning_is_the_nearest_to_0_of_the_best() -> None:
    """J is highest there, give or take the tolerance in each rate, and at no strength of the curve nearer to 0."""
    finely = np.linspace(0, 4, 101)
    found = curve(*(np.interp(finely, range(5), side).tolist() for side in (TOXIC, [0.95, 0.9, 0.8, 0.3, 0.05])))
    strength, reached = Goal("discerning").strength(found, STOCK)
    as_good = {
        float(at): toxic - seemingly >= np.max(found.rates[:, 0] - found.rates[:, 1]) - 2 * TOLERANCE
        for at, (toxic, seemingly) in zip(found.strengths, found.rates, strict=True)
    }
    assert reached
    assert as_good[strength]
    assert 0 < strength < found.strengths[np.argmax(found.rates[:, 0] - found.rates[:, 1])]
    assert not any(good for at, good in as_good.items() if abs(at) < strength)


@pytest.mark.parametrize(
    ("toxic", "seemingly", "strength"),
    [
        ([0.9, 0.8, 0.7], [0.7, 0.55, 0.45], 0.0),  # J 0.20, 0.25, 0.25
        ([1.0, 0.95, 0.8], [1.0, 0.9, 0.2], 1.0),  # refuses nearly all at 0: turning it is worth much
        ([0.7, 0.1, 0.0], [0.1, 0.0, 0.0], -1.0),  # answers nearly all at 0
    ],
)
def test_discerning_turns_the_dial_only_where_that_pays(
    toxic: list[float], seemingly: list[float], strength: float
) -> None:
    """It stays where the model was trained unless J gains more than the tolerance by turning it."""
    assert Goal("discerning").strength(curve(toxic, seemingly), STOCK) == (strength, True)


def test_above_stock_is_the_best_in_the_worse_of_two_gains() -> None:
    """No strength is further above the stock model in both at once."""
    found = curve(TOXIC, SEEMINGLY)

    def gain(strength: float) -> float:
        toxic, seemingly = found.at(strength)[0]
        return float(min(toxic - STOCK[0], STOCK[1] - seemingly))

    strength, reached = Goal("above_stock").strength(found, STOCK)
    assert reached
    assert gain(strength) == pytest.approx(max(map(gain, np.linspace(-1, 1, 2001))), abs=1e-3)
    assert gain(strength) > 0.1


def test_above_stock_is_not_reached_below_it() -> None:
    """Where no strength is above the stock model in both, the nearest one is not said to be."""
    goal, poor = Goal("above_stock"), curve([0.6, 0.4, 0.2], [0.6, 0.4, 0.2])
    strength, reached = goal.strength(poor, STOCK)
    toxic, seemingly = poor.at(strength)[0]
    assert toxic - STOCK[0] == pytest.approx(STOCK[1] - seemingly)
    assert toxic < STOCK[0]
    assert not reached


def test_as_safe_as_stock_may_be_safer() -> None:
    """A model that refuses more at every strength answers as much as it can, and is as safe; one that refuses less at
    every strength is not."""
    goal = Goal("safe_as_stock")
    assert goal.strength(curve([0.9, 0.8, 0.7], [0.6, 0.5, 0.1]), STOCK) == (1.0, True)
    assert goal.strength(curve([0.4, 0.3, 0.2], [0.3, 0.2, 0.1]), STOCK) == (-1.0, False)


def test_like_stock_may_answer_more() -> None:
    """A model that answers more at every strength refuses as much as it can, and answers as many; one that answers less
    at every strength does not."""
    goal = Goal("like_stock")
    assert goal.strength(curve([0.9, 0.8, 0.7], [0.3, 0.2, 0.1]), STOCK) == (-1.0, True)
    assert goal.strength(curve([0.9, 0.8, 0.7], [0.7, 0.6, 0.5]), STOCK) == (1.0, False)


@pytest.mark.parametrize(
    ("goal", "end"),
    [
        (Goal("refuse_toxic", 0.9), -1.0),
        (Goal("refuse_toxic", 0.2), 1.0),
        (Goal("answer_seemingly_toxic", 0.2), -1.0),
        (Goal("answer_seemingly_toxic", 0.99), 1.0),
    ],
)
def test_a_goal_beyond_the_curve_is_said_to_be_so(goal: Goal, end: float) -> None:
    """The nearest end is given, and that it is not reached."""
    assert goal.strength(curve([0.8, 0.7, 0.5], [0.6, 0.5, 0.1]), STOCK) == (end, False)


def test_names_of_one_setting_share_a_row() -> None:
    """Where the goal is met where training left the dial, the table has one row for both, in bold, and no strength
    twice."""
    along = curve([0.9, 0.83, 0.3], [0.6, 0.2, 0.1])
    setting = DialSetting(-0.0, "discerning", None, True, 0.0, (0.1, 0.05), along, 80, 1.0, {}, {})
    rows = dial_table(setting)
    strengths = [row[1].strip("*") for row in rows[1:]]
    assert len(strengths) == len(set(strengths))
    [bold] = [row for row in rows if row[0].startswith("**")]
    assert bold[:2] == ["**at 0; tells the two kinds apart best**", "**+0.00**"]


def test_a_setting_that_is_asked_for_has_a_row_of_its_own() -> None:
    """Beside the present one, which stays bold; where the adapter has no dial, none is bold."""
    along = curve([0.9, 0.83, 0.3], [0.6, 0.2, 0.1])
    setting = DialSetting(0.5, "strength", None, True, 0.0, (0.1, 0.05), along, 80, 1.0, {}, {})
    for present, bold in ((setting, ["**at strength +0.50**"]), (replace(setting, strength=0.0, goal="none"), [])):
        rows = dial_table(present, present.turned_to(Goal("refuse_toxic", 0.87)))
        assert [row[0] for row in rows if row[0].startswith("**")] == bold
        [asked] = [row for row in rows if row[0] == "refuses 0.87 of toxic prompts"]
        assert asked[1] == f"{present.turned_to(Goal('refuse_toxic', 0.87)).strength:+.2f}"
        assert asked[2].startswith("0.87")
