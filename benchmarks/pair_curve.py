"""How much stage 1 gains by more pairs, and on which kind of prompt.

    python benchmarks/pair_curve.py --settings.model FOLDER --prompts FILES --out runs/pair_curve
    python benchmarks/pair_curve.py --counts -1 --more new_pairs.jsonl    # all pairs, without and with these

Stage 1 is trained on so many pairs, drawn at random, in as many steps each, and read by AUROC in two ways: the states
at layer L along the difference of the two means of training pairs ("states"), and the log-odds of opening with a
refusal ("opening"), which tells of the answers of a model that refuses by itself. Read on development pairs, which
share no focus word with training pairs, and on every set of ``--prompts``: a set of one label against the prompts of
the other label in all sets. 95 % bootstrap intervals over prompts. ``--out`` keeps adapters and scores: the same
command goes on.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import tyro
from _kept import require_same

from dcr_lite.data.rows import Pair, Prompt, prompts_of, read_pairs, read_prompts
from dcr_lite.data.splits import sample, split_by_focus
from dcr_lite.files import load_json, write_json, write_text
from dcr_lite.measure.metrics import auroc, auroc_interval, with_interval
from dcr_lite.method.contrastive import (
    REFERENCE_PAIRS,
    ContrastiveConfig,
    ContrastiveRefinement,
    encode_pairs,
    first_pairs,
    stock_geometry,
)
from dcr_lite.method.loop import Loop
from dcr_lite.method.read_out import read_out
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states
from dcr_lite.names import DCR
from dcr_lite.run import inputs, opening
from dcr_lite.run.found_settings import rate_for
from dcr_lite.run.plots import STYLE, save
from dcr_lite.run.report import markdown_table
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings

ALL = -1
DEVELOPMENT = "development pairs"
SIDES = ("toxic", "seemingly_toxic")
MEASURES = ("states", "opening")


@dataclass
class Choices:
    """What to run."""

    settings: Settings = field(
        default_factory=lambda: replace(
            Settings.of_model("HuggingFaceTB/SmolLM2-135M-Instruct"),
            layer=15, contrastive_batch=32, contrastive_steps=160,
        )
    )  # fmt: skip
    """Model, pairs and stage 1; its layer L has to be given."""
    counts: tuple[int, ...] = (160, 320, 640, ALL)
    """Pairs to train on; -1: all of them."""
    more: tuple[Path, ...] = ()
    """Further files of pairs: trained on beside all others, once more; a part with focus words of its own is held back
    and read, whatever was trained on."""
    held_back: int = 24
    """Pairs of each further file that are held back."""
    prompts: tuple[Path, ...] = ()
    """JSON Lines of {prompt, label, source} to read as well."""
    rows: int | None = 100
    """At most so many prompts of each set and label."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the adapter, the split, the pairs that are drawn and their order."""
    out: Path = Path("runs/pair_curve")
    """Folder of pair_curve.md, .json and .png."""


@dataclass(frozen=True)
class Material:
    """What is trained on and read with a seed. unseen: by set, the prompts of both labels."""

    training: list[Pair]
    more: list[Pair]
    unseen: dict[str, list[Prompt]]
    development: list[Pair]

    @classmethod
    def read(cls, choices: Choices, seed: int) -> "Material":
        data = inputs.load_data(replace(choices.settings, seed=seed))
        held = {pair.focus for pair in data.development}
        more, unseen = [], {DEVELOPMENT: prompts_of(data.development)}
        for path in choices.more:
            training, own = split_by_focus(read_pairs(path), choices.held_back, seed)
            more += [pair for pair in training if pair.focus not in held]
            unseen[path.stem] = prompts_of(own)
        unseen |= public_sets(choices.prompts, choices.rows)
        order = random.Random(seed)
        return cls(order.sample(data.training, len(data.training)), more, unseen, data.development)

    def variants(self, counts: tuple[int, ...], seed: int) -> Iterator[tuple[str, list[Pair]]]:
        """(name, training pairs) of everything to be trained."""
        for count in counts:
            pairs = self.training if count == ALL else self.training[:count]
            yield str(len(pairs)), pairs
        if self.more:
            both = self.training + self.more
            yield f"{len(self.training)} and {len(self.more)} more", random.Random(seed).sample(both, len(both))


def public_sets(files: Sequence[Path], most: int | None) -> dict[str, list[Prompt]]:
    """At most ``most`` rows of each set and label of the files; a set of one label with the prompts of the other label
    in all of them."""
    rows, sets = sample([prompt for path in files for prompt in read_prompts(path)], most), {}
    for name in dict.fromkeys(row.source for row in rows):
        of_set = [row for row in rows if row.source == name]
        others = [row for row in rows if row.label in SIDES and row.label not in {one.label for one in of_set}]
        sets[name] = of_set + others
    return sets


