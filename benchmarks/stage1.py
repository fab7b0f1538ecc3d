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

import torch
import tyro
from _measure import Case, Outcome, Result, Step, finish, memory_results, rates, require_equal, time_sides
from _sides import ADAPTER, gradients, load, padded_states

from dcr_lite.data.rows import read_pairs
from dcr_lite.data.splits import pair_batches
from dcr_lite.files import SHIPPED
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.geometry import kinds_of_pairs
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


def prepare(case: Stage1, precision: torch.dtype, stock_layers: bool = False) -> ContrastiveRefinement:
    """Stage 1, ready to take its steps."""
    model = load(case, precision, stock_layers=stock_layers)
    layer = depth(model.network) // 2 if case.layer is None else case.layer
    pairs = read_pairs(case.pairs)
    steps = case.repetitions + 1
    config = ContrastiveConfig(layer, supervised_contrastive(0.5), "batch", True, steps, case.prompts, 1e-3)
    batches = pair_batches(len(pairs), case.prompts, steps, case.seed)
    seen = sorted({i for batch in batches for i in batch})[:128]  # enough for a geometry
    geometry = stock_geometry(model, encode_pairs(model, [pairs[i] for i in seen]), config)
    stage = ContrastiveRefinement(model, ADAPTER, pairs, pairs[:2], config, geometry, case.seed)
    model.network.train()
    return stage


def rows_of(stage: ContrastiveRefinement, step: int) -> list[list[int]]:
    """The token ids of a step's prompts: toxic sides, then seemingly toxic ones."""
    pairs = stage.batches[step]
    return [stage.rows[i] for i in pairs] + [stage.rows[stage.pairs + i] for i in pairs]


def ours(case: Stage1, precision: torch.dtype) -> Step:
    """The package's own step."""
    stage = prepare(case, precision)
    return lambda i: {"loss": stage.step(i), **gradients(stage.model.network)}


def plain(case: Stage1, precision: torch.dtype) -> Step:
    """The whole model on the padded batch; only layers up to L train, as in ours."""
    stage = prepare(case, precision, stock_layers=True)
    model, config = stage.model, stage.config

    def step(i: int) -> Outcome:
        rows = rows_of(stage, i)
        states = padded_states(model, rows, config.layer)
        loss = config.loss(cosine_similarity(stage.geometry(states)), kinds_of_pairs(len(rows) // 2, model.device))
        loss.backward()
        return {"loss": loss.item(), **gradients(model.network)}

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
