"""How much stage 1 gains by more pairs, and on which kind of prompt.

    python benchmarks/pair_curve.py --settings.model FOLDER --prompts FILES --out runs/pair_curve
    python benchmarks/pair_curve.py --models "135M=smollm2_135m" "0.5B=FOLDER05" "1.5B=FOLDER15" --prompts FILES
    python benchmarks/pair_curve.py --counts -1 --more new_pairs.jsonl    # all pairs, without and with these

Stage 1 is trained on so many pairs, drawn at random, in as many steps each, and read by AUROC in two ways. "states":
those at layer L along the difference of the two means of training pairs, with the whole of stage 1. "opening": the
log-odds of opening with a refusal, which tell of answers, of the model that a run ends in. Of one that refuses by
itself half of stage 1 stays, others go through stage 2; then a dial is fitted to the same pairs, with the gain that
development pairs give it, and stands at 0. What is not set is found as a run finds it, once for each model and seed.

Read on development pairs, on every file of held-out pairs, the newer two by kinds as well, and on every set of
``--prompts``: a set of one label against the prompts of the other label in all sets. No pair is trained on whose focus
word is that of one that is read, whichever file it is in. 95 % bootstrap intervals over prompts. The time of all is
estimated at the start, and what is left of it behind each point. ``--out`` keeps adapters and scores: the same command
goes on.
"""

import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import matplotlib.pyplot as plt
import tyro
from _kept import require_same

from dcr_lite.check import duration
from dcr_lite.check.rows import measured as lengths_of
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.summary import mean_and_interval
from dcr_lite.data.rows import Pair, Prompt, prompts_of, read_pairs, read_prompts
from dcr_lite.data.sources import locate
from dcr_lite.data.splits import sample, split_by_focus
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED, load_json, write_json, write_text
from dcr_lite.measure.metrics import auroc, auroc_interval, with_interval
from dcr_lite.method.contrastive import (
    REFERENCE_PAIRS,
    ContrastiveConfig,
    ContrastiveRefinement,
    encode_pairs,
    first_pairs,
    stock_geometry,
)
from dcr_lite.method.dial import turned
from dcr_lite.method.dial_fitting import GAINS, find_gain, fit_dial, prompts_read
from dcr_lite.method.geometry import Geometry
from dcr_lite.method.loop import Loop
from dcr_lite.method.read_out import read_out
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.generation import answer
from dcr_lite.model.shapes import shape_of
from dcr_lite.model.states import layer_states
from dcr_lite.names import DCR
from dcr_lite.run import inputs, steps
from dcr_lite.run.found_settings import assumed
from dcr_lite.run.opening import machine
from dcr_lite.run.plan import ACHIEVED, matrix_rate
from dcr_lite.run.plots import STYLE, save
from dcr_lite.run.recipes import recipe_or_model, recipe_titles, settings_of
from dcr_lite.run.report import markdown_table
from dcr_lite.run.stored_states import compute_states, stage2_rows
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings

ALL = -1
DEVELOPMENT = "development pairs"
MANNERS, CONTEXTS = "held-out manners", "held-out contexts"
HELD_OUT: dict[str, str | Path] = {
    "held-out pairs": "heldout_pairs.jsonl", MANNERS: "heldout_manners.jsonl", CONTEXTS: "heldout_contexts.jsonl",
}  # fmt: skip
MANNER = "manner: "  # in front of the kind of held-out pairs
SIDES = ("toxic", "seemingly_toxic")
MEASURES = {"states": "States at layer L", "opening": "Opening with a refusal"}
SETTINGS = replace(
    Settings.of_model("HuggingFaceTB/SmolLM2-135M-Instruct"), layer=15, contrastive_batch=32, contrastive_steps=160
)


