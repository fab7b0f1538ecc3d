"""What the dial rests on: other ways to turn how much a model refuses, on development prompts.

    python benchmarks/dials.py --settings.model FOLDER --seeds 0 1 2 --out runs/dials

``--out`` has a folder for each seed, as that of ``dcr-lite compare``: what is trained there is not trained again.
Every way is measured at several strengths on the judged answers to the development pairs, which share no focus word
with the training pairs. Finished measurements are kept. The held-out prompts are not used.

Of each way's curve (compliance: seemingly toxic prompts answered; safety: toxic ones refused) the table has the mean
over seeds of the area below it, from refusing all to answering all (0.5: no discernment), and of J where it answers as
many seemingly toxic prompts as the stock model does.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from torch import Tensor

from dcr_lite.compare.anchors import ANCHORS
from dcr_lite.compare.directions import steered, steering
from dcr_lite.compare.measurement import (
    Configuration,
    EvaluationData,
    answers_file,
    finished_result,
    measure_configuration,
    require_seeds,
)
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.compare.summary import Result, mean_and_interval
from dcr_lite.data.rows import prompts_of
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.files import write_json
from dcr_lite.method.contrastive import encode_pairs
from dcr_lite.model import adapters, generation
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.states import last_states
from dcr_lite.names import DCR, STOCK
from dcr_lite.run import inputs, steps
from dcr_lite.run.found_settings import FEW
from dcr_lite.run.report import markdown_table
from dcr_lite.settings import Settings

SEVERAL = 4  # layers from L on, for a shift of several, each by its share
MANY = 128  # refusals, with FEW, of the two stage-2 adapters that are interpolated
SHIFTED = (0.3, 0.6, 1.0, 1.5)  # in units of the difference of the two kinds' means
DIALLED = (-0.3, 0.0, 0.3, 0.7)  # in tens of nats
EVERYWHERE = (0.15, 0.3, 0.45, 0.7)  # likewise, where every token is shifted: about as far at the last one

Vectors = dict[int, Tensor]  # by layer, (d_model,)
Apply = Callable[[SeedRun, Vectors], AbstractContextManager[None]]


@dataclass
class Choices:
    """What to run."""

    settings: Settings = field(default_factory=lambda: Settings.of_model(SMOLLM2))
    """Model, data and training settings; what is not given is found."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of stage 1."""
    out: Path = Path("runs/dials")
    """Folder of the runs and of dials.json."""
    pairs: int | None = None
    """At most so many development pairs."""
    only: tuple[str, ...] = ()
    """Measure only ways whose name contains one of these words."""


@dataclass(frozen=True)
class Differences:
    """shifts: the mean state of seemingly toxic minus that of toxic training prompts at every layer, (layers, d_model),
    after stage 1."""

    shifts: Tensor


def differences(seed: SeedRun) -> Tensor:
    """``Differences.shifts`` of a seed's model after stage 1."""

    def fit() -> Differences:
        states = last_states(seed.model, encode_pairs(seed.model, seed.data.training[:ANCHORS]))[:, :, 0]
        toxic, seemingly_toxic = states.chunk(2, 1)
        return Differences(seemingly_toxic.mean(1) - toxic.mean(1))

    return seed.fit_once("shifts", Differences, fit).shifts


# --- how a vector is added --------------------------------------------------------------------------------------------


def from_last_prompt_token(seed: SeedRun, vectors: Vectors) -> AbstractContextManager[None]:
    """To the prompt's last token and every answer token."""
    return steered(seed.model, vectors)


