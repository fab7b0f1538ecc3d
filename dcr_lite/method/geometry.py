"""The geometry of layer-L states: centred, whitened, of unit length, so that their cosines can be compared."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.method.whitening import whitening
from dcr_lite.model.double import in_double

Centre = Literal["batch", "stock", "none"]
SHRINKAGE = 0.3  # of the covariance towards a sphere: 840 states cannot estimate 576 x 576 numbers


@dataclass(frozen=True)
class Geometry:
    """How states (batch, d_model) become unit vectors whose cosines a loss may compare.

    centre: what is subtracted first. Last-token states share one huge component (all cosines about 0.96), which a
        cosine on raw states mostly measures. "stock" subtracts the stock model's mean over both kinds; "batch" the mean
        of the (balanced) batch itself, so that moving all states one way together gains nothing; "none" is the paper's.
    mean: the stock model's mean state, (d_model,).
    whitening: (d_model, d_model), the inverse square root of the stock model's covariance, shrunk; None leaves the
        states as they are. What prompts differ in most (topic, length, form) is not what makes them toxic.
    """

    centre: Centre
    mean: Tensor
    whitening: Tensor | None

    @classmethod
    def fit(cls, stock_states: Tensor, centre: Centre, whiten: bool) -> "Geometry":
        """From the stock model's states of as many prompts of each kind, (prompts, d_model)."""
        states, device = in_double(stock_states), stock_states.device
        mean = states.mean(0)
        whitened = whitening(states - mean, SHRINKAGE).float().to(device) if whiten else None
        return cls(centre, mean.float().to(device), whitened)

    def __call__(self, states: Tensor) -> Tensor:
        """Unit vectors (batch, d_model) of a training batch, float32."""
        states = states.float()
        if self.centre != "none":
            states = states - (states.mean(0) if self.centre == "batch" else self.mean)
        return normalize(states if self.whitening is None else states @ self.whitening, dim=-1)

    def around(self, states: Tensor) -> "Geometry":
        """The same geometry with the mean of ``states`` (prompts, d_model) for reading, where a prompt stands alone;
        unchanged where nothing or the stock mean is subtracted."""
        return Geometry("stock", states.float().mean(0), self.whitening) if self.centre == "batch" else self


def kinds_of_pairs(n_pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Kinds (2 * n_pairs,) of rows laid out as all toxic sides, then all seemingly toxic ones."""
    return torch.arange(2 * n_pairs, device=device) < n_pairs
