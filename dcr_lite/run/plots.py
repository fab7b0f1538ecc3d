"""The plots of a run."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from dcr_lite.files import damaged, damaged_line, load_jsonl, write_whole
from dcr_lite.names import BASELINE, DCR, LABEL_TITLES, LABELS, MODEL_TITLES

matplotlib.use("Agg")  # draw into files, wherever the run is

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from numpy.typing import NDArray

SEPARATION = "development_auroc"  # what stage 1 observes
COLOURS = {"toxic": "#c0392b", "seemingly_toxic": "#2471a3", "plain": "#7f8c8d"}
STYLE: Any = {
    "figure.dpi": 160,
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
}


def save(figure: Any, path: Path) -> None:
    """Write a figure to a file, whole or absent, and close it, whether it could be written or not."""
    try:
        write_whole(path, lambda partial: figure.savefig(partial, facecolor="white", format="png"))
    finally:
        plt.close(figure)


def _legend(figure: Any) -> None:
    """A legend below the panels with each label once."""
    shown: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            shown.setdefault(name, handle)
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(LABEL_TITLES))


def draw_run(folder: Path, results: dict[str, dict[str, Any]], answers: dict[str, list[dict[str, Any]]]) -> None:
    """The pictures of a run's answers and of its metrics.jsonl; results: ``method_result`` by model."""
    draw_refusal_rates({m: result["overall"] for m, result in results.items()}, folder / "refusal_rates.png")
    scores = {
        method: {label: [r["refusal_log_odds"] for r in measured if r["label"] == label] for label in LABELS}
        for method, measured in answers.items()
    }
    aurocs = {method: result["discernment"]["auroc"] for method, result in results.items()}
    draw_refusal_scores(scores, aurocs, folder / "refusal_scores.png")
    if curves := refusal_curves(folder / "metrics.jsonl"):
        draw_refusal_during_sft(curves, folder / "refusal_during_sft.png")
    if curve := separation_curve(folder / "metrics.jsonl"):
        draw_separation(curve, folder / "separation.png")