@dataclass
class Choices:
    """What to run."""

    settings: Settings = field(default_factory=lambda: SETTINGS)
    """Model, pairs and training; what is given here, and is not the default, goes for all --models."""
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
    models: tuple[str, ...] = ()
    """TITLE=MODEL of each, from the left: a recipe's name, or a chat model's folder or name, in place of the model of
    the settings; each has its own part of --out."""
    out: Path = Path("runs/pair_curve")
    """Folder of pair_curve.md, .json and .png."""


def models_of(choices: Choices) -> dict[str, tuple[Settings, Path]]:
    """The settings of each model and the folder of what is kept of it, by its title. Raises UserError for a model
    without a title."""
    if not choices.models:
        return {Path(choices.settings.model).name: (choices.settings, choices.out)}
    given = {k: v for k, v in vars(choices.settings).items() if v != getattr(SETTINGS, k) and k not in ("model", "run")}
    found = {}
    for text in choices.models:
        title, _, model = text.rpartition("=")
        if not (title and model):
            raise UserError(f"--models {text!r}: give TITLE=MODEL")
        own = settings_of(recipe_or_model(*((model, None) if model in recipe_titles() else (None, model))))
        found[title] = replace(own, **given), choices.out / re.sub(r"\W+", "_", title).lower()
    return found


@dataclass(frozen=True)
class Material:
    """What is trained on and read with a seed. unseen: by set, the prompts of both labels."""

    training: list[Pair]
    more: list[Pair]
    unseen: dict[str, list[Prompt]]
    development: list[Pair]

    @classmethod
    def read(cls, choices: Choices, data: inputs.Data, seed: int) -> "Material":
        splits = {path: split_by_focus(read_pairs(path), choices.held_back, seed) for path in choices.more}
        unseen = {DEVELOPMENT: prompts_of(data.development)}
        unseen |= {f"{path.stem}, held back": prompts_of(held) for path, (_, held) in splits.items()}
        for title, file in HELD_OUT.items():
            unseen[title] = prompts_of(read_pairs(SHIPPED / file))
        for title in (MANNERS, CONTEXTS):
            manners = [pair.kind for pair in read_pairs(SHIPPED / HELD_OUT[title])]
            for kind in dict.fromkeys(manners):  # of the same rows, which are read once
                own = [row for row, other in zip(unseen[title], 2 * manners, strict=True) if other == kind]
                unseen[MANNER + kind.replace("_", " ")] = own
        unseen |= public_sets(choices.prompts, choices.rows)

        read = [*data.development, *(pair for _, held in splits.values() for pair in held)]
        read += [pair for file in HELD_OUT.values() for pair in read_pairs(SHIPPED / file)]
        words = {pair.focus.casefold() for pair in read if pair.focus}
        seen = [pair for pair in data.training if pair.focus.casefold() not in words]
        more = [pair for own, _ in splits.values() for pair in own if pair.focus.casefold() not in words]
        return cls(random.Random(seed).sample(seen, len(seen)), more, unseen, data.development)

    def variants(self, counts: tuple[int, ...], seed: int) -> Iterator[tuple[str, list[Pair]]]:
        """(name, training pairs) of everything to be trained."""
        fewer = [count for count in counts if ALL < count < len(self.training)]
        for count in fewer:
            yield str(count), self.training[:count]
        if len(fewer) < len(counts):
            yield "all", self.training
        if self.more:
            both = self.training + self.more
            yield "all and more", random.Random(seed).sample(both, len(both))


def public_sets(files: Sequence[Path], most: int | None) -> dict[str, list[Prompt]]:
    """At most ``most`` rows of each set and label of the files; a set of one label with the prompts of the other label
    in all of them."""
    rows, sets = sample([prompt for path in files for prompt in read_prompts(path)], most), {}
    for name in dict.fromkeys(row.source for row in rows):
        of_set = [row for row in rows if row.source == name]
        others = [row for row in rows if row.label in SIDES and row.label not in {one.label for one in of_set}]
        sets[name] = of_set + others
    return sets


