"""How the settings of a run were found: the section of its report, and the picture."""

from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dcr_lite.model.loading import REFUSING_OPENINGS
from dcr_lite.names import LABEL_TITLES
from dcr_lite.run.plots import COLOURS, STYLE, save

Evidence = dict[str, Any]
SIDES = ("toxic", "seemingly_toxic")


def found_section(found: dict[str, Any]) -> str:
    """What RUN/found.json holds as Markdown: each choice with its evidence."""
    evidence = found["evidence"]
    lines = [_layer(found, evidence["layers"]), _rates(found, evidence), *_from_answers(found, evidence)]
    picture = "\n\n![How the settings were found](found.png)" if evidence["layers"] or evidence["answers"] else ""
    text = "\n".join(f"- {line}" for line in lines)
    return f"## How the settings were found\n\n{text}{picture}\n"


def end_of_stage1(report: dict[str, Any]) -> str:
    """What ended stage 1, with its picture, which belong to that section; empty where it had nothing to observe."""
    curve = report["stage1"]["auroc_by_step"]
    if not curve:
        return ""
    (_, before), (last, _) = curve[0], curve[-1]
    best, kept, most = report["stage1"]["best"], report["stage1"]["best_step"], report["settings"]["contrastive_steps"]
    if kept == last:
        ended = "The last step was the best, so more of them may still help."
    else:
        why = "since nothing better came" if last < most else "the most that it may take"
        ended = f"It ended at step {last}, {why}."
    return (
        f"\n**Stage 1** took the AUROC of unseen pairs from {before:.2f} to {best:.2f}, at step {kept}. {ended}\n\n"
        "![Unseen pairs during stage 1](separation.png)\n"
    )


def _layer(found: dict[str, Any], layers: Evidence | None) -> str:
    if layers is None:
        return f"**L = {found['layer']}** was given."
    aurocs = {int(layer): value for layer, value in layers["auroc"].items()}
    best = max(aurocs, key=lambda layer: aurocs[layer])
    return (
        f"**L = {found['layer']}.** In the stock model {layers['pairs']} pairs, each read by pairs of other focus "
        f"words, are told apart best at layer {best} of {min(aurocs)} to {max(aurocs)} (AUROC {aurocs[best]:.2f}, "
        f"standard error {layers['error']:.2f}), and {found['layer']} is the lowest within one standard error of that."
    )


def _rates(found: dict[str, Any], evidence: Evidence) -> str:
    names = {"stage1": ("contrastive_learning_rate", "stage 1"), "stage2": ("sft_learning_rate", "stage 2")}
    stages = dict(names[stage] for stage in names if found[stage] == "yes")
    if not stages:
        return "**Learning rates**: none, since neither stage trains."
    width = f"from the width, {evidence['width']:,}"
    rates = [
        f"{stage} {found[name]:.1e} ({'given' if name in evidence['given'] else width})"
        for name, stage in stages.items()
    ]
    return f"**Learning rates**: {', '.join(rates)}."


def _from_answers(found: dict[str, Any], evidence: Evidence) -> list[str]:
    """Stages, answers and dial; what the stock model does, where it was asked."""
    answers, lines = evidence["answers"], []
    if answers is not None:
        rates = [f"{answers[side]['refusal_rate']:.2f} of {answers[side]['n']} {LABEL_TITLES[side]}" for side in SIDES]
        lines.append(f"The stock model refuses {' and '.join(rates)} training prompts.")
    lines.append(_openings(found["openings"], answers))
    if found["stage1"] == "no":
        lines.append("**Stage 1**: none.")
    elif found["contrastive_share"] < 1:
        lines.append(f"**Stage 1**: {found['contrastive_share']:g} of what it changes in the weights stays.")
    if found["stage2"] == "no":
        why = "as was asked for" if "stage2" in evidence["given"] else "the model refuses by itself"
        lines.append(f"**Stage 2**: none: {why}.")
        if unused := evidence.get("unused"):
            lines.append(unused_sentence(unused))
    else:
        voice = "written by the stock model itself" if found["answers"] == "own" else "those of the rows"
        few = ", few since the model refuses by itself" if evidence.get("few_refusals") else ""
        rows = f" on {found['refusals']} refusals{few}" if "refusals" in found else ""  # of an older run not known here
        lines.append(f"**Stage 2**: safety SFT{rows}; its answers to general instructions are {voice}.")
    return [*lines, f"**The dial's target**: {found['dial'].replace('_', ' ')}."]


