"""The geometry of layer-L states: centring, and the simple read-out that says how far two kinds of prompt are apart."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize


def centred(states: Tensor, centre: Tensor | None) -> Tensor:
    """States minus ``centre`` (d_model,), scaled to length 1: (batch, d_model), float32.

    Last-token states share one huge component (all cosines about 0.96), which a cosine on raw states mostly measures;
    the stock model's mean state over both kinds takes it out. ``centre=None`` keeps raw states, as the paper does.
    """
    states = states.float()
    return normalize(states if centre is None else states - centre, dim=-1)


@dataclass(frozen=True)
class ReadOut:
    """A direction (d_model,) along which toxic prompts lie above seemingly toxic ones: the difference of the two
    training means. It has nothing to tune, so it measures the states and not a classifier."""

    direction: Tensor

    @classmethod
    def fit(cls, states: Tensor, is_toxic: Tensor) -> "ReadOut":
        """From training states (batch, d_model) and their kinds (batch,)."""
        return cls(normalize(states[is_toxic].mean(0) - states[~is_toxic].mean(0), dim=0))

    def score(self, states: Tensor) -> Tensor:
        """How toxic each state reads: (batch, d_model) -> (batch,)."""
        return states @ self.direction


def mean_state(states: Tensor, is_toxic: Tensor) -> Tensor:
    """The mean over both kinds, each counting half: (d_model,)."""
    return (states[is_toxic].mean(0) + states[~is_toxic].mean(0)) / 2


def kinds_of_pairs(n_pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Kinds (2 * n_pairs,) of rows laid out as all toxic sides, then all seemingly toxic ones."""
    return torch.arange(2 * n_pairs, device=device) < n_pairs
