"""How time and memory grow: with prompts, length, batch, layer L and model size, ours beside the plain way.

    python benchmarks/scaling.py                     # SmolLM2-135M's geometry with random weights
    python benchmarks/scaling.py --only length batch

Each axis multiplies one number and leaves the others; the slope of log time (or memory beyond the loaded model) over
log of that number is fitted through all points: 1 is growth in proportion, 0 none. Weights and tokens are random, since
neither changes the time. The axis of prompts reads states without a gradient, as a run does for its geometry and its
evaluations during training; all others take a step of stage 1.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
import torch
import tyro
from _measure import Build, Case, Outcome, Result, Step, finish, peak_memory, require_equal, time_sides
from _sides import ADAPTER, batch_loss, give_adapter, gradients, padded_states
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from dcr_lite.method.gradcache import GradCache
from dcr_lite.model import adapters, loading
from dcr_lite.model.hidden_states import prompt_states
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import ATTENTION
from dcr_lite.model.states import layer_states, prompt_passes
from dcr_lite.run.report import markdown_table

SMALLEST_MEMORY = 1e-3  # GB; below a megabyte is the allocator's noise


@dataclass
class Scaling(Case):
    """What to measure. The numbers are those from which every axis starts."""

    width: int = 576
    """Of the model: heads of 64, three of them to a key head, 8/3 as many inner units."""
    layers: int = 30
    """Decoder layers."""
    vocabulary: int = 49152
    """Tokens that the model knows."""
    layer: int = 15
    """L, counted from 0."""
    batch: int = 16
    """Prompts in a step, half of each kind."""
    prompts: int = 128
    """Prompts whose states are read without a gradient."""
    length: int = 56
    """Tokens of a prompt in its template."""
    shared: int = 31
    """Of them the template's beginning."""
    factors: tuple[float, ...] = (0.5, 1, 2)
    """What each axis multiplies its number by, in ascending order."""
    only: tuple[str, ...] = ()
    """Axes to measure: prompts, length, batch, layer, size. All by default."""


# axis -> the case at a factor, and the number that the axis shows
AXES: dict[str, tuple[Callable[[Scaling, float], Scaling], Callable[[Scaling], float]]] = {
    "prompts": (lambda c, f: replace(c, prompts=round(c.prompts * f)), lambda c: c.prompts),
    "length": (lambda c, f: replace(c, length=round(c.length * f), shared=round(c.shared * f)), lambda c: c.length),
    "batch": (lambda c, f: replace(c, batch=2 * round(c.batch * f / 2)), lambda c: c.batch),
    "layer": (lambda c, f: replace(c, layer=min(c.layers - 2, round((c.layer + 1) * f) - 1)), lambda c: c.layer + 1),
    # Width in whole groups of three heads, depth along with it: the number of weights grows about as their cube.
    "size": (
        lambda c, f: replace(
            c,
            width=max(192, round(c.width * f ** (1 / 3) / 192) * 192),
            layers=round(c.layers * f ** (1 / 3)),
            layer=round(c.layer * f ** (1 / 3)),
        ),
        lambda c: weights(c),
    ),
}


def weights(case: Scaling) -> int:
    """Weights of the decoder's matrices."""
    return round(case.layers * case.width**2 * (2 + 2 / 3 + 8))


def build_model(case: Scaling, precision: torch.dtype, stock_layers: bool) -> Model:
    """A Llama with random weights, ready to train the adapter up to L."""
    heads = case.width // 64
    config = LlamaConfig(
        hidden_size=case.width,
        intermediate_size=case.width * 8 // 3,
        num_hidden_layers=case.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 3,
        vocab_size=case.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
    )
    torch.manual_seed(case.seed)
    if case.where == "cpu":
        loading.keep_freed_memory()
    network = AutoModelForCausalLM.from_config(config, dtype=precision).to(case.where).requires_grad_(False)
    network.set_attn_implementation(ATTENTION)
    model = Model(network, None, case.where, precision, False)
    give_adapter(model, case.seed, stock_layers)
    adapters.train_only(model, ADAPTER, range(case.layer + 1))
    return model


