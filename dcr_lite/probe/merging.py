"""A model whose adapter is merged into its weights for a while: what rounding and further fine-tuning start from."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model


def linear_maps(model: Model) -> list[tuple[nn.Linear, Any]]:
    """Every linear map of the decoder, with its LoRA layer or None. Embeddings and the output matrix are not among
    them."""
    modules = list(decoder_of(model.network).modules())
    adapted = [module for module in modules if isinstance(module, LoraLayer)]
    inside = {id(part) for layer in adapted for part in layer.modules()}  # its base layer and its factors
    alone = [module for module in modules if isinstance(module, nn.Linear) and id(module) not in inside]
    return [(layer.base_layer, layer) for layer in adapted] + [(module, None) for module in alone]


def active_adapter(model: Model) -> str | None:
    """The name of the adapter that answers, None for the stock model."""
    # Not every map needs to have it, and one whose adapter was deleted has a layer of none.
    layers = [layer for _, layer in linear_maps(model) if layer is not None and not layer.disable_adapters]
    return next((name for layer in layers for name in layer.active_adapters if name in layer.lora_A), None)


@contextmanager
def merged(model: Model, change: Callable[[Tensor], Tensor] = lambda weight: weight) -> Iterator[None]:
    """Within the block every linear map of the decoder holds its weight plus that of the active adapter, (out, in),
    added up in float32, passed through ``change`` and rounded to the weight's own type; the adapter adds nothing more.
    After it weights and adapter are what they were, bit for bit.

    Hooks and steering, with which some compared methods work, stay as they are. The base model must not be in 4 bits.
    """
    name = active_adapter(model)
    with ExitStack() as undo:
        for base, layer in linear_maps(model):
            whole = base.weight.data
            wide = whole.float()
            if layer is not None and name in layer.lora_A:
                wide = wide + layer.get_delta_weight(name).float()
                undo.callback(layer.scaling.__setitem__, name, layer.scaling[name])
                layer.scaling[name] = 0.0
            undo.callback(setattr, base.weight, "data", whole)
            base.weight.data = change(wide).to(whole.dtype)
        yield