def measured(
    model: Model, settings: Settings, training: list[Pair], material: Material, folder: Path
) -> dict[str, Any]:
    """Train stage 1 on these pairs, unless its adapter is kept, and read every unseen set: {kept_step, seconds, sets:
    {set: {states, opening: {auroc, ci95}}}}. Raises UserError where other ones are kept."""
    done = folder / "read.json"
    require_same(done, settings, training, material)
    if done.exists():
        return load_json(done)
    config = ContrastiveConfig.of(settings)
    rows = encode_pairs(model, training)
    geometry = stock_geometry(model, rows, config)
    model.plan_passes("stage1")
    stage = ContrastiveRefinement(model, DCR, training, material.development, config, geometry, settings.seed)
    folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(f"Stage 1 on {len(training)} pairs", stage.steps) as shown:
        progress = Loop(stage, folder / "checkpoint.pt", shown.row, settings.patience).run()
    adapters.save_adapter(model, DCR, folder / "stage1")
    read = _read(model, geometry, first_pairs(rows, REFERENCE_PAIRS), config.layer, material)
    result = {"kept_step": progress.best_step, "seconds": progress.seconds, "sets": read}
    write_json(result, done)
    return result


def _read(model: Model, geometry: Any, reference: Any, layer: int, material: Material) -> dict[str, Any]:
    texts = list(dict.fromkeys(row.prompt for rows in material.unseen.values() for row in rows))
    encoded = encode_prompts(model.tokenizer, texts, model.window)
    reading, direction = read_out(geometry, layer_states(model, reference, layer))
    along = (reading(layer_states(model, encoded, layer)) @ direction).tolist()
    with progress_bar("Openings", len(texts)) as shown:
        odds = [a.refusal_log_odds for a in answer(model, encoded, 0, shown.advance)]
    scores = {"states": dict(zip(texts, along, strict=True)), "opening": dict(zip(texts, odds, strict=True))}
    found: dict[str, Any] = {}
    for name, rows in material.unseen.items():
        for measure in MEASURES:
            toxic, other = ([scores[measure][r.prompt] for r in rows if r.label == side] for side in SIDES)
            read = {"auroc": auroc(toxic, other), "ci95": auroc_interval(toxic, other)}
            found.setdefault(name, {})[measure] = read
    return found


def page(results: list[dict[str, Any]], sets: list[str]) -> str:
    """A table for each measure: a line for each set, a column for each number of pairs, the mean over seeds and, of one
    seed, its interval."""
    names = list(dict.fromkeys(row["pairs"] for row in results))
    tables = []
    for measure in MEASURES:
        lines = [
            [name, *(_cell([r for r in results if r["pairs"] == n], name, measure) for n in names)] for name in sets
        ]
        tables.append(f"**{measure}**\n\n" + markdown_table(["AUROC", *names], lines))
    return "\n\n".join(tables)


def _cell(rows: list[dict[str, Any]], name: str, measure: str) -> str:
    own = [row["sets"][name][measure] for row in rows]
    mean = sum(one["auroc"] for one in own) / len(own)
    ends = own[0]["ci95"] if len(own) == 1 else (min(o["auroc"] for o in own), max(o["auroc"] for o in own))
    return with_interval(mean, ends, ".3f")


def draw(results: list[dict[str, Any]], sets: list[str], path: Path) -> None:
    """pair_curve.png: AUROC over pairs, a line for each set, a panel for each measure."""
    names = list(dict.fromkeys(row["pairs"] for row in results))
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(MEASURES), figsize=(10.5, 4.6), sharey=True)
        colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
        for axes, measure in zip(panels, MEASURES, strict=True):
            for i, name in enumerate(sets):
                means = []
                for n in names:
                    own = [row["sets"][name][measure]["auroc"] for row in results if row["pairs"] == n]
                    means.append(sum(own) / len(own))
                wide = 2.2 if i == 0 else 1.1
                axes.plot(names, means, "o-", ms=3.5, lw=wide, color=colours[i % len(colours)], label=name)
            axes.set_title({"states": "States at layer L", "opening": "Opening with a refusal"}[measure], loc="left")
            axes.set_xlabel("pairs that stage 1 is trained on")
        panels[0].set_ylabel("AUROC of unseen prompts")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
        save(figure, path)


def main(choices: Choices) -> list[dict[str, Any]]:
    results = []
    for seed in choices.seeds:
        settings = inputs.resolved(replace(choices.settings, seed=seed, compare_with=()))
        material = Material.read(replace(choices, settings=settings), seed)
        model, _ = opening.load_model(settings)
        rate = settings.contrastive_learning_rate or rate_for(
            model.network.config.hidden_size, "contrastive_learning_rate"
        )
        settings = replace(settings, contrastive_learning_rate=rate)
        first = adapters.adapter_weights(model, DCR)
        for name, training in material.variants(choices.counts, seed):
            adapters.set_adapter_weights(model, DCR, first)
            folder = choices.out / f"seed{seed}" / name.replace(" ", "_")
            results.append({"pairs": name, "seed": seed, **measured(model, settings, training, material, folder)})
            sets = list(material.unseen)
            write_json(results, choices.out / "pair_curve.json")
            write_text(choices.out / "pair_curve.md", page(results, sets) + "\n")
    draw(results, sets, choices.out / "pair_curve.png")
    print(page(results, sets))
    return results


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
