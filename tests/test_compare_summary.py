"""Claims about the numbers and tables of a comparison."""

from typing import Any

import numpy as np
import pytest

from dcr_lite.compare import paired
from dcr_lite.compare.report import notes_section
from dcr_lite.compare.summary import differences, frontier, notes, numbers_of, over_seeds
from dcr_lite.compare.tables import costs_table, differences_table, marked, methods_table, unranked_of
from dcr_lite.measure import metrics
from dcr_lite.measure.answers import method_result
from dcr_lite.measure.metrics import RESAMPLES, wilson_interval


def result(method: str, seed: int | None, compliance: float, safety: float) -> dict[str, Any]:
    numbers = {"compliance": compliance, "safety": safety, "j": compliance + safety - 1, "auroc": 0.5, "minutes": 2.0}
    intervals = {"compliance": [compliance - 0.1, compliance + 0.1]}
    return {"method": method, "strength": 1, "seed": seed, "numbers": numbers, "intervals": intervals, "note": ""}


RESULTS = [
    result("base", None, 1.0, 0.0),
    *(result("safety_sft", s, c, 0.8) for s, c in ((0, 0.2), (1, 0.3), (2, 0.4))),
    *(result("dcr", s, c, t) for s, c, t in ((0, 0.5, 0.8), (1, 0.6, 0.7), (2, 0.7, 0.9))),
]


def test_differences_are_taken_seed_by_seed() -> None:
    """A gain that is the same for every seed has no width, whatever the seeds do; the stock model stands for all. Bold
    is what excludes zero."""
    found = differences(RESULTS)
    assert found["safety_sft"]["compliance"]["mean"] == pytest.approx(0.3)
    assert found["safety_sft"]["compliance"]["ci95"] == pytest.approx([0.3, 0.3])
    low, high = found["safety_sft"]["safety"]["ci95"]
    assert low < 0 < high
    assert found["base"]["compliance"]["mean"] == pytest.approx(-0.4)
    assert found["base"]["compliance"]["n"] == 3
    text = differences_table(found)
    assert "**+0.30 (+0.30 to +0.30)**" in text
    assert "| +0.00 (-0.25 to +0.25) |" in text


def answered(seed: int, rates: dict[str, float], size: int = 1) -> list[dict[str, Any]]:
    """Random answers to the prompts of four sets, of which two have one label."""
    rng = np.random.default_rng(seed)
    sets = {"a": ("seemingly_toxic", 6), "b": ("seemingly_toxic", 12), "c": ("toxic", 9), "d": ("plain", 3)}
    return [
        {"source": name, "label": label, "refused": bool(rng.random() < rates[name]), "kind": "answer"}
        | {"refusal_log_odds": float(rng.integers(-3, 4))}
        for name, (label, n) in sets.items()
        for _ in range(n * size)
    ]


OURS, THEIRS = {"a": 0.1, "b": 0.3, "c": 0.9, "d": 0.0}, {"a": 0.3, "b": 0.4, "c": 0.6, "d": 0.5}  # refusal rates
PAIRED = ("compliance", "safety", "j", "auroc")
ONE_SEED = [result("scans", 0, 0.5, 0.5), result("dcr", 0, 0.6, 0.8)]


def numbers_of_rows(rows: list[dict[str, Any]]) -> dict[str, float]:
    return numbers_of(method_result(rows), (0.0, 0.0))[0]


