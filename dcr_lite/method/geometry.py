"""The geometry of layer-L states: which differences count, and how far apart two kinds of prompt are."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.measure.metrics import auroc

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
        states = stock_states.double()
        mean = states.mean(0)
        if not whiten:
            return cls(centre, mean.float(), None)
        covariance = torch.cov(states.T)
        sphere = covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64, device=states.device)
        values, vectors = torch.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * sphere)
        return cls(centre, mean.float(), (vectors / values.clamp_min(1e-12).sqrt() @ vectors.T).float())

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


@dataclass(frozen=True)
class ReadOut:
    """A direction (d_model,) along which toxic prompts lie above seemingly toxic ones: the difference of the two
    training means. It has nothing to tune, so it measures the states and not a classifier."""

    direction: Tensor

    @classmethod
    def fit(cls, units: Tensor, is_toxic: Tensor) -> "ReadOut":
        """From unit vectors of training prompts (prompts, d_model) and their kinds (prompts,)."""
        return cls(normalize(units[is_toxic].mean(0) - units[~is_toxic].mean(0), dim=0))

    def score(self, units: Tensor) -> Tensor:
        """How toxic each prompt reads: (prompts, d_model) -> (prompts,)."""
        return units @ self.direction


def kinds_of_pairs(n_pairs: int, device: torch.device | str = "cpu") -> Tensor:
    """Kinds (2 * n_pairs,) of rows laid out as all toxic sides, then all seemingly toxic ones."""
    return torch.arange(2 * n_pairs, device=device) < n_pairs


def read_out(geometry: Geometry, reference: Tensor) -> tuple[Geometry, ReadOut]:
    """The direction that tells the kinds of ``reference`` pairs apart (2 * pairs, d_model; toxic sides first), and the
    geometry to read other prompts in."""
    reading = geometry.around(reference)
    return reading, ReadOut.fit(reading(reference), kinds_of_pairs(len(reference) // 2, reference.device))


def reads_as_toxic(geometry: Geometry, reference: Tensor, states: Tensor) -> Tensor:
    """How far on the toxic side of the middle between the two kinds of ``reference`` pairs states (prompts, d_model)
    lie: (prompts,), positive where they read as toxic."""
    reading, direction = read_out(geometry, reference)
    middle = direction.score(reading(reference)).mean()  # as many of each kind
    return direction.score(reading(states)) - middle


def state_map(geometry: Geometry, reference: Tensor, states: Tensor) -> Tensor:
    """Where states (prompts, d_model) lie in two dimensions (prompts, 2): along the read-out direction of ``reference``
    pairs, and along the largest variation across it."""
    reading, direction = read_out(geometry, reference)
    units = reading(states)
    along = direction.score(units)
    across = units - along[:, None] * direction.direction
    _, _, axes = torch.linalg.svd(across - across.mean(0), full_matrices=False)
    return torch.stack([along, across @ axes[0]], dim=1)


def separation(geometry: Geometry, reference: Tensor, unseen: Tensor) -> float:
    """AUROC of toxic against seemingly toxic states of pairs that were not trained on (2 * pairs, d_model), read along
    the difference of the two means of ``reference`` pairs. Training pairs separate perfectly after a few steps and tell
    nothing."""
    reading, direction = read_out(geometry, reference)
    scores = direction.score(reading(unseen)).tolist()
    return auroc(scores[: len(unseen) // 2], scores[len(unseen) // 2 :])
