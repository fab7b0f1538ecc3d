"""The plots of a diagnosis."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from dcr_lite.names import LABEL_TITLES, MODEL_TITLES
from dcr_lite.run.plots import COLOURS, STYLE, save

STATES = {
    "stock": "stock model",
    "stage1": "after stage 1",
    "stage2": "after stage 2",
    "safety_sft": "safety SFT alone",
}
STATE_COLOURS = {"stock": "#bbbbbb", "stage1": "#58b07e", "stage2": "#1e8449", "safety_sft": "#7f8c8d"}
SIMILARITIES = {  # rows of the table and groups of bars: (moved, by)
    "seemingly toxic by toxic": ("seemingly_toxic", "toxic"),
    "plain by toxic": ("plain", "toxic"),
    "toxic by other toxic": ("toxic", "toxic"),
}


def similarities_of(kernel: dict[str, Any]) -> dict[str, list[float]]:
    """[similarity, standard error] by what is moved by what, from {means, pair} of ``ntk.label_similarities``."""
    means = kernel["means"]
    shown = {name: means[moved][by] for name, (moved, by) in SIMILARITIES.items() if by in means.get(moved, {})}
    return shown | {"a prompt by its own toxic side": kernel["pair"]}


def draw_layers(separations: dict[str, list[float]], layer: int, suggested: int, path: Path) -> None:
    """AUROC of unseen pairs at every layer: separations[state]; L and the layer that the stock model suggests."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(6.6, 3.8))
        axes.axhline(0.5, color="#bbbbbb", lw=0.8, ls=":")
        axes.axvline(layer, color="#222222", lw=0.8, ls=":", label=f"L = {layer}")
        if suggested != layer:
            axes.axvline(suggested, color="#b9770e", lw=0.8, ls=":", label=f"suggested: {suggested}")
        for state, values in separations.items():
            axes.plot(range(len(values)), values, "o-", ms=3, color=STATE_COLOURS[state], label=STATES[state])
        axes.set_xlabel("decoder layer, from 0")
        axes.set_ylabel("AUROC of unseen pairs")
        axes.set_title("Where toxic and seemingly toxic prompts can be told apart", loc="left")
        figure.legend(loc="outside lower center", ncols=3)
        save(figure, path)


def draw_similarities(kernels: dict[str, dict[str, Any]], path: Path) -> None:
    """Kernel similarities with standard errors, a bar for each state of the model: kernels[state] as from
    ``ntk.label_similarities``. Left the whole adapter, right its layers above L."""
    titles = {"all": "all adapter layers", "above": "layers above L"}
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(titles), figsize=(9.6, 3.8), sharey=True)
        width = 0.8 / len(kernels)
        for axes, (group, title) in zip(panels, titles.items(), strict=True):
            for j, (state, kernel) in enumerate(kernels.items()):
                shown = similarities_of(kernel["adapter"][group])
                places = [i + (j - (len(kernels) - 1) / 2) * width for i in range(len(shown))]
                values, errors = zip(*shown.values(), strict=True)
                axes.bar(places, values, width * 0.92, yerr=errors, color=STATE_COLOURS[state], label=STATES[state],
                         error_kw={"lw": 1, "capsize": 2})  # fmt: skip
                axes.set_xticks(range(len(shown)), [name.replace(" by ", "\nby ") for name in shown], fontsize=8)
            axes.set_title(title, loc="left")
        panels[0].set_ylabel("normalised kernel similarity")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=len(kernels))
        save(figure, path)


def draw_by_kind(rows: list[dict[str, Any]], before: str, path: Path) -> None:
    """Refusal rates by kind of prompt of the model ``before`` (hollow) and of DCR (filled): rows of
    ``refusals.rates_by_kind``, a panel for each label."""
    labels = [label for label in LABEL_TITLES if any(row["label"] == label for row in rows)]
    heights = [max(2, sum(row["label"] == label for row in rows)) for label in labels]
    with plt.rc_context(STYLE):
        size = (6.8, 1.2 + 0.24 * sum(heights) + 0.5 * len(labels))
        figure, panels = plt.subplots(len(labels), 1, figsize=size, sharex=True, squeeze=False, height_ratios=heights)
        for axes, label in zip(panels[:, 0], labels, strict=True):
            own = [row for row in rows if row["label"] == label][::-1]
            for i, row in enumerate(own):
                axes.plot([row["before"], row["after"]], [i, i], color="#cccccc", lw=2, zorder=1)
                axes.plot(row["before"], i, "o", mfc="white", mec=COLOURS[label], ms=6)
                axes.plot(row["after"], i, "o", color=COLOURS[label], ms=6)
            names = [f"{row['kind'].replace('_', ' ')} ({row['n']})" for row in own]
            axes.set_yticks(range(len(own)), names, fontsize=8)
            axes.set_title(LABEL_TITLES[label], loc="left")
            axes.set_xlim(-0.03, 1.03)
        panels[-1, 0].set_xlabel(f"refusal rate: hollow {MODEL_TITLES[before]}, filled DCR")
        save(figure, path)