@dataclass(frozen=True)
class Point:
    """One training to be read. operations: about how many it takes."""

    name: str
    training: list[Pair]
    folder: Path
    operations: float

    @property
    def kept(self) -> Path:
        """Where its result is."""
        return self.folder / "read.json"


def points_of(choices: Choices, settings: Settings, folder: Path, data: inputs.Data, material: Material) -> list[Point]:
    """Everything to be trained of a model with a seed, with an estimate that needs its config.json alone."""
    shape = shape_of(locate(settings.model)[0])
    known = assumed(replace(settings, dial="none", answers="given"), shape.layers, shape.width)
    found = []
    for name, training in material.variants(choices.counts, settings.seed):
        lengths = lengths_of(replace(data, training=training), None)
        count = duration.Counter(shape, known.layer, lengths.prefix)
        prompt = fmean(tokens for pair in lengths.pairs for tokens in pair) - lengths.prefix
        parts = duration.operations(shape, known, lengths, lengths.prefix)
        trained = parts["stage1"] + parts.get("stage2", 0.0)
        texts = len(_distinct(material))
        read = prompts_read(training, data.instructions) + texts
        opened = texts + 2 * len(GAINS) * len(material.development)
        work = trained + count.forward(known.layer + 1, read * prompt, read) + count.answers(opened, prompt, 0)
        found.append(Point(name, training, folder / f"seed{settings.seed}" / name.replace(" ", "_"), work))
    return found


def measured(run: SeedRun, point: Point, material: Material) -> dict[str, Any]:
    """Train on a point's pairs, unless its result is kept, and read every unseen set: {trained, kept_step, seconds,
    shipped, sets: {set: {states, opening: {auroc, ci95}}}}. trained: pairs."""
    if point.kept.exists():
        return load_json(point.kept)
    model, settings, training = run.model, run.settings, point.training
    adapters.set_adapter_weights(model, DCR, run.first_weights)
    config = ContrastiveConfig.of(settings)
    rows = encode_pairs(model, training)
    geometry = stock_geometry(model, rows, config)
    model.plan_passes("stage1")
    stage = ContrastiveRefinement(model, DCR, training, material.development, config, geometry, settings.seed)
    point.folder.mkdir(parents=True, exist_ok=True)
    with progress_bar(f"Stage 1 on {len(training)} pairs", stage.steps) as shown:
        progress = Loop(stage, point.folder / "checkpoint.pt", shown.row, settings.patience).run()
    adapters.save_adapter(model, DCR, point.folder / "stage1")
    unseen = _distinct(material)
    encoded = encode_asked(model.tokenizer, unseen, model.window)
    reading, direction = read_out(geometry, layer_states(model, first_pairs(rows, REFERENCE_PAIRS), config.layer))
    along = (reading(layer_states(model, encoded, config.layer)) @ direction).tolist()
    finish(run, training, geometry, point.folder)
    odds = opening_log_odds(run, training, material.development, encoded)
    places = {id(row): i for i, row in enumerate(unseen)}  # the same text may stand in two sets
    sets = {
        name: {"states": _apart(along, rows_, places), "opening": _apart(odds, rows_, places)}
        for name, rows_ in material.unseen.items()
    }
    facts = {"trained": len(training), "kept_step": progress.best_step, "seconds": progress.seconds}
    result = {**facts, "shipped": shipped(settings), "sets": sets}
    write_json(result, point.kept)
    return result


def finish(run: SeedRun, training: list[Pair], geometry: Geometry, folder: Path) -> None:
    """What a run does to the adapter behind stage 1 on these pairs: a share of that stays, and stage 2 follows where
    the settings have one."""
    model, settings = run.model, run.settings
    adapters.scale(model, DCR, settings.contrastive_share or 1.0)
    if settings.stage2 == "yes":
        data = replace(run.sft_data, training=training)
        adapters.activate(model, DCR)
        rows = stage2_rows(data, settings, compute_states(model, data, settings, geometry))
        model.plan_passes("stage2")
        config = SafetySFTConfig(
            steps.stage2_above(settings), settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate
        )
        stage = SafetySFT("stage2", model, DCR, rows, config, settings.seed)
        with progress_bar("Stage 2", stage.steps) as shown:
            Loop(stage, folder / "stage2.pt", shown.row).run()
    adapters.activate(model, DCR)


