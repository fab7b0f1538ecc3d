"""How well the dial's reader tells unseen prompts apart, by the number of pairs that it is fitted to, in models as they
are: nothing is trained.

    python benchmarks/reader_curve.py --models FOLDER 14 OTHER 15 --prompts FILES --out runs/reader_curve

A model, by folder or name, is given with its layer L. It reads every prompt once; readers are then fitted to pairs in
random orders, each larger number with the smaller one's. AUROC of what they read at the prompts' ends: of development
pairs, which share no focus word with the training pairs, of every file of held-out pairs, and of every set of
``--prompts``, a set of one label against the prompts of the other label in all of them. AUROCs and their 95 % bootstrap
intervals over prompts are means over the orders. Pairs of ``--more`` are added to all of the others in a last column.
Of every prompt as many tokens are read as a dial takes with all pairs; fitted to few, a dial takes more of each.
``--out`` keeps what was measured of each model: the same command goes on.
"""

import random
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
import tyro
from _kept import require_same
from pair_curve import ALL, DEVELOPMENT, HELD_OUT, SIDES, prompts_of, public_sets
from torch import Tensor

from dcr_lite.data.rows import Before, Prompt, read_pairs
from dcr_lite.files import SHIPPED, load_json, write_json, write_text
from dcr_lite.measure.metrics import auroc, auroc_interval
from dcr_lite.method.dial_fitting import CONVERSATIONS, Read, read_inputs, read_kinds, ridge
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.run import inputs, opening
from dcr_lite.run.plots import STYLE, save
from dcr_lite.run.report import markdown_table
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings


@dataclass
class Choices:
    """What to run."""

    models: dict[str, int]
    """Folder or name of each model, and its layer L."""
    prompts: tuple[Path, ...] = ()
    """JSON Lines of {prompt, label, source} to read as well."""
    rows: int | None = 100
    """At most so many prompts of each set and label."""
    counts: tuple[int, ...] = (160, 320, 640, 1280, ALL)
    """Pairs to fit to; -1: all of them."""
    orders: int = 3
    """Random orders of the pairs."""
    settings: Settings = field(default_factory=lambda: Settings(model="", run=Path("runs/reader_curve")))
    """The pairs, and how models are loaded."""
    out: Path = Path("runs/reader_curve")
    """Folder of reader_curve.md, .json and .png."""
    more: tuple[Path, ...] = ()
    """Pairs of which those are added to all of the others, in a last column, whose focus no unseen pair has."""


def measured(choices: Choices, name: str, layer: int) -> dict[str, Any]:
    """{pairs: {number: {set: {auroc, ci95}}}} of a model, read and fitted unless that was kept. Raises
    UserError where what is kept is of another one."""
    kept = choices.out / f"{Path(name).name}.json"
    settings = inputs.resolved(replace(choices.settings, model=name, layer=layer, compare_with=()))
    data = inputs.load_data(settings)
    unseen = {DEVELOPMENT: prompts_of(data.development)}
    unseen |= {title: prompts_of(read_pairs(SHIPPED / file)) for title, file in HELD_OUT.items()}
    unseen |= public_sets(choices.prompts, choices.rows)
    read_later = data.development + [pair for file in HELD_OUT.values() for pair in read_pairs(SHIPPED / file)]
    words = {pair.focus.casefold() for pair in read_later}
    more = [pair for path in choices.more for pair in read_pairs(path) if pair.focus.casefold() not in words]
    training, n = data.training + more, len(data.training)
    require_same(kept, settings, training, data.instructions, unseen, choices.counts, choices.orders)
    if kept.exists():
        return load_json(kept)
    texts = list(dict.fromkeys((prompt.before, prompt.prompt) for prompts in unseen.values() for prompt in prompts))

    model, _ = opening.load_model(settings)
    asked = encode_asked(model.tokenizer, [Prompt(text, "", "", before) for before, text in texts], model.window)
    rows = 2 * len(training) + 2 * len(data.instructions[:CONVERSATIONS]) + len(asked)
    with progress_bar(f"Prompts read by {Path(name).name}", rows) as shown, adapters.stock(model):
        read = read_kinds(model, layer, training, data.instructions, shown.advance)
        unknown = read_inputs(model, layer, asked, [0.0] * len(asked), shown.advance)
    ends = torch.stack([one.inputs[-1] for one in unknown])
    also = read[2 * len(training) :]

    found: dict[str, dict[str, Any]] = {}
    drawn = {(n if count == ALL else min(count, n)): range(n) for count in choices.counts}
    for some, among in (drawn | ({len(training): range(len(training))} if more else {})).items():
        scores = []
        for order in range(1 if some == len(among) else choices.orders):
            own = random.Random(order).sample(among, len(among))[:some]
            scores.append(ends @ _reader([read[i + side] for side in (0, len(training)) for i in own] + also))
        toxicity = dict(zip(texts, (-torch.stack(scores)).T.tolist(), strict=True))
        found[str(some)] = {title: _read_apart(prompts, toxicity) for title, prompts in unseen.items()}
        print(f"{Path(name).name}, {some} pairs: {found[str(some)][DEVELOPMENT]['auroc']:.3f}", flush=True)
    result = {"layer": layer, "pairs": found}
    write_json(result, kept)
    return result