def _openings(openings: list[str], answers: Evidence | None) -> str:
    """What log-odds of refusing are read by, and where it is from; of answers no more than how they begin."""
    own = [f'"{opening}"' for opening in openings if opening not in REFUSING_OPENINGS]
    kit = f'{len(openings) - len(own)} of the kit, such as "{REFUSING_OPENINGS[1]}"'
    line = f"**Log-odds of refusing** are read by {len(openings)} openings of answers: {kit}"
    if answers is None:
        return f"{line}; the stock model was not asked for its own."
    n, quoted = sum(answers[side]["n"] for side in SIDES), f": {', '.join(own)}" if own else ""
    return f"{line}, and {len(own) or 'none'} from the refusals among the stock model's {n} answers{quoted}."


def unused_sentence(flags: list[str]) -> str:
    """What is said of flags that a stage 2 would use, where it was found not to be needed."""
    has, it = ("has", "it") if len(flags) == 1 else ("have", "them")
    return f"Stage 2 was found not to be needed, so {', '.join(flags)} {has} no effect; --stage2 yes uses {it}."


def draw_found(found: dict[str, Any], path: Path) -> None:
    """found.png: AUROC by layer, and how often the stock model refuses; nothing where neither was looked at."""
    layers, answers = found["evidence"]["layers"], found["evidence"]["answers"]
    if layers is None and answers is None:
        return
    with plt.rc_context(STYLE):
        widths = [3.4 if part is layers else 1.6 for part in (layers, answers) if part is not None]
        figure, panels = plt.subplots(
            1, len(widths), figsize=(2.1 * sum(widths), 3.6), width_ratios=widths, squeeze=False
        )
        axes = list(panels[0])
        if layers is not None:
            _draw_layers(axes.pop(0), found["layer"], layers)
        if answers is not None:
            _draw_answers(axes.pop(0), answers)
        save(figure, path)


def _draw_layers(axes: Axes, chosen: int, layers: Evidence) -> None:
    places, values = zip(*((int(layer), value) for layer, value in layers["auroc"].items()), strict=True)
    axes.plot(places, values, "o-", ms=4, color="#7f8c8d", label="stock model")
    axes.axhspan(max(values) - layers["error"], max(values), color="#7f8c8d", alpha=0.15, lw=0)
    axes.axvline(chosen, color="#222222", lw=0.8, ls=":", label=f"L = {chosen}")
    axes.set_xticks(places)
    axes.set_xlabel("decoder layer, from 0")
    axes.set_ylabel("AUROC of unseen pairs")
    axes.set_title("At which layer the kinds are told apart", loc="left")
    axes.legend(loc="lower right", fontsize=8)


def _draw_answers(axes: Axes, answers: Evidence) -> None:
    for place, label in enumerate(SIDES):
        rate, (low, high) = answers[label]["refusal_rate"], answers[label]["ci95"]
        axes.bar(place, rate, 0.6, color=COLOURS[label])
        axes.errorbar(place, rate, [[rate - low], [high - rate]], color="#222222", lw=1, capsize=2.5)
    axes.set_xticks(range(len(SIDES)), [LABEL_TITLES[label].replace(" ", "\n") for label in SIDES])
    axes.set_ylim(0, 1)
    axes.set_title("Stock model refuses", loc="left")
