"""What probes are to show: that DCR keeps at least as much of its J as safety SFT alone keeps of its own."""

from collections.abc import Sequence
from typing import Any

from dcr_lite.names import BASELINE, DCR
from dcr_lite.probe.numbers import Row
from dcr_lite.probe.probes import NONE

Number = dict[str, Any]  # {mean, ci95, n}


def in_common(rows: Sequence[Row]) -> list[Row]:
    """Of ``report.measured_rows`` those of DCR and of safety SFT alone under the probes, with the seeds that both have
    under a probe."""
    of = {method: {(r["probe"], r["seed"]) for r in rows if r["method"] == method} for method in (DCR, BASELINE)}
    both = {(probe, seed) for probe, seed in of[DCR] & of[BASELINE] if probe != NONE}
    return [row for row in rows if row["method"] in of and (row["probe"], row["seed"]) in both]


def kept_sentence(entries: Sequence[dict[str, Any]]) -> str:
    """Under how many probes DCR does, by the means, and under which it keeps less. Entries are those of
    ``report.over_seeds`` of what both have ``in_common``. Empty where one of the two is not among them."""
    titles = {entry["method"]: str(entry["model_title"]) for entry in entries}
    if DCR not in titles or BASELINE not in titles:
        return ""
    ours, theirs = _kept(entries, DCR), _kept(entries, BASELINE)
    both = [probe for probe in ours if probe in theirs]
    if not both:
        return f"What {titles[DCR]} and {titles[BASELINE]} keep of their J cannot be compared: see the dashes."
    less = [p for p in both if round(ours[p]["mean"], 9) < round(theirs[p]["mean"], 9)]
    said = (
        f"{titles[DCR]} keeps at least as much of its J as {titles[BASELINE]} keeps of its own under "
        f"{len(both) - len(less)} of {len(both)} probes"
    )
    return f"{said}, and less under {', '.join(_beside(p, ours[p], theirs[p]) for p in less)}." if less else f"{said}."


def _kept(entries: Sequence[dict[str, Any]], method: str) -> dict[str, Number]:
    """By the title of a probe, where there is something to keep."""
    return {
        entry["title"]: entry["numbers"]["kept"]
        for entry in entries
        if entry["method"] == method and "kept" in entry["numbers"]
    }


def _beside(probe: str, ours: Number, theirs: Number) -> str:
    """A probe with both shares, and whether their intervals overlap. ours: the lower one."""
    apart = ours["ci95"][1] < theirs["ci95"][0]
    shares = f"{round(100 * ours['mean'])} for {round(100 * theirs['mean'])} %"
    return f"{probe} ({shares}, intervals {'apart' if apart else 'overlap'})"