def test_with_one_seed_the_interval_is_over_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each resample gives every number as the tables have it of the answers that were drawn, as often as they were.
    Answers kept have none; with several seeds it is over seeds as ever; the same answers have one of no width."""
    monkeypatch.setattr(metrics, "RESAMPLES", 30)
    ours, theirs = answered(0, OURS), answered(1, THEIRS)
    given = {"scans": theirs, "dcr": ours}
    one = [dict(one, numbers=one["numbers"] | {"kept_seemingly_toxic": 0.9}) for one in ONE_SEED]
    found = differences(one, lambda result: given[result["method"]])["scans"]
    apart = []
    for times in metrics.resamples([(row["label"], row["source"]) for row in ours]).T.astype(int):
        a, b = (numbers_of_rows(np.repeat(np.array(rows), times).tolist()) for rows in (ours, theirs))
        apart.append([a[key] - b[key] for key in PAIRED])
    for key, ends in zip(PAIRED, np.quantile(apart, [0.025, 0.975], axis=0).T, strict=True):
        assert found[key]["ci95"] == pytest.approx(ends.tolist()), key
    assert found["kept_seemingly_toxic"]["ci95"] is None
    assert differences(one)["scans"]["j"]["ci95"] is None
    same = differences(one, lambda result: ours)["scans"]
    assert all(same[key]["ci95"] == [0, 0] for key in PAIRED)
    assert differences(RESULTS, lambda result: ours) == differences(RESULTS)


def test_prompts_are_drawn_within_sets_and_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval is that of a bootstrap with draws of its own. It is narrower than the two numbers' own would make it
    where both refuse the same prompts."""
    monkeypatch.setattr(metrics, "RESAMPLES", RESAMPLES)
    ours, theirs = answered(0, OURS, 30), answered(0, THEIRS, 30)
    rng, means = np.random.default_rng(7), []
    for name in "ab":
        refused = np.array([[row["refused"] for row in rows if row["source"] == name] for rows in (ours, theirs)])
        n = refused.shape[1]
        means.append(refused[:, rng.integers(n, size=(RESAMPLES, n))].mean(-1))
    a, b = np.mean(means, 0)
    found = paired.paired_intervals(ours, theirs)["compliance"]
    assert found == pytest.approx(np.quantile(b - a, [0.025, 0.975]).tolist(), abs=0.01)
    alone = np.quantile(b - rng.permutation(a), [0.025, 0.975])
    assert np.ptp(found) < 0.8 * np.ptp(alone)


def test_a_single_prompt_has_no_interval() -> None:
    """Drawn again it is the same, so that a set of one prompt would make every difference look certain. Of an answer
    without a verdict nothing is known either; plain prompts are in none of the numbers."""
    ours, theirs = answered(0, OURS), answered(1, THEIRS)
    alone = [i for i, row in enumerate(ours) if row["source"] == "c"][1:]
    single, others = ([row for i, row in enumerate(rows) if i not in alone] for rows in (ours, theirs))
    assert paired.paired_intervals(single, others) == {}
    undecided = [row | {"refused": None} if i in alone else row for i, row in enumerate(theirs)]
    assert paired.paired_intervals(ours, undecided) == {}
    plain = [i for i, row in enumerate(ours) if row["label"] == "plain"][1:]
    some = ([row for i, row in enumerate(rows) if i not in plain] for rows in (ours, theirs))
    assert paired.paired_intervals(*some).keys() == set(PAIRED)
    by_method = {"dcr": single, "scans": others}
    found = differences(ONE_SEED, lambda one: by_method[one["method"]])
    assert all(value["ci95"] is None for value in found["scans"].values())
    assert "**" not in differences_table(found)


def test_a_resample_weighs_the_sets_and_answers_of_the_tables() -> None:
    """Where each prompt is drawn once, its numbers are those of the tables; of answers without a verdict too, which
    count for AUROC alone."""
    ours = answered(0, OURS)
    some = [row | {"refused": None if i % 4 == 0 else row["refused"]} for i, row in enumerate(ours)]
    for rows in (ours, some):
        found = paired._numbers(rows, np.ones((len(rows), 1)))
        expected = numbers_of_rows([row for row in rows if row["refused"] is not None])
        expected["auroc"] = numbers_of_rows(ours)["auroc"]
        assert {key: value.item() for key, value in found.items()} == pytest.approx({k: expected[k] for k in PAIRED})
    ends = paired.paired_intervals(some, answered(1, THEIRS))
    assert all(low < high for low, high in ends.values())


def test_a_seed_that_a_method_lacks_is_left_out() -> None:
    """As where it failed with that seed; without any in common there is no row."""
    found = differences([one for one in RESULTS if (one["method"], one["seed"]) != ("safety_sft", 1)])
    assert found["safety_sft"]["compliance"]["n"] == 2
    assert found["base"]["compliance"]["n"] == 3
    assert differences([dict(ONE_SEED[0], seed=7), ONE_SEED[1]]) == {}


def test_the_stock_model_is_best_where_it_refuses_by_itself() -> None:
    """As a chat model of which makers taught that; one that answers everything has the best compliance for nothing."""
    chat = [result("base", None, 1.0, 0.9), *RESULTS[1:]]
    assert (unranked_of(over_seeds(RESULTS)), unranked_of(over_seeds(chat))) == (["base"], [])
    lines = methods_table(over_seeds(chat), ["stock model", "safety SFT alone", "DCR"]).splitlines()
    assert lines[2] == "| stock model | **1.00 ±0.10** | **0.90** | **0.90** | **0.50** |"


