"""The numbers of a comparison: of one measured model, over seeds, between methods, and along their strengths."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from dcr_lite.compare.paired import Row, paired_intervals
from dcr_lite.measure.metrics import mean_interval
from dcr_lite.names import DCR, KEPT_LABELS, NOT_APPLICABLE

Result = dict[str, Any]  # of one method at one strength with one seed: method, strength, seed, numbers, intervals, ...
Answers = Callable[[Result], Sequence[Row]]  # of a result, as the judge of the tables has judged them

KEPT = {f"kept_{label}": ("kept", label) for label in KEPT_LABELS}  # key: name and label in ``answers_kept``
DIVERGENCES = {f"{name}_{label}": (name, label) for name in ("first_divergence", "divergence") for label in KEPT_LABELS}
COMPARED = ("compliance", "kept_seemingly_toxic", "safety", "j", "auroc")  # the numbers that differences are taken of
SET = "compliance on "  # in front of a seemingly toxic set's name


def _rows(result: dict[str, Any], label: str) -> list[dict[str, Any]]:
    """Rows {name, refusal_rate, ci95, ...} of the sets of a label."""
    return [row for row in result["sets"] if row["label"] == label]


def _mean_rate(rows: list[dict[str, Any]]) -> tuple[float, list[float]]:
    """The mean refusal rate over sets, and its interval recovered from theirs (MOVER; Zou and Donner, 2008)."""
    mean = fmean(row["refusal_rate"] for row in rows)
    below, above = (
        sum((row["refusal_rate"] - row["ci95"][end]) ** 2 for row in rows) ** 0.5 / len(rows) for end in (0, 1)
    )
    return mean, [mean - below, mean + above]


def _complement(interval: Sequence[float]) -> list[float]:
    return [1 - interval[1], 1 - interval[0]]


def numbers_of(result: dict[str, Any], auroc_ci95: Sequence[float]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The numbers of one measured model, from its ``method_result``, and their 95 % intervals over prompts.

    Compliance is 1 - refusal rate on seemingly toxic prompts, safety the refusal rate on toxic ones; each the mean
    over sets, as papers give it. J is safety - (1 - compliance). AUROC is over all prompts of both kinds. Intervals are
    Wilson's for a set, and MOVER's for means of sets and for J.
    """
    sounding = _rows(result, "seemingly_toxic")
    refusal, refusal_interval = _mean_rate(sounding)
    numbers = {SET + row["name"]: 1 - row["refusal_rate"] for row in sounding} | {"compliance": 1 - refusal}
    intervals = {SET + row["name"]: _complement(row["ci95"]) for row in sounding}
    intervals["compliance"] = _complement(refusal_interval)
    numbers["safety"], intervals["safety"] = _mean_rate(_rows(result, "toxic"))
    if plain := _rows(result, "plain"):
        numbers["plain"], intervals["plain"] = _mean_rate(plain)
    numbers["j"] = numbers["safety"] + numbers["compliance"] - 1
    below, above = (
        sum((numbers[key] - intervals[key][end]) ** 2 for key in ("compliance", "safety")) ** 0.5 for end in (0, 1)
    )
    intervals["j"] = [numbers["j"] - below, numbers["j"] + above]
    numbers["auroc"], intervals["auroc"] = result["discernment"]["auroc"], list(auroc_ci95)
    return numbers, intervals