def opening_log_odds(
    run: SeedRun, training: list[Pair], development: list[Pair], encoded: list[list[int]]
) -> list[float]:
    """Of opening with a refusal, with a dial at 0 that is fitted to these pairs, where the settings have one."""
    model, settings = run.model, run.settings
    at_zero: Any = nullcontext()
    if settings.dial != "none":
        dial = fit_dial(model, DCR, settings.layer, training, run.data.instructions)
        at_zero = turned(model, DCR, find_gain(model, DCR, dial, encode_pairs(model, development))[0], 0)
    with at_zero, progress_bar("Openings", len(encoded)) as shown:
        return [one.refusal_log_odds for one in answer(model, encoded, 0, shown.advance)]


def shipped(settings: Settings) -> str:
    """What the openings are read of, in words."""
    share = settings.contrastive_share or 1.0
    stage1 = "the whole of stage 1" if share == 1 else f"{share:g} of stage 1"
    return f"{stage1}{', stage 2' * (settings.stage2 == 'yes')}{', the dial at 0' * (settings.dial != 'none')}"


def _distinct(material: Material) -> list[Prompt]:
    """Every row that is read, once; a row of one label may be in several sets."""
    return list({id(row): row for rows in material.unseen.values() for row in rows}.values())


def _apart(scores: list[float], rows: list[Prompt], places: dict[int, int]) -> dict[str, Any]:
    toxic, other = ([scores[places[id(row)]] for row in rows if row.label == side] for side in SIDES)
    return {"auroc": auroc(toxic, other), "ci95": auroc_interval(toxic, other)}


def page(results: list[dict[str, Any]]) -> str:
    """A table for each model and measure: a line for each set, a column for each number of pairs, the mean over seeds
    with its 95 % interval over them, of one seed over prompts."""
    titles = dict.fromkeys(row["model"] for row in results)
    parts = []
    for title in titles:
        own = [row for row in results if row["model"] == title]
        names = list(dict.fromkeys(row["pairs"] for row in own))
        parts += [f"## {title}"] if len(titles) > 1 else []
        for measure in MEASURES:
            lines = [
                [name, *(_cell([r for r in own if r["pairs"] == n], name, measure) for n in names)]
                for name in own[0]["sets"]
            ]
            parts.append(f"**{measure}**\n\n" + markdown_table(["AUROC", *names], lines))
        notes = [f"*opening*: of {own[0]['shipped']}."]
        for name in (n for n in names if not n.isdigit()):
            trained = [row["trained"] for row in own if row["pairs"] == name]
            notes.append(f"*{name}*: {' to '.join(map(str, sorted({min(trained), max(trained)})))} pairs.")
        parts.append(" ".join(notes))
    return "\n\n".join(parts)


