"""Steered stock: the stock model shifted along its own difference of means. Training-free.

It is the control of a dial that shifts the states of layer L along the difference of the kinds' means after stage 1.
Here the same is done without stage 1: no shift makes the model tell apart what its states do not. The stock model's
means differ by little, so the shift is given the length of the spread of the states (their root mean square distance
from their mean).
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.compare.directions import Kinds, apart, spread, steered
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states

STRENGTHS = (-1.0, -0.5, -0.25, 0.25, 0.5)  # in units of the states' spread; fit takes the best of them


@dataclass(frozen=True)
class SteeredStock:
    """A fitted steering.

    vector: (d_model,), towards seemingly toxic prompts, of the length of the states' spread at layer L.
    strength: the one that sets the refusal probabilities of both kinds of validation prompts furthest apart; negative
        refuses more.
    """

    vector: Tensor
    strength: float


def fit(model: Model, training: Kinds, validation: Kinds, layer: int) -> SteeredStock:
    """For the model as it stands: the vector of ``layer`` from training prompts, the strength by validation prompts."""
    toxic, seemingly_toxic = (layer_states(model, rows, layer) for rows in (training.toxic, training.seemingly_toxic))
    towards = normalize(seemingly_toxic.mean(0) - toxic.mean(0), dim=0)
    vector = towards * spread(torch.cat([toxic, seemingly_toxic]))

    def of(strength: float) -> float:
        with steered(model, {layer: strength * vector}):
            return apart(model, validation)

    return SteeredStock(vector, max(STRENGTHS, key=of))
