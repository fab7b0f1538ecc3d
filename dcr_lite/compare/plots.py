"""The picture of a comparison."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from dcr_lite.names import COMPARED
from dcr_lite.run.plots import STYLE, save

METHOD_COLOURS = {
    "base": "#bbbbbb",
    "safety_sft": "#7f8c8d",
    "augmented": "#b9770e",
    "surgical": "#7d3c98",
    "scans": "#2471a3",
    "dcr": "#1e8449",
}


def draw_trade_off(methods: list[dict[str, Any]], curve: list[dict[str, Any]], frontier: list[int], path: Path) -> None:
    """Refusal of toxic prompts against compliance on seemingly toxic ones: a large point a method with its 95 %
    intervals, small ones joined by a line for its strengths, and the frontier through the best of ``curve``.
    Entries are those of ``comparison.over_seeds``."""

    def place(entry: dict[str, Any]) -> tuple[float, float]:
        return entry["numbers"]["compliance"]["mean"], entry["numbers"]["safety"]["mean"]

    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 5.0))
        axes.plot([0, 1], [1, 0], ":", color="#bbbbbb", lw=1)  # no discernment: both kinds refused alike
        best = [place(curve[i]) for i in frontier]
        if len(best) > 1:
            style: Any = {"color": "#222222", "lw": 6, "alpha": 0.1, "solid_capstyle": "round"}
            axes.plot(*zip(*best, strict=True), label="frontier", **style)
        for method, colour in METHOD_COLOURS.items():
            along = sorted((e for e in curve if e["method"] == method), key=lambda e: e["strength"] or 0)
            if along:
                axes.plot(*zip(*map(place, along), strict=True), "o-", color=colour, ms=3.5, lw=1, alpha=0.7)
            for entry in (e for e in methods if e["method"] == method):
                x, y = place(entry)
                numbers = (entry["numbers"][key] for key in ("compliance", "safety"))
                across, up = ([[n["mean"] - n["ci95"][0]], [n["ci95"][1] - n["mean"]]] for n in numbers)
                axes.errorbar(x, y, up, across, color=colour, lw=1, capsize=2.5, alpha=0.8)
                axes.plot(x, y, "o", color=colour, ms=9, label=COMPARED[method])
        axes.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.04))
        axes.set(xlabel="answers what only sounds toxic", ylabel="refuses what is toxic")
        axes.set_title("Up and to the right is better", loc="left")
        figure.legend(loc="outside lower center", ncols=4)
        save(figure, path)