def test_the_best_of_a_column_is_bold_and_never_an_unranked_model() -> None:
    """By the column's direction; ties are all best; a single value has the interval over its prompts, if any."""
    lines = methods_table(over_seeds(RESULTS), ["stock model", "safety SFT alone", "DCR"], ["base"]).splitlines()
    assert lines[0] == "|  | compliance, mean ↑ | safety ↑ | J ↑ | AUROC ↑ |"
    assert lines[2] == "| stock model | 1.00 ±0.10 | 0.00 | 0.00 | 0.50 |"
    assert lines[3].startswith("| safety SFT alone | 0.30 ±0.25 | **0.80 ±0.00** | 0.10 ±0.25 | **0.50 ±0.00** |")
    assert lines[4].startswith("| DCR | **0.60 ±0.25** | **0.80 ±0.25** | **0.40 ±")


def test_a_method_that_does_not_apply_is_never_best() -> None:
    """With any of its seeds, by its note, whatever its numbers: it stands in the tables with a title that says so,
    without bold, and is neither on the frontier nor in the way of others."""
    said = "not applicable: the model refuses 0.31 of plain prompts"
    unfit = [result("adacd", s, 1.0, 1.0) | {"note": said if s else ""} for s in (0, 1)]
    entries = over_seeds([*RESULTS, *unfit])
    assert [entry["applies"] for entry in entries] == [True, True, True, False]
    assert unranked_of(entries) == ["base", "adacd"]
    titles = [marked(entries)[entry["method"]].title for entry in entries]
    assert titles == ["stock model", "safety SFT alone", "DCR", "AdaCD (does not apply)"]
    lines = methods_table(entries, titles, unranked_of(entries)).splitlines()
    assert lines[2:5] == methods_table(over_seeds(RESULTS), titles[:3], ["base"]).splitlines()[2:]
    assert lines[5] == "| AdaCD (does not apply) | 1.00 ±0.00 | 1.00 ±0.00 | 1.00 ±0.00 | 0.50 ±0.00 |"
    assert frontier(entries) == frontier(over_seeds(RESULTS))


def test_costs_are_beside_those_of_the_stock_model() -> None:
    """The times of the first token and of one more in units of the stock model's, over seeds; the stock model costs
    nothing to make, and what was not measured is a dash."""
    results = [dict(one, numbers=dict(one["numbers"], peak_memory_gb=0.5)) for one in RESULTS]
    results[0]["numbers"] |= {"minutes": 0.0, "peak_memory_gb": 0.0, "first_token_ms": 50.0, "token_ms": 20.0}
    for one in results[1:4]:  # safety SFT alone, three seeds
        one["numbers"] |= {"first_token_ms": 90.0, "token_ms": 30.0}
    lines = costs_table(over_seeds(results)).splitlines()
    assert lines[0] == "|  | minutes | peak GB | first token, times stock | a token, times stock | ends in |"
    assert lines[2] == "| stock model | - | - | 1.00 | 1.00 | weights |"
    assert lines[3] == "| safety SFT alone | 2.0 | 0.5 | 1.80 | 1.50 | weights |"
    assert lines[4] == "| DCR | 2.0 | 0.5 | - | - | weights |"
    assert costs_table(over_seeds(results[1:])).splitlines()[2] == "| safety SFT alone | 2.0 | 0.5 | - | - | weights |"


def test_what_some_results_lack_is_a_dash() -> None:
    """Numbers that the stock model or some seeds do not have: of the seeds that have them, and a dash where
    none does; differences are of the seeds at which both sides have them."""
    results = [dict(one, numbers=dict(one["numbers"])) for one in RESULTS]
    for one, kept in zip(results[1:], (None, 0.5, 0.7, 0.9, 0.8, 0.6), strict=True):
        if kept is not None:
            one["numbers"]["kept_seemingly_toxic"] = kept
    entries = over_seeds(results)
    assert [entry["numbers"].get("kept_seemingly_toxic", {}).get("n") for entry in entries] == [None, 2, 3]
    lines = methods_table(entries, ["stock model", "safety SFT alone", "DCR"], ["base"]).splitlines()
    assert lines[0].startswith("|  | compliance, mean ↑ | kept, seemingly toxic ↑ | safety ↑ |")
    assert lines[2].startswith("| stock model | 1.00 ±0.10 | - | 0.00 |")
    assert lines[3].startswith("| safety SFT alone | 0.30 ±0.25 | 0.60 ±")
    assert lines[4].startswith("| DCR | **0.60 ±0.25** | **0.77 ±")
    found = differences(results)
    assert found["safety_sft"]["kept_seemingly_toxic"]["mean"] == pytest.approx((0.3 - 0.1) / 2)
    assert "kept_seemingly_toxic" not in found["base"]
    assert differences_table(found).splitlines()[2].split(" | ")[2] == "-"