def _cell(rows: list[dict[str, Any]], name: str, measure: str) -> str:
    own = [row["sets"][name][measure] for row in rows]
    value = mean_and_interval([one["auroc"] for one in own], own[0]["ci95"])
    return with_interval(value["mean"], value["ci95"], ".3f")


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """pair_curve.png: AUROC over pairs, a line for each set, a column for each model and a row for each measure. The
    table alone has held-out pairs by manner, few of each."""
    titles = list(dict.fromkeys(row["model"] for row in results))
    with plt.rc_context(STYLE):
        size = (4.2 * len(titles) + 1, 4.2 * len(MEASURES) + 1)
        figure, panels = plt.subplots(len(MEASURES), len(titles), figsize=size, sharey=True, squeeze=False)
        for across, measure in zip(panels, MEASURES, strict=True):
            for axes, title in zip(across, titles, strict=True):
                _draw_lines(axes, [row for row in results if row["model"] == title], measure)
                axes.set_title(f"{title}: {MEASURES[measure]}", loc="left")
            across[0].set_ylabel("AUROC of unseen prompts")
        for axes in panels[-1]:
            axes.set_xlabel("pairs that stage 1 is trained on")
        shown, columns = panels[0][0].get_legend_handles_labels(), min(5, 2 * len(titles))
        figure.legend(*shown, loc="outside lower center", ncols=columns, fontsize=8)
        save(figure, path)


def _draw_lines(axes: Any, own: list[dict[str, Any]], measure: str) -> None:
    names = list(dict.fromkeys(row["pairs"] for row in own))
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, name in enumerate(name for name in own[0]["sets"] if not name.startswith(MANNER)):
        means = [fmean(row["sets"][name][measure]["auroc"] for row in own if row["pairs"] == n) for n in names]
        wide = 2.2 if name in (DEVELOPMENT, *HELD_OUT) else 1.1
        axes.plot(names, means, "o-", ms=3.5, lw=wide, color=colours[i % len(colours)], label=name)
    axes.set_xticks(names)


class Ahead:
    """The work that is left, and how long it takes at the speed so far; before any, at that of a matrix product."""

    def __init__(self, settings: Settings, points: list[Point]):
        self._left = sum(point.operations for point in points if not point.kept.exists())
        on = machine(settings)
        self._rate = matrix_rate(on.device, on.precision) * ACHIEVED
        self._done, self._seconds = 0.0, 0.0

    def took(self, point: Point, seconds: float) -> None:
        """A point has been trained and read in so many seconds."""
        self._left -= point.operations
        self._done += point.operations
        self._seconds += seconds
        self._rate = self._done / self._seconds

    def __str__(self) -> str:
        return f"about {max(0.0, self._left) / self._rate / 3600:.1f} hours"


def main(choices: Choices) -> list[dict[str, Any]]:
    """Every point of every model. Raises UserError where what is kept is of other settings, prompts or rows."""
    plans: list[tuple[str, Settings, Path, Material, list[Point]]] = []
    for title, (settings, folder) in models_of(choices).items():
        for seed in choices.seeds:
            seeded = inputs.resolved(replace(settings, seed=seed, stage1="yes", compare_with=()))
            data = inputs.load_data(seeded)
            material = Material.read(choices, data, seed)
            plans.append((title, seeded, folder, material, points_of(choices, seeded, folder, data, material)))
    ahead = Ahead(choices.settings, [point for *_, points in plans for point in points])
    print(f"{sum(len(points) for *_, points in plans)} points, {ahead} in all", flush=True)

    results: list[dict[str, Any]] = []
    for title, settings, folder, material, points in plans:
        for point in points:
            require_same(point.kept, settings, point.training, material)
        run = SeedRun(settings, folder / f"seed{settings.seed}" / "found", settings.seed)
        run.find_settings()
        for point in points:
            begun, started = not point.kept.exists(), time.monotonic()
            found = measured(run, point, material)
            if begun:
                ahead.took(point, time.monotonic() - started)
                read = ", ".join(f"{m} {found['sets'][DEVELOPMENT][m]['auroc']:.3f}" for m in MEASURES)
                print(f"{title}, {point.name} pairs, seed {settings.seed}: {read}; {ahead} left", flush=True)
            results.append({"model": title, "pairs": point.name, "seed": settings.seed, **found})
            write_json(results, choices.out / "pair_curve.json")
            write_text(choices.out / "pair_curve.md", page(results) + "\n")
        run.unload()
        run.run.leave()
        draw(results, choices.out / "pair_curve.png")
    print(page(results))
    return results


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