def _reader(read: list[Read]) -> Tensor:
    return ridge(torch.cat([one.inputs for one in read]), torch.cat([one.targets for one in read]))[1]


def _read_apart(prompts: list[Prompt], toxicity: dict[tuple[Before, str], list[float]]) -> dict[str, Any]:
    """{auroc, ci95}: the mean over the orders; the interval is the mean of theirs."""
    sides = [[toxicity[p.before, p.prompt] for p in prompts if p.label == side] for side in SIDES]
    orders = [([row[k] for row in sides[0]], [row[k] for row in sides[1]]) for k in range(len(sides[0][0]))]
    ends = [auroc_interval(toxic, other) for toxic, other in orders]
    return {
        "auroc": sum(auroc(toxic, other) for toxic, other in orders) / len(orders),
        "ci95": [sum(end[side] for end in ends) / len(ends) for side in (0, 1)],
    }


def page(results: dict[str, Any]) -> str:
    """A table for each model: a line for each set, a column for each number of pairs."""
    tables = []
    for name, result in results.items():
        numbers = list(result["pairs"])
        sets = result["pairs"][numbers[0]]
        lines = [[title, *(_cell(result["pairs"][n][title]) for n in numbers)] for title in sets]
        tables.append(f"**{Path(name).name}, L = {result['layer']}**\n\n{markdown_table(['AUROC', *numbers], lines)}")
    return "\n\n".join(tables)


def _cell(read: dict[str, Any]) -> str:
    return f"{read['auroc']:.3f} ({read['ci95'][0]:.3f}-{read['ci95'][1]:.3f})"


def draw(results: dict[str, Any], path: Path) -> None:
    """reader_curve.png: AUROC over pairs, a line for each set, a panel for each model."""
    with plt.rc_context(STYLE):
        size = (4.2 * len(results) + 1, 4.8)
        figure, panels = plt.subplots(1, len(results), figsize=size, sharey=True, squeeze=False)
        colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
        for axes, (name, result) in zip(panels[0], results.items(), strict=True):
            numbers = list(result["pairs"])
            for i, title in enumerate(result["pairs"][numbers[0]]):
                ours = title in (DEVELOPMENT, *HELD_OUT)
                rates = [result["pairs"][n][title]["auroc"] for n in numbers]
                axes.plot(
                    [int(n) for n in numbers], rates, "o-", ms=3.5, lw=2.2 if ours else 1.1,
                    color=colours[i % len(colours)], label=title,
                )  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xticks([int(n) for n in numbers], numbers)
            axes.minorticks_off()
            axes.set_title(Path(name).name, loc="left")
            axes.set_xlabel("pairs that the reader is fitted to")
        panels[0][0].set_ylabel("AUROC of unseen prompts")
        shown, columns = panels[0][0].get_legend_handles_labels(), min(5, 2 * len(results))
        figure.legend(*shown, loc="outside lower center", ncols=columns, fontsize=8)
        save(figure, path)


def main(choices: Choices) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, layer in choices.models.items():
        results[name] = measured(choices, name, layer)
        write_json(results, choices.out / "reader_curve.json")
        write_text(choices.out / "reader_curve.md", page(results) + "\n")
        draw(results, choices.out / "reader_curve.png")
    print(page(results))
    return results


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
