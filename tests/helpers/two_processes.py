"""One process of several: what test_distributed.py starts with torchrun's environment. Writes what it computed."""

import contextlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dcr_lite.compare.dpo import DPO
from dcr_lite.compare.preferences import Preference, Said
from dcr_lite.data.rows import read_conversations, read_pairs
from dcr_lite.method import losses
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop, Stage
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters, distributed, loading, states
from dcr_lite.run.launch import _several

ADAPTER = "first"
CASES = ("stage1", "stage1-circle", "stage1-parts", "stage2-above", "stage2-all", "dpo")


def stage_of(model: loading.Model, what: str, rows: Path) -> Stage:
    if what == "dpo":
        said = read_conversations(rows / "instructions.jsonl")[:13]
        answers = [Said(row.response, True) for row in said]
        preferences = [Preference(said[i].prompt, i % 2 == 0, i // 2, answers[i], answers[i - 1]) for i in range(13)]
        return DPO("dpo", model, ADAPTER, preferences, 0.25, 1e-2, 0, lambda: 0.0)
    if what.startswith("stage2"):
        mixture = read_conversations(rows / "instructions.jsonl")[:13]  # the last batch has one row
        above = 1 if what.endswith("above") else -1
        sft = SafetySFTConfig(above, epochs=1, batch_size=4, learning_rate=1e-2)
        return SafetySFT("stage2", model, ADAPTER, mixture, sft, seed=0)
    pairs = read_pairs(rows / "pairs.jsonl")
    loss = losses.circle(0.25, 16.0) if what.endswith("circle") else losses.supervised_contrastive(0.5)
    config = ContrastiveConfig(1, loss, "batch", True, steps=3, batch_size=10, learning_rate=1e-2)
    geometry = stock_geometry(model, encode_pairs(model, pairs[6:]), config)
    return ContrastiveRefinement(model, ADAPTER, pairs[6:], pairs[:6], config, geometry, seed=0)


def gradients_of(model: loading.Model, what: str, rows: Path) -> dict[str, Any]:
    """The gradient and the loss of every step of a stage on the given rows, and the weights at its end."""
    steps: list[torch.Tensor] = []
    clip = nn.utils.clip_grad_norm_

    def clip_and_keep(parameters: list[nn.Parameter], most: float) -> torch.Tensor:
        steps.append(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).clone())
        return clip(parameters, most)

    nn.utils.clip_grad_norm_ = clip_and_keep  # type: ignore[assignment]
    if what.endswith("parts"):  # several parts a process: GradCache
        states.TOKENS_PER_PASS = states.TOKENS_PER_PART = 64
    metrics = Loop(stage_of(model, what, rows)).run().metrics
    nn.utils.clip_grad_norm_ = clip
    return {
        "gradients": torch.stack(steps),
        "losses": [row["loss"] for row in metrics if "loss" in row],
        "observed": [row for row in metrics if "loss" not in row],
        "weights": adapters.adapter_weights(model, ADAPTER),
    }


def main(folder: Path, rows: Path, out: Path) -> None:
    with distributed.joined("cpu") if _several() else contextlib.nullcontext():
        found = {}
        for what in CASES:
            model = loading.load(folder, "cpu", torch.float32, four_bit=False)
            adapters.add_adapter(model, ADAPTER, rank=4, seed=0)
            found[what] = gradients_of(model, what, rows)
        torch.save(found, out / f"{distributed.rank()}.pt")
