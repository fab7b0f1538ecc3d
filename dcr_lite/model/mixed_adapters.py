"""Several adapters in one forward pass, each for its own rows of the batch.

The low-rank factors of all parts lie side by side at each linear map, and a gate for each row says how much of each
part it gets (as Chen et al., Punica, arXiv 2310.18547, do by a kernel). So one pass reads the base weights once,
whichever models its rows are of, and a dial can stand differently for each row.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.model.adapters import lora_layers
from dcr_lite.model.few_rows import linear
from dcr_lite.model.loading import Model

# By the name of a linear map in the base model: (rank, inputs) and (outputs, rank), whose product is added to it.
Factors = Mapping[str, tuple[Tensor, Tensor]]
Row = Mapping[str, float]  # how much of each part a row gets; parts that are not named do nothing
Layout = tuple[tuple[str, int], ...]  # the parts that are on a map, in order, and their ranks


@dataclass
class _Map:
    """What all parts add to one linear map: ``a`` (ranks, inputs) and ``b`` (outputs, ranks)."""

    layout: Layout
    a: Tensor
    b: Tensor


class MixedAdapters:
    """Takes over every LoRA layer of a model for inference. ``set_rows`` is told the rows of the passes that follow;
    before that all are of the base model."""

    def __init__(self, model: Model):
        self._model = model
        self._parts: dict[str, Factors] = {}
        self._maps: dict[str, _Map] = {}  # by their names in the base model, as in Factors
        self._gates: dict[Layout, Tensor | None] = {}
        self.take_over()

    def add(self, part: str, factors: Factors) -> None:
        """Have a further part. Where memory does not suffice, everything is as before."""
        self._have(self._parts | {part: factors})

    def remove(self, part: str) -> None:
        """Have a part no more."""
        self._have({name: factors for name, factors in self._parts.items() if name != part})

    def _have(self, parts: dict[str, Factors]) -> None:
        names = dict.fromkeys(name for factors in parts.values() for name in factors)
        maps = {name: on_map for name in names if (on_map := self._on_map(name, parts))}
        self._parts, self._maps = parts, maps
        self.take_over()

    def take_over(self) -> None:
        """Compute in every LoRA layer; to be called again when peft has added layers."""
        for name, layer in lora_layers(self._model).items():
            layer.forward = partial(self._forward, layer.base_layer, self._maps.get(name))
        self._gates = {on_map.layout: None for on_map in self._maps.values()}

    def _on_map(self, name: str, parts: dict[str, Factors]) -> _Map | None:
        device, precision = self._model.device, self._model.precision
        found = {part: factors[name] for part, factors in parts.items() if name in factors}
        found = {part: (a, b) for part, (a, b) in found.items() if b.any()}  # zeros, where nothing was trained
        if not found:
            return None
        layout = tuple((part, len(a)) for part, (a, _) in found.items())
        # Moved before they are put together: a dial's are on the CPU, whatever the model is on.
        every_a, every_b = ([one.to(device, precision) for one in side] for side in zip(*found.values(), strict=True))
        return _Map(layout, torch.cat(every_a), torch.cat(every_b, 1))

    def set_rows(self, rows: Sequence[Row]) -> None:
        """What each row of the following passes is. One row stands for all of them, however they are laid out; else
        the inputs have to be (rows, tokens, inputs). Raises KeyError for a part that there is not."""
        if unknown := {part for row in rows for part in row} - self._parts.keys():
            raise KeyError(*unknown)
        same = all(row == rows[0] for row in rows)
        for layout in self._gates:
            shares = [[row.get(part, 0.0) for part, rank in layout for _ in range(rank)] for row in rows]
            gate = torch.tensor(shares[0] if same else shares, device=self._model.device, dtype=self._model.precision)
            self._gates[layout] = (gate if same else gate[:, None]) if gate.any() else None

    def _forward(self, base: nn.Module, on_map: _Map | None, x: Tensor) -> Tensor:
        if type(base) is nn.Linear:
            x = x.to(base.weight.dtype)
        out: Tensor = base(x)
        gate = self._gates[on_map.layout] if on_map else None
        if on_map is None or gate is None:
            return out
        inner = linear(x.to(on_map.a.dtype), on_map.a) * gate
        return out.add_(linear(inner, on_map.b))


def factors(model: Model, name: str) -> Factors:
    """What an adapter adds, at its scale; at scale 1, the kit's own, they are its weights and no copies."""
    return {key: _factors_of(layer, name) for key, layer in lora_layers(model).items() if name in layer.r}


def _factors_of(layer: Any, name: str) -> tuple[Tensor, Tensor]:
    a, b, scale = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach(), layer.scaling[name]
    return a, b if scale == 1 else b * scale
