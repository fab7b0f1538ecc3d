"""A step of stage 1 against the plain way: the whole model, padded rows, all hidden states and logits.

    python benchmarks/stage1.py                     # L = half the depth, shipped pairs in the model's chat template
    python benchmarks/stage1.py --device cuda --prompts 64

Ours stops at layer L and lays the rows end to end behind the prefix that they share. Theirs is what the documentation
of transformers leads to: ``model(**padded, output_hidden_states=True)``, then the last token's state at L. Both take
the same batch, the same loss and the same adapter in the same precision, with layers above L frozen, and share the
kit's loader and autocast: only the way to the loss differs.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from _measure import (
    ADAPTER,
    Case,
    Outcome,
    Result,
    Step,
    finish,
    gradients,
    in_turns,
    load,
    loop_of,
    memory_results,
    require_equal,
)


@dataclass
class Stage1(Case):
    """What to measure."""

    layer: int | None = None
    """L, counted from 0. Unset: half the depth."""
    prompts: int = 32
    """In a batch, half of each kind."""


def prepare(case: Stage1, precision: torch.dtype, stock_layers: bool = False) -> tuple[Any, Any, Any]:
    """(model, loop of stage 1, (rows, batches, geometry, settings)): what both sides begin with."""
    from dcr_lite.data.rows import read_pairs
    from dcr_lite.data.splits import pair_batches
    from dcr_lite.files import SHIPPED
    from dcr_lite.method import contrastive
    from dcr_lite.method.losses import supervised_contrastive
    from dcr_lite.model.hidden_states import depth

    model = load(case, precision, stock_layers=stock_layers)
    layer = depth(model.network) // 2 if case.layer is None else case.layer
    pairs = read_pairs(SHIPPED / "pairs.jsonl")
    steps = case.repetitions + 1
    how = contrastive.Contrastive(layer, supervised_contrastive(0.5), "batch", True, steps, case.prompts, 1e-3)
    rows = contrastive.encode_pairs(model, pairs)
    n = len(pairs)
    batches = pair_batches(n, case.prompts, steps, case.seed)
    seen = sorted({i for batch in batches for i in batch})[:128]  # a geometry needs no more
    geometry = contrastive.stock_geometry(model, [rows[i] for i in seen] + [rows[n + i] for i in seen], how)
    loop = loop_of(
        lambda: contrastive.contrastive_refinement(model, ADAPTER, pairs, pairs[:2], how, case.seed, geometry)
    )
    return model, loop, (rows, batches, geometry, how)


def ours(case: Stage1, precision: torch.dtype) -> Step:
    """The kit's own step."""
    model, loop, _ = prepare(case, precision)
    model.network.train()

    def step(i: int) -> Outcome:
        return {"loss": loop.backward(i), **gradients(model.network)}

    return step


def plain(case: Stage1, precision: torch.dtype) -> Step:
    """The whole model on the padded batch; training layers up to L only, as ours does."""
    from dcr_lite.method.geometry import kinds_of_pairs
    from dcr_lite.method.losses import cosine_similarity
    from dcr_lite.model.packing import pad

    model, _, (rows, batches, geometry, how) = prepare(case, precision, stock_layers=True)
    model.network.train()
    n = len(rows) // 2

    def step(i: int) -> Outcome:
        chosen = [rows[k] for k in batches[i]] + [rows[n + k] for k in batches[i]]
        inputs = pad(chosen, model.tokenizer.pad_token_id, model.device).inputs
        with model.compute():
            out = model.network(**inputs, output_hidden_states=True, use_cache=False)
        last = inputs["attention_mask"].sum(-1) - 1
        # Entry 0 is the embedding, so entry L + 1 is what layer L puts out.
        states = out.hidden_states[how.layer + 1][torch.arange(len(chosen)), last].float()
        loss = how.loss(cosine_similarity(geometry(states)), kinds_of_pairs(len(batches[i]), model.device))
        loss.backward()
        return {"loss": loss.item(), **gradients(model.network)}

    return step


def main(case: Stage1) -> list[Result]:
    equal_to = require_equal(ours, plain, case)
    sides = {"ours": ours(case, case.timed_precision), "plain": plain(case, case.timed_precision)}
    seconds = in_turns(sides, case.repetitions, case.where)
    del sides
    speed = {name: [case.prompts / s for s in turns] for name, turns in seconds.items()}
    results = [Result.of("stage 1: step", speed["ours"], speed["plain"], "prompts/s", equal_to)]
    results += memory_results("stage 1", ours, plain, case, equal_to)
    return finish(case, results, "ours", "whole model, padded")


if __name__ == "__main__":
    main(tyro.cli(Stage1, description=__doc__))
