"""Last-token states at layer L of a model of which only the last layers up to L train."""

from collections.abc import Mapping

from torch import Tensor

from dcr_lite.model.hidden_states import prompt_states, states_between
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix
from dcr_lite.model.states import states_in_passes
from dcr_lite.model.states_below import states_below


class RefinedStates:
    """The states at ``layer`` of the last tokens of numbered rows of token ids. What enters layer ``first``, the first
    one that trains, is computed once."""

    def __init__(self, model: Model, rows: Mapping[int, list[int]], first: int, layer: int):
        self.model, self.rows, self.layers = model, rows, range(first, layer + 1)
        self.prefix = shared_prefix(list(rows.values()))
        self.below = states_below(model, rows, self.prefix, first - 1) if first else None

    def of(self, numbers: list[int]) -> Tensor:
        """The states of these rows, (rows, d_model), float32."""
        rows, network = [self.rows[i] for i in numbers], self.model.network
        with self.model.compute():
            if self.below is None:
                return prompt_states(network, self.model.batch(rows), self.layers[-1])
            batch = self.model.batch(rows, self.prefix)
            entering = self.below.of(batch, numbers)
            return states_between(network, batch, entering, self.layers, batch.last).float()

    def read(self, numbers: list[int]) -> Tensor:
        """The same without gradient, in passes that fit. Raises UserError where one is not finite."""
        rows = [self.rows[i] for i in numbers]
        return states_in_passes(self.model, rows, self.layers[-1], lambda part: self.of([numbers[i] for i in part]))
