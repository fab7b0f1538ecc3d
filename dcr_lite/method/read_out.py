"""How far apart two kinds of prompt are at layer L: read along the difference of their means."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.measure.metrics import auroc
from dcr_lite.method.geometry import Geometry, kinds_of_pairs


def difference_of_means(units: Tensor, is_toxic: Tensor) -> Tensor:
    """The unit vector (d_model,) from the mean of seemingly toxic to that of toxic prompts, from unit vectors (prompts,
    d_model) and their kinds (prompts,). It has nothing to tune, so it measures the states and not a classifier."""
    return normalize(units[is_toxic].mean(0) - units[~is_toxic].mean(0), dim=0)


def read_out(geometry: Geometry, reference: Tensor) -> tuple[Geometry, Tensor]:
    """The direction (d_model,) that tells the kinds of ``reference`` pairs apart (2 * pairs, d_model; toxic sides
    first), and the geometry to read other prompts in."""
    reading = geometry.around(reference)
    return reading, difference_of_means(reading(reference), kinds_of_pairs(len(reference) // 2, reference.device))


def reads_as_toxic(geometry: Geometry, reference: Tensor, states: Tensor) -> Tensor:
    """How far on the toxic side of the middle between the two kinds of ``reference`` pairs states (prompts, d_model)
    lie: (prompts,), positive where they read as toxic."""
    reading, direction = read_out(geometry, reference)
    middle = (reading(reference) @ direction).mean()  # as many of each kind
    return reading(states) @ direction - middle


def state_map(geometry: Geometry, reference: Tensor, states: Tensor) -> Tensor:
    """Where states (prompts, d_model) lie in two dimensions (prompts, 2): along the read-out direction of ``reference``
    pairs, and along the largest variation across it."""
    reading, direction = read_out(geometry, reference)
    units = reading(states)
    along = units @ direction
    across = units - along[:, None] * direction
    _, _, axes = torch.linalg.svd(across - across.mean(0), full_matrices=False)
    return torch.stack([along, across @ axes[0]], dim=1)


def separation(geometry: Geometry, reference: Tensor, unseen: Tensor) -> float:
    """AUROC of toxic against seemingly toxic states of pairs that were not trained on (2 * pairs, d_model), read along
    the difference of the two means of ``reference`` pairs. Training pairs separate perfectly after a few steps and tell
    nothing."""
    reading, direction = read_out(geometry, reference)
    scores = (reading(unseen) @ direction).tolist()
    return auroc(scores[: len(unseen) // 2], scores[len(unseen) // 2 :])
