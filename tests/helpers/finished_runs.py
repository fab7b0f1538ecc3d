"""Finished runs with a random adapter, for the tests of what becomes of them, and how near two models' answers are."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tiny_models import ADAPTER, add_random_adapter
from torch import Tensor

from dcr_lite.data.sources import SMOLLM2
from dcr_lite.export.command import FinishedRun, open_finished
from dcr_lite.model.adapters import save_adapter, set_adapter_weights
from dcr_lite.model.loading import Model, load

MakeRun = Callable[..., tuple[FinishedRun, Model]]


def finished_run(like: Path, model: Model, name: str, folder: Path) -> FinishedRun:
    add_random_adapter(model)
    save_adapter(model, ADAPTER, folder / "adapter")
    report = json.loads((like / "report.json").read_text()) | {"model": name}
    (folder / "report.json").write_text(json.dumps(report))
    return open_finished(folder)


def smollm2_run(like: Path, weights: str, folder: Path) -> tuple[FinishedRun, Model]:
    """A run of the real SmolLM2-135M-Instruct, whose ``weights`` are here, in float32."""
    model = load(weights, "cpu", torch.float32, four_bit=False)
    model.network.config.name_or_path = SMOLLM2
    run = finished_run(like, model, SMOLLM2, folder)
    adapter = load_file(run.adapter / "adapter_model.safetensors")
    gentle = {k: v * 0.2 for k, v in adapter.items()}  # of the size that training gives: answers still make sense
    save_file(gentle, run.adapter / "adapter_model.safetensors")
    set_adapter_weights(model, ADAPTER, gentle)
    return run, model


def logits(network: Any, row: list[int]) -> Tensor:
    """(seq, vocabulary)"""
    with torch.no_grad():
        return network(input_ids=torch.tensor([row]), use_cache=False).logits[0].float()


def divergence(a: Tensor, b: Tensor) -> float:
    """Mean Kullback-Leibler divergence of b from a, in nats a token."""
    a, b = a.log_softmax(-1), b.log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1).mean().item()


def rounded(network: Any) -> Any:
    """The network with its matrices rounded to bfloat16, as a GGUF of that type holds them."""
    for parameter in network.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.bfloat16().float()
    return network
