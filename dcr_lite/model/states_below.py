"""States that do not change while only later layers train: computed once, or anew where they fill the memory; and what
the later layers make of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dcr_lite.model import distributed
from dcr_lite.model.free_memory import free_memory
from dcr_lite.model.hidden_states import states_at_layer, states_between, width_of
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import Batch, shared_prefix
from dcr_lite.model.states import states_in_passes

STORED_SHARE = 0.25  # of this computer's free memory that they may take


class StoredStates:
    """The states that layer ``layer`` puts out for numbered rows of token ids, computed once. Held on the CPU in the
    model's precision, the shared prefix once."""

    def __init__(self, model: Model, rows: Mapping[int, list[int]], prefix: int, layer: int):
        self.layer = layer
        self.shared = torch.empty(0)
        model.set_training(False)

        numbers = list(rows)

        def states_of(part: list[int]) -> list[Tensor]:
            batch = model.batch([rows[numbers[k]] for k in part], prefix)
            with model.compute():
                states = states_at_layer(model.network, batch, layer).cpu()
            self.shared = states[: batch.shared].clone()
            return [states[places.cpu()].clone() for places in batch.index]

        states = in_passes(model.passes(list(rows.values()), shared=prefix), states_of)
        self.rows = dict(zip(numbers, states, strict=True))

    def of(self, batch: Batch, chosen: list[int]) -> Tensor:
        """The states of the chosen rows, laid out as ``batch``: (batch, seq, d_model)."""
        shape = batch.inputs["input_ids"].shape
        flat = self.shared.new_zeros(shape.numel(), self.shared.shape[1])
        flat[: batch.shared] = self.shared
        for i, places in zip(chosen, batch.index, strict=True):
            flat[places.cpu()] = self.rows[i]
        return flat.view(*shape, -1).to(batch.inputs["input_ids"].device)


class FreshStates:
    """The same states, computed anew for each batch: rows by the ten thousand of a wide model fill a computer."""

    def __init__(self, model: Model, layer: int):
        self.model, self.layer = model, layer

    def of(self, batch: Batch, chosen: list[int]) -> Tensor:
        """The states of the chosen rows, laid out as ``batch``: (batch, seq, d_model)."""
        with torch.no_grad():
            states = states_at_layer(self.model.network, batch, self.layer)
        return states.view(*batch.inputs["input_ids"].shape, -1)


def states_below(model: Model, rows: Mapping[int, list[int]], prefix: int, layer: int) -> StoredStates | FreshStates:
    """The states that ``layer`` puts out for rows of token ids with a shared prefix, by their numbers, while nothing up
    to that layer trains: stored where they fit into this computer's memory."""
    # A padded batch has no prefix in common; and each of several processes stores all rows.
    own = prefix if model.packs else 0
    needed = (
        sum(len(row) - own for row in rows.values())
        * distributed.world()
        * width_of(model.network)
        * model.precision.itemsize
    )
    if needed > STORED_SHARE * free_memory("cpu"):
        return FreshStates(model, layer)
    return StoredStates(model, rows, prefix, layer)


class RefinedStates:
    """The states at ``layer`` of numbered rows of token ids, while only the layers from ``first`` up to it train: what
    enters the first one is computed once."""

    def __init__(self, model: Model, rows: Mapping[int, list[int]], first: int, layer: int):
        self.model, self.rows, self.layers = model, rows, range(first, layer + 1)
        self.prefix = shared_prefix(list(rows.values()))
        self.below = states_below(model, rows, self.prefix, first - 1) if first else None

    def of(self, numbers: list[int]) -> Tensor:
        """The states of the last tokens of these rows, (rows, d_model), float32."""
        batch = self.batch(numbers)
        with self.model.compute():
            return self.forward(batch, numbers, batch.last).float()

    def batch(self, numbers: list[int]) -> Batch:
        """These rows, laid out for ``forward``."""
        return self.model.batch([self.rows[i] for i in numbers], self.prefix if self.below else None)

    def forward(self, batch: Batch, numbers: list[int], places: Tensor | None = None) -> Tensor:
        """The states of all tokens of a ``batch`` of these rows, (batch * seq, d_model), or at ``places`` of these
        alone (places, d_model)."""
        network = self.model.network
        if self.below is None:
            return states_at_layer(network, batch, self.layers[-1], places)
        return states_between(network, batch, self.below.of(batch, numbers), self.layers, places)

    def read(self, numbers: list[int]) -> Tensor:
        """The same without gradient, in passes that fit. Raises UserError where one is not finite."""
        rows = [self.rows[i] for i in numbers]
        return states_in_passes(self.model, rows, self.layers[-1], lambda part: self.of([numbers[i] for i in part]))
