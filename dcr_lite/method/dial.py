"""The dial: how much a model refuses, chosen after training by one number, in the adapter's weights.

Stage 1 leaves toxic and seemingly toxic prompts apart at layer L, and says nothing of what the layers above make of it.
Two things are therefore added to what L puts out, along one direction, ``shift``: that in which the model's own
log-odds of refusing fall fastest, by their gradient. By ``strength``, the same at every token: the model answers more,
or, below 0, refuses more. By ``gain``, as far as ``reader`` tells the prompt's last token to be of the seemingly toxic
or of the toxic kind: the model does what the states say.

The weights can do both, since the input x of a linear map is wide and has a large common component: there is a ``key``
with key . x close to 1 for all x, and a ``reader`` with reader . x close to 1 at the end of harmless prompts, to -1 at
the end of toxic ones, and to 0 at all other tokens (ridge regression). So one rank of a LoRA adapter on the last map of
layer L, with A = strength * key + gain * reader and B = shift, does it: it merges into the weights, and no runtime has
to know of it.

Gemma and OLMo 3 take a norm of what that map puts out. There key and reader are fitted to what the norm divides by, and
the shift is divided by what it multiplies with. The vector so arrives as wanted while it is small beside what the norm
puts out (to 0.94 times at a third of it, 0.68 times at the same size), and the dial turns less and less beyond.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_tensors, save_tensors
from dcr_lite.model.adapters import remove_extra_ranks, set_extra_ranks
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model
from dcr_lite.model.mixed_adapters import Factors

CURE = "Delete it to have it fitted again."
KEY, READER = "the dial's key", "the dial's reader"  # its parts
ANOTHER_MODEL = f"the dial belongs to another model. {CURE}"


@dataclass(frozen=True)
class Dial:
    """What turns a model between answering and refusing.

    layer: L. shift: what strength 1 adds to the states that L puts out, (d_model,). key: the vector whose product with
    every input of L's down_proj is near 1, or, where a norm follows, near the root mean square of its output:
    (mlp_width,). reader: likewise, near 1 at the end of harmless prompts, -1 of toxic ones, 0 elsewhere. gain: shifts
    for each unit of the reader's product. All in float32 on the CPU.
    """

    layer: int
    shift: Tensor
    key: Tensor
    reader: Tensor
    gain: float = 0.0

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or absent."""
        numbers = {"layer": torch.tensor(self.layer), "gain": torch.tensor(self.gain)}
        save_tensors({"shift": self.shift, "key": self.key, "reader": self.reader} | numbers, path)

    @classmethod
    def load(cls, path: Path) -> "Dial":
        """What ``save`` wrote. Raises UserError where the file is missing or damaged."""
        found = load_tensors(path, CURE)
        try:
            dial = cls(
                int(found["layer"]), found["shift"], found["key"], found["reader"], round(float(found["gain"]), 6)
            )
        except (LookupError, ValueError, RuntimeError):
            raise damaged(path, CURE) from None
        vectors = (dial.shift, dial.key, dial.reader)
        if not all(t.dim() == 1 and t.dtype == torch.float32 and t.isfinite().all() for t in vectors):
            raise damaged(path, CURE)
        if dial.key.shape != dial.reader.shape or not math.isfinite(dial.gain):
            raise damaged(path, CURE)
        return dial


def set_strength(model: Model, adapter: str, dial: Dial, strength: float | None) -> None:
    """Turn the dial of an adapter: positive answers more, negative refuses more; at 0 the reader alone decides. None
    takes the dial off, and the adapter is as trained, bit for bit. Takes no time.

    Raises UserError for a dial of another model.
    """
    name, written = _written(model, dial)
    if strength is None or strength == dial.gain == 0:
        remove_extra_ranks(model, adapter, name)
    else:
        read = strength * dial.key + dial.gain * dial.reader
        set_extra_ranks(model, adapter, name, read[None], written)


def parts(model: Model, dial: Dial) -> dict[str, Factors]:
    """The dial as parts that rows of one batch have at strengths of their own (``model/mixed_adapters.py``); ``shares``
    has how much of each. Raises UserError as ``set_strength``."""
    name, written = _written(model, dial)
    return {KEY: {name: (dial.key[None], written)}, READER: {name: (dial.reader[None], written)}}


def shares(dial: Dial, strength: float | None) -> dict[str, float]:
    """How much of each of ``parts`` a row has with the dial at a strength, or, of None, without it."""
    return {} if strength is None else {KEY: strength, READER: dial.gain}


def _written(model: Model, dial: Dial) -> tuple[str, Tensor]:
    """The name of the map that carries the dial, and what strength 1 adds to what it puts out, (d_model, 1)."""
    layer, name = carrier(model, dial.layer)
    shape = layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features
    if shape != (len(dial.key), len(dial.shift)):
        raise UserError(ANOTHER_MODEL)
    return name, (dial.shift / norm_weight(layer))[:, None]


@contextmanager
def turned(model: Model, adapter: str, dial: Dial, strength: float) -> Iterator[None]:
    """Within the block the dial of an adapter stands at a strength; afterwards the adapter is as trained. Raises
    UserError as ``set_strength``."""
    set_strength(model, adapter, dial, strength)
    try:
        yield
    finally:
        set_strength(model, adapter, dial, None)


# --- where layer L can carry the dial ---------------------------------------------------------------------------------


def carrier(model: Model, number: int) -> tuple[Any, str]:
    """The decoder layer, and its down_proj's name in the base model. Raises UserError where there is no such map."""
    layers = decoder_of(model.network).layers
    if not 0 <= number < len(layers):
        raise UserError(ANOTHER_MODEL)
    layer = layers[number]
    if not hasattr(getattr(layer, "mlp", None), "down_proj"):
        kind = model.network.config.model_type
        raise UserError(
            f"a model of type {kind} cannot carry a dial: its layers have no mlp.down_proj. Use --dial none, with "
            "another --run if this one has begun."
        )
    modules = model.network.get_base_model().named_modules()
    return layer, next(name for name, module in modules if module is layer.mlp.down_proj)


def _norm_behind(layer: Any) -> Any:
    """The norm between down_proj and what the layer puts out, as in Gemma and OLMo 3, and by its other name in GLM 4;
    None in most models."""
    return getattr(layer, "post_feedforward_layernorm", getattr(layer, "post_mlp_layernorm", None))


def wanted_sizes(layer: Any, outputs: Tensor) -> Tensor:
    """What a product with the inputs of down_proj has to be in place of 1, from its outputs (tokens, d_model): 1; the
    norm that may follow divides by the root mean square, which therefore stands here."""
    return outputs.square().mean(-1).sqrt() if _norm_behind(layer) is not None else torch.ones(len(outputs))


def norm_weight(layer: Any) -> Tensor | float:
    """What the norm behind down_proj multiplies by, (d_model,): its answer to ones. 1 where there is none."""
    norm = _norm_behind(layer)
    if norm is None:
        return 1.0
    width = layer.mlp.down_proj.out_features
    return norm(torch.ones(width, device=layer.mlp.down_proj.weight.device)).detach().float().cpu()
