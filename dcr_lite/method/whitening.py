"""The inverse square root of a shrunk covariance, of far fewer states than would estimate one."""

import torch
from torch import Tensor


def whitening(centred: Tensor, shrinkage: float) -> Tensor:
    """The matrix (d_model, d_model) that gives centred states (n, d_model; float64) a like spread in every direction:
    the inverse square root of their covariance, shrunk towards the sphere of the same trace.

    From the products of the states with each other, n squared of them, where a covariance has d_model squared: in a
    direction that no state takes the shrunk covariance is the sphere alone.
    """
    n, d_model = centred.shape
    variances, vectors = torch.linalg.eigh(centred @ centred.T / (n - 1))
    variances = variances.clamp_min(1e-12)
    sphere = shrinkage * variances.sum() / d_model
    across = sphere.rsqrt()
    along = ((1 - shrinkage) * variances + sphere).rsqrt()
    directions = (vectors / (variances * (n - 1)).sqrt()).T @ centred
    whole = directions.T * (along - across) @ directions
    whole.diagonal().add_(across)
    return whole