def rows_of(case: Scaling, n: int, seed: int) -> list[list[int]]:
    """``n`` prompts that begin alike, between two thirds and all of ``length`` behind it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> list[int]:
        return torch.randint(3, case.vocabulary, (count,), generator=generator).tolist()

    shared, own = draw(case.shared), case.length - case.shared
    return [shared + draw(int(torch.randint(max(1, own * 2 // 3), own + 1, (), generator=generator))) for _ in range(n)]


def our_step(case: Scaling, precision: torch.dtype) -> Step:
    """Stage 1's forward and backward pass."""
    model = build_model(case, precision, stock_layers=False)

    def encode(part: list[list[int]]) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), case.layer)

    def step(i: int) -> Outcome:
        rows = rows_of(case, case.batch, i)
        cache = GradCache(encode, rows, prompt_passes(model, rows))
        loss = batch_loss(cache.states)
        loss.backward()
        cache.backward()
        return {"loss": loss.item(), **gradients(model.network)}

    return step


def plain_step(case: Scaling, precision: torch.dtype) -> Step:
    """The same from the whole model on padded rows."""
    model = build_model(case, precision, stock_layers=True)

    def step(i: int) -> Outcome:
        loss = batch_loss(padded_states(model, rows_of(case, case.batch, i), case.layer))
        loss.backward()
        return {"loss": loss.item(), **gradients(model.network)}

    return step


def our_states(case: Scaling, precision: torch.dtype) -> Step:
    """States at L of many prompts, without a gradient."""
    model = build_model(case, precision, stock_layers=False)
    return lambda i: {"states": layer_states(model, rows_of(case, case.prompts, i), case.layer)}


def plain_states(case: Scaling, precision: torch.dtype) -> Step:
    """The same from the whole model on padded batches."""
    model = build_model(case, precision, stock_layers=True)
    model.network.eval()

    @torch.no_grad()
    def step(i: int) -> Outcome:
        rows = rows_of(case, case.prompts, i)
        parts = [rows[k : k + case.batch] for k in range(0, len(rows), case.batch)]
        return {"states": torch.cat([padded_states(model, part, case.layer) for part in parts])}

    return step


def slope(x: list[float], y: list[float]) -> float:
    """Of log y over log x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def measure_axis(case: Scaling, name: str) -> tuple[list[Result], list[list[str]]]:
    """Slopes along one axis, and a table row for each point."""
    at, shown = AXES[name]
    builds: tuple[Build, Build] = (our_states, plain_states) if name == "prompts" else (our_step, plain_step)
    points = [at(case, factor) for factor in case.factors]
    x = [shown(point) for point in points]
    equal_to = require_equal(*builds, points[0])
    seconds: list[list[list[float]]] = [[], []]  # side, point, repetition
    memory: list[list[float]] = [[], []]  # side, point
    for point in points:
        turns = time_sides({build.__name__: build for build in builds}, point)
        for k, build in enumerate(builds):
            seconds[k].append(turns[build.__name__])
            memory[k].append(max(SMALLEST_MEMORY, peak_memory(build, point)[1]))
    slopes = [[slope(x, list(turn)) for turn in zip(*side, strict=True)] for side in seconds]
    results = [
        Result.of(f"time against {name}", *slopes, "log-log slope", equal_to),
        Result.of(f"memory against {name}", *([slope(x, side)] for side in memory), "log-log slope", equal_to),
    ]
    rows = []
    for i, value in enumerate(x):
        times = [f"{1e3 * median(side[i]):.4g}" for side in seconds]
        rows.append([name, f"{value:.4g}", *times, *(f"{side[i]:.3f}" for side in memory)])
    return results, rows


def main(case: Scaling) -> list[Result]:
    if len(case.factors) < 2 or math.prod(case.factors) <= 0:
        raise ValueError("a slope needs at least two positive factors")
    results: list[Result] = []
    points: list[list[str]] = []
    for name in case.only or tuple(AXES):
        found, rows = measure_axis(case, name)
        results += found
        points += rows
        for row in rows:
            print(f"| {' | '.join(row)} |", flush=True)
    head = ["axis", "value", "ours, ms", "plain, ms", "ours, GB", "plain, GB"]
    return finish(case, results, "ours", "whole model, padded", markdown_table(head, points))


if __name__ == "__main__":
    main(tyro.cli(Scaling, description=__doc__))
