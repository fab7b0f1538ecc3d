"""DCR with another method on top of it: does what they do add up?

    python benchmarks/combined.py --recipe smollm2_135m --seeds 0 1 2 --rows 20 --prompts FILES --out runs/compare

Surgical, SCANS, AdaCD and ProSafePrune change a model that has been trained, in ``dcr-lite compare`` safety SFT alone.
Here each changes DCR's, with its dial as the recipe sets it, and is fitted to that on the same prompts as there. In the
``--out`` of a comparison nothing is trained or measured again. Prints the table, and DCR minus each.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from dcr_lite.compare import adacd, prosafeprune, scans, surgical
from dcr_lite.compare.adacd import AdaCD
from dcr_lite.compare.command import SEEDS, measured
from dcr_lite.compare.directions import Kinds
from dcr_lite.compare.judged import stored_answers
from dcr_lite.compare.measurement import EvaluationData
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.prosafeprune import Pruning
from dcr_lite.compare.report import comparison_report, notes_section
from dcr_lite.compare.scans import Scans
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.compare.surgical import Ablation
from dcr_lite.compare.tables import differences_table, marked, methods_table, unranked_of
from dcr_lite.errors import UserError
from dcr_lite.files import write_text
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR, STOCK
from dcr_lite.run.recipes import recipe_or_model, settings_of
from dcr_lite.run.terminal import progress_bar


@dataclass
class Choices:
    """What to measure, as of dcr-lite compare."""

    recipe: str | None = None
    model: str | None = None
    seeds: tuple[int, ...] = SEEDS
    prompts: tuple[Path, ...] = ()
    rows: int | None = None
    only: tuple[str, ...] = ()
    """Of surgical, scans, adacd and prosafeprune; by default all."""
    out: Path = Path("runs/compare")
    """Folder of combined.md and of the comparison."""


@dataclass(frozen=True)
class OnTop:
    """A method that changes a trained model. fit: to the model as it stands, on training and validation prompts; it
    tells how many more of its ``parts`` are done. on: a context in which the model is changed by what was fitted."""

    kind: type[Any]
    fit: Callable[[Model, Kinds, Kinds, Callable[[int], None]], Any]
    on: Callable[[Model, Any], AbstractContextManager[None]]
    parts: Callable[[Model], int] = lambda model: 1


ON_TOP = {
    "surgical": OnTop(
        Ablation,
        lambda model, training, validation, done: surgical.fit(model, training, validation, progress=done),
        lambda model, found: surgical.ablated(model, found.direction),
        surgical.layers_tried,
    ),
    "scans": OnTop(
        Scans,
        lambda model, training, validation, done: scans.fit(model, training, validation),
        lambda model, found: found.steering(model),
    ),
    "adacd": OnTop(
        AdaCD,
        lambda model, training, validation, done: adacd.fit(model, validation),
        lambda model, found: found.contrasting(model),
    ),
    "prosafeprune": OnTop(
        Pruning,
        lambda model, training, validation, done: prosafeprune.fit(model, DCR, training, validation, done),
        lambda model, found: prosafeprune.pruned(model, DCR, found),
        lambda model: prosafeprune.SETTINGS,
    ),
}


def combined(name: str) -> Method:
    """DCR with the method of this name on top of it."""
    method, alone, part = ON_TOP[name], METHODS[name], f"dcr_{name}"

    @contextmanager
    def model(seed: SeedRun, strength: float) -> Iterator[Cost]:
        def fit() -> Any:
            with progress_bar(f"{alone.title} on DCR: its search", method.parts(seed.model)) as shown:
                return method.fit(seed.model, *anchors, shown.advance)

        with METHODS[DCR].model(seed, strength) as trained:
            known, anchors = seed.judged_anchors(DCR)
            found = seed.fit_once(part, method.kind, fit)
            with method.on(seed.model, found):
                yield trained + known + seed.cost(part) + Cost(0.0, 0, getattr(found, "note", ""))

    return replace(
        METHODS[DCR], title=f"DCR and {alone.title}", colour=alone.colour, model=model, in_weights=alone.in_weights,
        operations=lambda seed, _: alone.operations(seed, 1.0),
    )  # fmt: skip


def main(choices: Choices) -> None:
    if wrong := [name for name in choices.only if name not in ON_TOP]:
        raise UserError(f"--only {wrong[0]}: no such method. Choose from {', '.join(ON_TOP)}.")
    names = [name for name in ON_TOP if name in (choices.only or ON_TOP)]
    methods = {name: METHODS[name] for name in (STOCK, DCR)} | {f"dcr_{name}": combined(name) for name in names}
    recipe = recipe_or_model(choices.recipe, choices.model)
    settings = settings_of(recipe)
    data = EvaluationData.read(choices.prompts or settings.evaluation, choices.rows, None)
    runs, results = measured(methods, settings, data, choices.seeds, (), choices.out)
    report = comparison_report(
        choices.out.name, runs[choices.seeds[0]].settings, results, (), methods, partial(stored_answers, runs, data)
    )
    entries = report["methods"]
    shown = marked(entries, methods)
    table = methods_table(entries, [shown[entry["method"]].title for entry in entries], unranked_of(entries))
    page = f"{table}\n{notes_section(report['notes'], methods)}\n{differences_table(report['differences'], shown)}\n"
    write_text(choices.out / "combined.md", page)
    print(page)


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