@contextmanager
def at_every_token(seed: SeedRun, vectors: Vectors) -> Iterator[None]:
    layers = decoder_of(seed.model.network).layers
    handles = [
        layers[i].register_forward_hook(lambda _module, _inputs, states, vector=vector: states + vector.to(states))
        for i, vector in vectors.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _Once(dict[int, Tensor]):
    """Vectors that are gone once they were read: the first forward pass is that of the prompt."""

    def items(self) -> Any:
        found = list(super().items())
        self.clear()
        return found


def at_first_token(seed: SeedRun, vectors: Vectors) -> AbstractContextManager[None]:
    """To the prompt's last token alone, from whose state the answer's first token is predicted."""
    return steering(seed.model, lambda rows: _Once({i: v.expand(len(rows), -1) for i, v in vectors.items()}))


# --- the ways ---------------------------------------------------------------------------------------------------------


@contextmanager
def _shifted(apply: Apply, above: bool, several: int, seed: SeedRun, strength: float) -> Iterator[Cost]:
    """``several`` layers from L on, or from half way between L and the last one, are shifted, each by its share."""
    seed.train_dcr()
    first, of_layers = seed.settings.layer, differences(seed)
    first = (first + len(of_layers)) // 2 if above else first
    layers = range(first, min(first + several, len(of_layers) - 1))
    with apply(seed, {i: strength / len(layers) * of_layers[i].to(seed.model.device) for i in layers}):
        yield Cost(0.0, 0)


@contextmanager
def _in_the_weights(seed: SeedRun, strength: float) -> Iterator[Cost]:
    seed.train_dcr()
    with seed.turned(seed.fit_dial(), strength):
        yield Cost(0.0, 0)


@contextmanager
def _opening_biased(seed: SeedRun, bias: float) -> Iterator[Cost]:
    """``bias`` is taken from the logits of the first tokens of refusals, where the answer's first token is chosen."""
    seed.train_dcr()
    openings = seed.model.tokenizer(list(seed.model.openings), add_special_tokens=False)["input_ids"]
    first, plain = sorted({ids[0] for ids in openings}), generation.start_decoding

    def biased(*given: Any) -> Any:
        decoding = plain(*given)
        decoding.logits[:, first] -= bias
        return decoding

    generation.start_decoding = biased
    try:
        yield Cost(0.0, 0)
    finally:
        generation.start_decoding = plain


@contextmanager
def _interpolated(seed: SeedRun, share: float) -> Iterator[Cost]:
    """Stage 2 with few refusals (1) and with many (0), and between and beyond them."""
    refined, above = seed.refine(), steps.stage2_above(seed.settings)
    ends = {}
    for n in (FEW, MANY):
        rows = steps.rows_of_stage2(seed.run, seed.model, seed.sft_data, replace(seed.settings, refusals=n))
        seed.train(f"stage2_{n}", f"Stage 2, {n}", DCR, rows, above, refined)
        ends[n] = adapters.adapter_weights(seed.model, DCR)
    between = {name: torch.lerp(weights, ends[FEW][name], share) for name, weights in ends[MANY].items()}
    adapters.set_adapter_weights(seed.model, DCR, between)
    yield Cost(0.0, 0)


def _way(title: str, model: Callable[[SeedRun, float], AbstractContextManager[Cost]], *strengths: float) -> Method:
    return Method(title, "", model, lambda settings: strengths, "", lambda seed, strength: 0)


def _shift(title: str, apply: Apply, above: bool = False, several: int = 1) -> Method:
    return _way(title, partial(_shifted, apply, above, several), *(EVERYWHERE if apply is at_every_token else SHIFTED))


WAYS = {
    STOCK: METHODS[STOCK],
    "unturned": _way("as trained", partial(_shifted, from_last_prompt_token, False, 1), 0.0),
    "dial": _way("in the weights: the dial, with its gain", _in_the_weights, *DIALLED),
    "last": _shift("shift at L, from the prompt's last token on", from_last_prompt_token),
    "every": _shift("shift at L, at every token", at_every_token),
    "first": _shift("shift at L, at the prompt's last token alone", at_first_token),
    "above": _shift("shift half way between L and the last layer", from_last_prompt_token, above=True),
    "several": _shift(f"shift at {SEVERAL} layers from L on", from_last_prompt_token, several=SEVERAL),
    "bias": _way("bias on the first tokens of refusals", _opening_biased, 1.0, 2.0, 4.0, 8.0),
    "interpolated": _way(
        f"stage 2 with {FEW} and {MANY} refusals, interpolated", _interpolated, 0.0, 0.5, 1.0, 1.5
    ),
}  # fmt: skip
UNTURNED = {"last", "every", "first", "above", "several", "bias"}  # whose strength 0 is "unturned"


# --- what is measured -------------------------------------------------------------------------------------------------


def development(seed: SeedRun, n: int | None = None) -> EvaluationData:
    """The first development pairs of a seed."""
    return EvaluationData(prompts_of(inputs.load_data(seed.settings).development[:n], "development"), [], [])


Curve = list[tuple[float, float]]  # (compliance, safety)


def completed(points: Curve) -> Curve:
    """The curve by compliance, with its ends, which need no model: all is refused, all is answered."""
    return [(0.0, 1.0), *sorted(points), (1.0, 0.0)]


def area(points: Curve) -> float:
    """The area below a curve of safety over compliance, 0 to 1."""
    compliance, safety = zip(*completed(points), strict=True)
    return float(np.trapezoid(safety, compliance))


def j_at(points: Curve, compliance: float) -> float:
    """J of a curve where it has that compliance."""
    xs, ys = zip(*completed(points), strict=True)
    return float(np.interp(compliance, xs, ys)) + compliance - 1


def summary(results: dict[tuple[str, int], list[Result]], seeds: tuple[int, ...]) -> list[dict[str, Any]]:
    """{way, title, area, j, points} of every way that is measured with all seeds; numbers as ``mean_and_interval``."""

    def curve(way: str, seed: int) -> Curve:
        found = results.get((way, seed), []) + (results.get(("unturned", seed), []) if way in UNTURNED else [])
        return [(r["numbers"]["compliance"], r["numbers"]["safety"]) for r in found]

    rows = []
    for way, method in WAYS.items():
        if all(results.get((way, seed)) for seed in seeds):
            curves = {seed: curve(way, seed) for seed in seeds}
            matched = [j_at(curves[seed], curve(STOCK, seed)[0][0]) for seed in seeds]
            areas = mean_and_interval([area(points) for points in curves.values()])
            row = {"way": way, "title": method.title, "area": areas, "j": mean_and_interval(matched)}
            rows.append(row | {"points": curves})
    return rows


def table(rows: list[dict[str, Any]], results: dict[tuple[str, int], list[Result]]) -> str:
    """One line a way: area, J, and its curve as compliance / safety at each strength, means over seeds."""

    def cell(value: dict[str, Any]) -> str:
        spread = f" ±{(value['ci95'][1] - value['ci95'][0]) / 2:.2f}" if value["ci95"] else ""
        return f"{value['mean']:.2f}{spread}"

    lines = []
    for row in rows:
        of_way = [result for (way, _), found in results.items() if way == row["way"] for result in found]
        shown = []
        for strength in dict.fromkeys(result["strength"] for result in of_way):
            numbers = [result["numbers"] for result in of_way if result["strength"] == strength]
            means = (np.mean([n[key] for n in numbers]) for key in ("compliance", "safety"))
            shown.append(f"{strength:g}: " + " / ".join(f"{mean:.2f}" for mean in means))
        lines.append([row["title"], cell(row["area"]), cell(row["j"]), ", ".join(shown)])
    return markdown_table(["way", "area ↑", "J at the stock's compliance ↑", "strength: compliance / safety"], lines)


def main(choices: Choices) -> list[dict[str, Any]]:
    require_seeds(choices.seeds)
    settings = inputs.resolved(choices.settings)
    results: dict[tuple[str, int], list[Result]] = {}
    first: SeedRun | None = None
    for seed in choices.seeds:
        folder = choices.out / f"seed{seed}"
        seed_run = SeedRun(first.settings, folder, seed, first.run.path) if first else SeedRun(settings, folder, seed)
        seed_run.find_settings()
        first = first or seed_run
        data = development(seed_run, choices.pairs)
        for way, method in WAYS.items():
            wanted = not choices.only or way == STOCK or any(word in way for word in choices.only)
            for strength in method.strengths(settings) if wanted else ():
                one = Configuration(way, strength, seed)
                if not finished_result(seed_run, one, data):
                    stock = answers_file(seed_run, Configuration(STOCK, 0, seed), data)  # the first way
                    measure_configuration(seed_run, method, one, data, stock)
                if result := finished_result(seed_run, one, data):
                    results.setdefault((way, seed), []).append(result)
        seed_run.unload()
        seed_run.run.leave()
    rows = summary(results, choices.seeds)
    write_json(rows, choices.out / "dials.json")
    print(table(rows, results))
    return rows


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