def refusal_curves(metrics: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Mean refusal probability by method, label and step, from the tidy metrics.jsonl of a run; empty where no safety
    SFT was part of it. Raises UserError where it is damaged."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for stage, step, row in _observed(metrics, LABELS):
        method = {"stage2": DCR, BASELINE: BASELINE}.get(stage)
        for label, value in row.items():
            if method:
                curves.setdefault(method, {}).setdefault(label, []).append((step, value))
    return curves


def separation_curve(metrics: Path) -> list[tuple[int, float]]:
    """(step, AUROC of the development pairs) along stage 1, likewise; empty where there was none."""
    curve = [(step, row[SEPARATION]) for stage, step, row in _observed(metrics, (SEPARATION,)) if stage == "stage1"]
    return curve if len(curve) > 1 else []  # a stage 1 without steps observes where it begins


def _observed(metrics: Path, names: Sequence[str]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Stage, step and those numbers of each row that has one of them."""
    if not metrics.exists() or not metrics.read_bytes().endswith(b"\n"):  # a tidy one ends with a line
        raise damaged(metrics, "Restore the run folder from a copy.")
    for number, row in enumerate(load_jsonl(metrics), start=1):
        try:
            stage, found = row["stage"], {name: float(row[name]) for name in names if name in row}
            if found:
                yield stage, int(row["step"]), found
        except (KeyError, TypeError, ValueError):
            raise damaged_line(metrics, number) from None


def draw_refusal_rates(rates: dict[str, dict[str, dict[str, Any]]], path: Path) -> None:
    """Refusal rates of the models side by side with 95 % intervals: rates[method][label] = {n, refusal_rate,
    ci95}."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 3.8))
        labels = [label for label in LABEL_TITLES if any(label in by_label for by_label in rates.values())]
        width = 0.8 / len(labels)
        for j, label in enumerate(labels):
            for i, method in enumerate(rates):
                rate = rates[method].get(label)
                if rate is None:
                    continue
                x = i + (j - (len(labels) - 1) / 2) * width
                value, (low, high) = rate["refusal_rate"], rate["ci95"]
                axes.bar(x, value, width * 0.92, color=COLOURS[label], label=LABEL_TITLES[label])
                axes.errorbar(x, value, [[value - low], [high - value]], color="#222222", lw=1, capsize=2.5)
                axes.text(x, high + 0.02, f"{value:.0%}", ha="center", va="bottom", fontsize=9)
        axes.set_xticks(range(len(rates)), [MODEL_TITLES.get(m, m) for m in rates])
        axes.set_ylim(0, 1.12)
        axes.set_yticks(np.linspace(0, 1, 6), [f"{t:.0%}" for t in np.linspace(0, 1, 6)])
        axes.set_ylabel("answers that refuse")
        axes.set_title("Refuse what is toxic, answer what only sounds so", loc="left", pad=22)
        _legend(figure)
        save(figure, path)


def draw_refusal_scores(scores: dict[str, dict[str, list[float]]], aurocs: dict[str, float | None], path: Path) -> None:
    """Histograms of the refusal log-odds by kind, one panel a model: scores[method][label] = log-odds."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(scores), figsize=(3.3 * len(scores), 3.2), sharey=True, squeeze=False)
        flat = [x for by_label in scores.values() for values in by_label.values() for x in values]
        bins = np.linspace(min(flat), max(flat) + 1e-6, 28)
        for axes, (method, by_label) in zip(panels[0], scores.items(), strict=True):
            for label in LABEL_TITLES:
                if by_label.get(label):
                    weights = np.full(len(by_label[label]), 1 / len(by_label[label]))
                    axes.hist(
                        by_label[label],
                        bins,
                        weights=weights,
                        color=COLOURS[label],
                        alpha=0.55,
                        label=LABEL_TITLES[label],
                    )
            auroc = aurocs.get(method)
            axes.set_title(
                MODEL_TITLES.get(method, method) + (f"\nAUROC {auroc:.2f}" if auroc is not None else ""), loc="left"
            )
            axes.set_xlabel("log-odds of opening with a refusal")
            axes.axvline(0, color="#222222", lw=0.8, ls=":")
        panels[0][0].set_ylabel("share of prompts")
        _legend(figure)
        save(figure, path)


def draw_state_map(
    maps: dict[str, NDArray[np.float64]],
    kinds: NDArray[np.str_],
    aurocs: dict[str, float | None],
    layer: int,
    path: Path,
) -> None:
    """States of layer L, as before and after stage 1: maps[title] (prompts, 2), first column along the read-out
    direction, second along the largest variation across it; both in units of the spread of all prompts in that panel.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(maps), figsize=(4.4 * len(maps), 4.0), squeeze=False)
        for axes, (title, points) in zip(panels[0], maps.items(), strict=True):
            for label in LABEL_TITLES:
                if label in kinds:
                    chosen = points[kinds == label]
                    axes.scatter(*chosen.T, s=14, color=COLOURS[label], alpha=0.65, lw=0, label=LABEL_TITLES[label])
            auroc = aurocs[title]
            axes.set_title(title + (f": AUROC {auroc:.2f}" if auroc is not None else ""), loc="left")
            axes.set_xlabel("reads as seemingly toxic   \N{LEFT RIGHT ARROW}   reads as toxic")
            axes.set_xticks([])
            axes.set_yticks([])
        panels[0][0].set_ylabel(f"largest other variation at layer {layer}")
        _legend(figure)
        save(figure, path)


def draw_refusal_during_sft(curves: dict[str, dict[str, list[tuple[int, float]]]], path: Path) -> None:
    """Mean refusal probability of development prompts along safety SFT: curves[method][label] = (step, probability)."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(curves), figsize=(4.0 * len(curves), 3.4), sharey=True, squeeze=False)
        highest = max((y for by in curves.values() for points in by.values() for _, y in points), default=1.0)
        for axes, (method, by_label) in zip(panels[0], curves.items(), strict=True):
            _lines(axes, by_label)
            axes.set_title(MODEL_TITLES.get(method, method), loc="left")
            axes.set_xlabel("step of safety SFT")
            axes.set_ylim(0, max(0.05, 1.1 * highest))
        panels[0][0].set_ylabel("probability of opening with a refusal")
        _legend(figure)
        save(figure, path)


def draw_separation(curve: list[tuple[int, float]], path: Path) -> None:
    """AUROC of the development pairs along stage 1."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.2, 3.2))
        axes.plot(*zip(*curve, strict=True), "o-", color="#1e8449", ms=4)
        axes.set_xlabel("step of stage 1")
        axes.set_ylabel("AUROC of unseen pairs")
        axes.set_title("How far stage 1 sets the kinds apart", loc="left")
        save(figure, path)


def _lines(axes: Axes, by_label: dict[str, list[tuple[int, float]]]) -> None:
    for label, points in by_label.items():
        steps, values = zip(*points, strict=True)
        axes.plot(steps, values, color=COLOURS[label], marker="o", ms=3.5, label=LABEL_TITLES[label])