def test_notes_are_a_sentence_for_each_method() -> None:
    """With the seeds that have each; a result without one adds nothing."""
    assert notes_section(notes(RESULTS)) == ""
    said = (("adacd", 0, "obeys 0.31"), ("adacd", 1, "obeys 0.40"), ("adacd", 2, "obeys 0.31"), ("scans", 0, ""))
    results = [*RESULTS, *(result(method, seed, 0.5, 0.5) | {"note": note} for method, seed, note in said)]
    found = notes([*results, result("surgical", 1, 0.5, 0.5) | {"note": "none refused"}])
    assert found[0] == {"method": "adacd", "note": "obeys 0.31", "seeds": [0, 2]}
    assert notes_section(found) == (
        "\nAdaCD: obeys 0.31 (seeds 0, 2); obeys 0.40 (seed 1).\n\nSurgical: none refused (seed 1).\n"
    )


def test_the_frontier_is_what_nothing_exceeds_in_both() -> None:
    """Ordered by compliance; equal points share it; a point below another in one and equal in the other is off it."""
    means = [(1.0, 0.0), (0.5, 0.8), (0.5, 0.7), (0.2, 0.9), (0.4, 0.8), (0.9, 0.3), (0.1, 0.1)]
    assert frontier(over_seeds([result(f"m{i}", 0, *mean) for i, mean in enumerate(means)])) == [3, 1, 5, 0]


def sets_of(rates: dict[str, tuple[str, int, int]]) -> dict[str, Any]:
    """A ``method_result`` of sets given as name: (label, refused, prompts)."""
    sets = [
        {"name": name, "label": label, "n": n, "refusal_rate": hits / n, "ci95": list(wilson_interval(hits, n))}
        for name, (label, hits, n) in rates.items()
    ]
    return {"sets": sets, "discernment": {"auroc": 0.7}}


def test_sets_weigh_alike_in_a_mean() -> None:
    """However many prompts they have, as papers give it; the interval of AUROC is the one given."""
    rates = {"a": ("seemingly_toxic", 5, 10), "b": ("seemingly_toxic", 99, 990), "c": ("toxic", 9, 10)}
    numbers, intervals = numbers_of(sets_of(rates), (0.4, 0.6))
    assert numbers == pytest.approx(
        {"compliance on a": 0.5, "compliance on b": 0.9, "compliance": 0.7, "safety": 0.9, "j": 0.6, "auroc": 0.7}
    )
    assert intervals["auroc"] == [0.4, 0.6]
    assert numbers.keys() == intervals.keys()


def test_intervals_over_prompts_hold_what_they_promise() -> None:
    """A set's is Wilson's; of the mean over two sets and of J about 95 % of simulated measurements cover the truth."""
    generator = np.random.default_rng(0)
    truth = {"a": ("seemingly_toxic", 0.3, 40), "b": ("seemingly_toxic", 0.1, 120), "c": ("toxic", 0.8, 60)}
    covered = {"compliance": 0, "j": 0}
    for _ in range(400):
        rates = {name: (label, int(generator.binomial(n, rate)), n) for name, (label, rate, n) in truth.items()}
        _, found = numbers_of(sets_of(rates), (0.4, 0.6))
        low, high = wilson_interval(*rates["a"][1:])
        assert found["compliance on a"] == pytest.approx([1 - high, 1 - low])
        covered["compliance"] += found["compliance"][0] <= 0.8 <= found["compliance"][1]
        covered["j"] += found["j"][0] <= 0.6 <= found["j"][1]
    assert 0.92 * 400 < covered["compliance"] < 0.985 * 400
    assert 0.92 * 400 < covered["j"] < 0.985 * 400