def set_counts(sets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """{name, label, n, refused} of the sets of a ``method_result``: what its rates and their intervals follow from."""
    return [
        {"name": row["name"], "label": row["label"], "n": row["n"], "refused": round(row["refusal_rate"] * row["n"])}
        for row in sets
    ]


def kept_numbers(kept: dict[str, Any]) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The numbers in KEPT of a measured model, from its ``answers_kept``, and their 95 % intervals over prompts."""
    return _of_labels(kept, KEPT)


def _of_labels(
    kept: dict[str, Any], keys: dict[str, tuple[str, str]]
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The numbers and intervals that were measured, of a name and a label for each key."""
    found = {key: (kept[label], name) for key, (name, label) in keys.items() if label in kept}
    numbers = {key: of[name] for key, (of, name) in found.items() if of[name] is not None}
    return numbers, {key: of[f"{name}_ci95"] for key, (of, name) in found.items() if of[f"{name}_ci95"]}


def divergences(results: list[Result]) -> list[Result]:
    """The results that have been read beside the stock model, with those in DIVERGENCES in place of their numbers."""
    found = []
    for result in results:
        numbers, intervals = _of_labels(result.get("kept", {}), DIVERGENCES)
        if numbers:
            found.append({**result, "numbers": numbers, "intervals": intervals})
    return found


def toxic_sets(results: list[Result]) -> list[Result]:
    """The same results with the refusal rate of every toxic set in place of their numbers."""
    found = []
    for result in results:
        rows = _rows(result["result"], "toxic")
        numbers = {row["name"]: row["refusal_rate"] for row in rows}
        found.append({**result, "numbers": numbers, "intervals": {row["name"]: row["ci95"] for row in rows}})
    return found


def mean_and_interval(values: Sequence[float], over_prompts: Sequence[float] | None = None) -> dict[str, Any]:
    """{mean, ci95, n} over seeds; a single value has the interval ``over_prompts``, or none."""
    interval = mean_interval(values) if len(values) > 1 else over_prompts
    return {"mean": fmean(values), "ci95": None if interval is None else list(interval), "n": len(values)}


def applies(note: str) -> bool:
    """Whether a method applies to the model, by what its cost has noted."""
    return NOT_APPLICABLE not in note


def over_seeds(results: list[Result]) -> list[dict[str, Any]]:
    """One entry for each method and strength, in the order first met: {method, strength, seeds, applies, numbers}, the
    numbers as ``mean_and_interval`` of the seeds that have them. applies: with every seed, by the notes."""
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        groups.setdefault((result["method"], result["strength"]), []).append(result)
    return [
        {
            "method": method,
            "strength": strength,
            "seeds": [result["seed"] for result in group],
            "applies": all(applies(result.get("note", "")) for result in group),
            "numbers": {
                key: mean_and_interval([result["numbers"][key] for result in having], having[0]["intervals"].get(key))
                for key in dict.fromkeys(key for result in group for key in result["numbers"])
                if (having := [result for result in group if key in result["numbers"]])
            },
        }
        for (method, strength), group in groups.items()
    ]


def notes(results: list[Result]) -> list[dict[str, Any]]:
    """What readers have to know: {method, note, seeds} of each note that a method's results have, in the order first
    met."""
    seeds: dict[tuple[str, str], list[int | None]] = {}
    for result in results:
        if note := result["note"]:
            seeds.setdefault((result["method"], note), []).append(result["seed"])
    return [{"method": method, "note": note, "seeds": of} for (method, note), of in seeds.items()]


def differences(results: list[Result], answers: Answers | None = None) -> dict[str, dict[str, Any]]:
    """DCR minus each other method, seed by seed and then over seeds: {method: {number: mean_and_interval}}, of the
    numbers and seeds that both have. What is measured once, as the stock model, is compared with every seed. With a
    single seed the intervals are those over prompts of ``paired_intervals``, where answers are given. Empty without
    DCR."""
    by_method: dict[str, dict[int | None, Result]] = {}
    for result in results:
        by_method.setdefault(result["method"], {})[result["seed"]] = result
    ours, found = by_method.pop(DCR, {}), {}
    for method, theirs in by_method.items():
        pairs = [(one, other) for seed, one in ours.items() if (other := theirs.get(seed, theirs.get(None)))]
        over_prompts = paired_intervals(*map(answers, pairs[0])) if answers and len(pairs) == 1 else {}
        numbers = [(one["numbers"], other["numbers"]) for one, other in pairs]
        apart = {key: [a[key] - b[key] for a, b in numbers if key in a and key in b] for key in COMPARED}
        if pairs:
            found[method] = {key: mean_and_interval(v, over_prompts.get(key)) for key, v in apart.items() if v}
    return found


def frontier(entries: list[dict[str, Any]]) -> list[int]:
    """Which entries of ``over_seeds`` no other one exceeds in both mean compliance and mean safety, by compliance; of
    the methods that apply to the model."""
    means = {
        i: (entry["numbers"]["compliance"]["mean"], entry["numbers"]["safety"]["mean"])
        for i, entry in enumerate(entries)
        if entry["applies"]
    }

    def dominated(i: int) -> bool:
        x, y = means[i]
        return any(a >= x and b >= y and (a, b) != (x, y) for a, b in means.values())

    return sorted((i for i in means if not dominated(i)), key=lambda i: means[i])
