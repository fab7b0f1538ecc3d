"""The picture of a probing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.plots import MARKS
from dcr_lite.probe.probes import NONE
from dcr_lite.run.plots import STYLE, save

ROW = 0.27  # inches a probe


def draw_probes(entries: Sequence[dict[str, Any]], path: Path) -> None:
    """J of every model under every probe: a point with its 95 % interval, joined by a line to J without a probe, which
    a dashed line marks over all seeds, with the seeds that the point has. Entries are those of ``report.over_seeds``.
    """
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    probes = {entry["probe"]: entry["title"] for entry in entries if entry["probe"] != NONE}
    titles = {entry["method"]: entry["model_title"] for entry in entries}
    usual = {entry["method"]: entry["numbers"]["j"]["mean"] for entry in entries if entry["probe"] == NONE}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 1.6 + ROW * max(4, len(probes))))
        for i, method in enumerate(methods):
            colour, shift = METHODS[method].colour, 0.7 * ((i + 0.5) / len(methods) - 0.5)
            axes.axvline(usual[method], color=colour, ls="--", lw=1, alpha=0.6, zorder=1)
            for place, probe in enumerate(probes):
                own = [entry for entry in entries if (entry["method"], entry["probe"]) == (method, probe)]
                for entry in own:
                    j, y = entry["numbers"]["j"], place + shift
                    before = j["mean"] - entry["numbers"]["change"]["mean"]
                    axes.plot([before, j["mean"]], [y, y], color=colour, lw=2.2, alpha=0.45, zorder=2)
                    if j["ci95"]:
                        axes.plot(j["ci95"], [y, y], color=colour, lw=0.8, zorder=3)
                    axes.plot(j["mean"], y, MARKS[method], color=colour, ms=4, zorder=4)
            axes.plot([], [], f"{MARKS[method]}-", color=colour, label=titles[method])
        axes.axvline(0, color="#222222", lw=0.8, zorder=1)
        axes.set_yticks(range(len(probes)), list(probes.values()))
        axes.set_ylim(len(probes) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", color="#eeeeee", lw=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("J: refusal rate on toxic minus on seemingly toxic prompts")
        axes.set_title("What is left under each probe (dashed: without)", loc="left")
        figure.legend(loc="outside lower center", ncols=4)
        save(figure, path)
