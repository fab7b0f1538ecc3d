"""What the sides of a benchmark are made of: the model with an adapter, its gradients, and the plain way to the states
of stage 1."""

from typing import Any

import torch
from _measure import Case
from torch import Tensor
from transformers.utils import logging

from dcr_lite.data.sources import locate
from dcr_lite.method.geometry import kinds_of_pairs
from dcr_lite.method.losses import cosine_similarity, supervised_contrastive
from dcr_lite.model import adapters, loading
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import pad

ADAPTER, RANK = "benchmark", 16  # as in the recipes


def load(case: Case, precision: torch.dtype, stock_layers: bool = False, fresh: bool = False) -> Model:
    """The model with an adapter; see ``give_adapter``."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = loading.load(locate(case.model)[0], case.where, precision, four_bit=False)
    give_adapter(model, case.seed, stock_layers, fresh)
    return model


def give_adapter(model: Model, seed: int, stock_layers: bool = False, fresh: bool = False) -> None:
    """Adds an adapter whose every weight has a gradient; a ``fresh`` one changes nothing, and half of its weights have
    no gradient.

    stock_layers: the library's own layers and scaled-dot-product attention instead of the package's."""
    if stock_layers and model.packs:
        model.network.set_attn_implementation("sdpa")
    adapters.add_adapter(model, ADAPTER, RANK, seed)
    if stock_layers:
        library_layers(model.network)
    if fresh:
        return
    generator = torch.Generator().manual_seed(seed)
    weights = adapters.adapter_weights(model, ADAPTER)
    for key, value in weights.items():
        if "lora_B" in key:
            weights[key] = torch.randn(value.shape, generator=generator) * 0.01
    adapters.set_adapter_weights(model, ADAPTER, weights)


def library_layers(network: torch.nn.Module) -> None:
    """Give every module of a network the library's own forward pass."""
    for module in network.modules():
        module.__dict__.pop("forward", None)


def gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient by its parameter's name; the gradients are cleared."""
    taken = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            taken[name] = parameter.grad.detach().float().cpu()
            parameter.grad = None
    return taken


def padded_states(model: Model, rows: list[list[int]], layer: int, **options: Any) -> Tensor:
    """Last-token states at ``layer`` from the whole model on padded rows, as the documentation of transformers has it:
    (prompts, d_model), float32. ``options`` go to the model's forward pass."""
    filler = model.tokenizer.pad_token_id if model.tokenizer else 0
    batch = pad(rows, filler, model.device)
    with model.compute():
        out = model.network(**batch.inputs, output_hidden_states=True, use_cache=False, **options)
    # Entry 0 is the embedding, so entry L + 1 is the output of layer L.
    return out.hidden_states[layer + 1].flatten(0, 1)[batch.last].float()


def batch_loss(states: Tensor) -> Tensor:
    """The supervised contrastive loss of states (batch, d_model), centred by the batch."""
    kinds = kinds_of_pairs(len(states) // 2, states.device)
    return supervised_contrastive(0.5)(cosine_similarity(states.float() - states.float().mean(0)), kinds)
