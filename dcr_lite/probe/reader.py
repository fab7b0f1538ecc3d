"""Whether a model's states at layer L still tell toxic from seemingly toxic prompts while its answers may not: read as
the states of training pairs have it, which the same model gave before it was probed."""

from dataclasses import dataclass

from torch import Tensor

from dcr_lite.data.rows import Pair
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, encode_pairs
from dcr_lite.method.geometry import Geometry
from dcr_lite.method.read_out import reads_as_toxic
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states


@dataclass(frozen=True)
class Reader:
    """The direction between the means of both kinds in whitened states of layer ``layer``, with the model's own states
    of training pairs (2 * pairs, d_model), toxic sides first, that give it."""

    layer: int
    geometry: Geometry
    reference: Tensor

    @classmethod
    def fit(cls, model: Model, pairs: list[Pair], layer: int) -> "Reader":
        """From the model as it stands, which is to be without a probe."""
        states = layer_states(model, encode_pairs(model, pairs[:GEOMETRY_PAIRS]), layer)
        return cls(layer, Geometry.fit(states, "stock", whiten=True), states)

    def toxicity(self, model: Model, rows: list[list[int]]) -> list[float]:
        """How far on the toxic side the states of the last tokens of ``rows`` lie, of the model as it stands: one
        number a row. What a method adds to states while it decodes is not in them."""
        return reads_as_toxic(self.geometry, self.reference, layer_states(model, rows, self.layer)).tolist()
