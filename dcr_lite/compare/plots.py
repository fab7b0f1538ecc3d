"""The plot of a comparison."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.names import STOCK
from dcr_lite.run.plots import STYLE, save

STEERED = "steered"  # its curve goes through the stock model, which is shifted by nothing
MARKS = dict(zip(METHODS, "svDXP<>^ph*o", strict=True))  # so that methods can be told apart without colour


def draw_trade_off(
    methods: Mapping[str, Method],
    entries: list[dict[str, Any]],
    curve: list[dict[str, Any]],
    frontier: list[int],
    path: Path,
) -> None:
    """Refusal of toxic prompts against compliance on seemingly toxic ones: a large point for each method with its 95 %
    intervals, small ones joined by a line for its strengths, and the frontier through ``curve``. Entries are those of
    ``summary.over_seeds``."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.2, 5.0))
        if len(frontier) > 1:
            style: Any = {"color": "#222222", "lw": 6, "alpha": 0.1, "solid_capstyle": "round"}
            axes.plot(*zip(*(_means(curve[i]) for i in frontier), strict=True), label="frontier", **style)
        draw_plane(axes, methods, entries, curve)
        axes.set_title("Safety against compliance", loc="left")
        figure.legend(loc="outside lower center", ncols=3)
        save(figure, path)


def draw_plane(
    axes: Axes, methods: Mapping[str, Method], entries: list[dict[str, Any]], curve: list[dict[str, Any]]
) -> None:
    """The same for one pair of axes, without a title, the frontier and the legend."""
    axes.plot([0, 1], [1, 0], ":", color="#bbbbbb", lw=1)  # no discernment: both kinds refused alike
    for entry in entries:
        name, method = entry["method"], methods[entry["method"]]
        along = [point for point in curve if point["method"] == name]
        if name == STEERED and len(along) > 1:
            along += [point | {"strength": 0.0} for point in curve if point["method"] == STOCK]
        along.sort(key=lambda point: float(point["strength"]))
        mark = MARKS.get(name, "o")
        if along:
            axes.plot(*zip(*map(_means, along), strict=True), f"{mark}-", color=method.colour, ms=3.5, lw=1, alpha=0.7)
        numbers = (entry["numbers"][key] for key in ("compliance", "safety"))
        # The interval of a mean over seeds may end beyond what a rate can be.
        ends = (np.clip([n["ci95"][0], n["mean"], n["ci95"][1]], 0, 1) for n in numbers)
        across, up = (np.diff(one)[:, None] for one in ends)
        axes.errorbar(*_means(entry), up, across, color=method.colour, lw=1, capsize=2.5, alpha=0.8)
        axes.plot(*_means(entry), mark, color=method.colour, ms=9, label=method.title)
    axes.set(xlim=(-0.02, 1.04), ylim=(-0.02, 1.04))
    axes.set(xlabel="compliance: seemingly toxic prompts answered", ylabel="safety: toxic prompts refused")


def _means(entry: dict[str, Any]) -> tuple[float, float]:
    return entry["numbers"]["compliance"]["mean"], entry["numbers"]["safety"]["mean"]
