"""A step of stage 1 against the plain way: the whole model, padded rows, all hidden states and logits.

    python benchmarks/stage1.py                     # L = half the depth, shipped pairs in the model's chat template
    python benchmarks/stage1.py --device cuda --prompts 64

Ours stops at layer L and packs the rows behind the prefix that they share. Theirs is what the documentation of
transformers leads to: ``model(**padded, output_hidden_states=True)``, then the last token's state at L. Both take the
same batch, the same loss and the same adapter in the same precision, with layers above L frozen, and share the loader
and autocast.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from _measure import Case, Outcome, Result, Step, finish, memory_results, rates, require_equal, time_sides
from _sides import ADAPTER, gradients, load, loop_of, padded_states

from dcr_lite.data.rows import read_pairs
from dcr_lite.data.splits import pair_batches
from dcr_lite.files import SHIPPED
from dcr_lite.method import contrastive
from dcr_lite.method.geometry import Geometry, kinds_of_pairs
from dcr_lite.method.loop import Loop
from dcr_lite.method.losses import cosine_similarity, supervised_contrastive
from dcr_lite.model.hidden_states import depth


@dataclass
class Stage1(Case):
    """What to measure."""

    layer: int | None = None
    """L, counted from 0. Unset: half the depth."""
    prompts: int = 32
    """In a batch, half of each kind."""
    pairs: Path = SHIPPED / "pairs.jsonl"
    """JSON Lines of {toxic, seemingly_toxic} to draw batches from."""


@dataclass(frozen=True)
class Prepared:
    """What both sides begin with. rows: token ids of all toxic sides, then of all seemingly toxic ones."""

    model: Any
    loop: Loop
    rows: list[list[int]]
    batches: list[list[int]]
    geometry: Geometry
    how: contrastive.Contrastive

    def batch(self, step: int) -> list[list[int]]:
        """The rows of a step, in the order of ``rows``."""
        n = len(self.rows) // 2
        return [self.rows[i] for i in self.batches[step]] + [self.rows[n + i] for i in self.batches[step]]


def prepare(case: Stage1, precision: torch.dtype, stock_layers: bool = False) -> Prepared:
    """The model, ready to train, with stage 1's loop, batches and geometry."""
    model = load(case, precision, stock_layers=stock_layers)
    layer = depth(model.network) // 2 if case.layer is None else case.layer
    pairs = read_pairs(case.pairs)
    steps = case.repetitions + 1
    how = contrastive.Contrastive(layer, supervised_contrastive(0.5), "batch", True, steps, case.prompts, 1e-3)
    rows = contrastive.encode_pairs(model, pairs)
    n = len(pairs)
    batches = pair_batches(n, case.prompts, steps, case.seed)
    seen = sorted({i for batch in batches for i in batch})[:128]  # enough for a geometry
    geometry = contrastive.stock_geometry(model, [rows[i] for i in seen] + [rows[n + i] for i in seen], how)
    loop = loop_of(
        lambda: contrastive.contrastive_refinement(model, ADAPTER, pairs, pairs[:2], how, case.seed, geometry)
    )
    model.network.train()
    return Prepared(model, loop, rows, batches, geometry, how)


def ours(case: Stage1, precision: torch.dtype) -> Step:
    """The package's own step."""
    ready = prepare(case, precision)
    return lambda i: {"loss": ready.loop.backward(i), **gradients(ready.model.network)}


def plain(case: Stage1, precision: torch.dtype) -> Step:
    """The whole model on the padded batch; only layers up to L train, as in ours."""
    ready = prepare(case, precision, stock_layers=True)

    def step(i: int) -> Outcome:
        states = padded_states(ready.model, ready.batch(i), ready.how.layer)
        kinds = kinds_of_pairs(len(ready.batches[i]), ready.model.device)
        loss = ready.how.loss(cosine_similarity(ready.geometry(states)), kinds)
        loss.backward()
        return {"loss": loss.item(), **gradients(ready.model.network)}

    return step


def main(case: Stage1) -> list[Result]:
    equal_to = require_equal(ours, plain, case)
    seconds = time_sides({"ours": ours, "plain": plain}, case)
    speed = {name: rates(case.prompts, turns) for name, turns in seconds.items()}
    results = [Result.of("stage 1: step", speed["ours"], speed["plain"], "prompts/s", equal_to)]
    results += memory_results("stage 1", ours, plain, case, equal_to)
    return finish(case, results, "ours", "whole model, padded")


if __name__ == "__main__":
    main(tyro.cli(Stage1, description=__doc__))
