"""How much a training step on one prompt moves the first token of the answer to another: the empirical neural tangent
kernel, normalised.

With z(x) the logits of the first generated token and K(x', x) = grad z(x') grad z(x)^T over the adapter's weights, the
similarity of x' to x is ||K(x', x)||_F / ||K(x', x')||_F (Lu et al., arXiv 2603.03323, section 3). It is 1 where a step
on x does to x' what a step on x' itself does, 0 where it does nothing.

z = W h with h the last state behind the final norm and W the output matrix, which no adapter touches, so
||K(x', x)||_F = ||G M G||_F with M = grad h(x') grad h(x)^T and G the root of W^T W: d_model gradients a prompt instead
of one for every word of the vocabulary. Where even these are too many, random orthonormal rows R and S, scaled to keep
sizes, stand for them: the expectation of ||R G M G S^T||^2 is ||G M G||^2 (R and S independent). Gradients longer than
BUCKETS are folded by a count sketch (Charikar et al., 2002), which keeps inner products on average and adds to squares
about 1 / BUCKETS of what the lengths alone would give: far below what projections leave. Their error is stated with
every number, by the jackknife over them. Logits that a model caps are taken before the cap.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dcr_lite.model.hidden_states import final_states, output_matrix
from dcr_lite.model.loading import Model

BUCKETS = 2**16  # of the count sketch: an error of 1/256 of the product of two lengths in each inner product
FOLD_SEED = 1


@dataclass(frozen=True)
class Gradients:
    """Projected gradients of prompts, for each group of weights.

    left, right: groups of (prompts, projections, weights), the two independent sides; the same object where exact.
    states: (prompts, d_model), the last states h. exact: whether all of d_model was taken.
    """

    left: list[Tensor]
    right: list[Tensor]
    states: Tensor
    exact: bool


class _Fold:
    """A count sketch of vectors of ``size``: each entry with a random sign into a random bucket."""

    def __init__(self, size: int, device: torch.device):
        generator = torch.Generator().manual_seed(FOLD_SEED)
        self.whole = size <= BUCKETS
        if not self.whole:
            self.bucket = torch.randint(BUCKETS, (size,), generator=generator).to(device)
            self.sign = (torch.randint(2, (size,), generator=generator) * 2 - 1).float().to(device)

    def __call__(self, vector: Tensor) -> Tensor:
        if self.whole:
            return vector
        return torch.zeros(BUCKETS, device=vector.device).index_add_(0, self.bucket, vector * self.sign)


def _root(matrix: Tensor) -> Tensor:
    """The root of W^T W of an output matrix W (vocabulary, d_model): symmetric (d_model, d_model)."""
    values, vectors = torch.linalg.eigh(matrix.double().T @ matrix.double())
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).float()


def _projections(d_model: int, n: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows (n, d_model), uniform over all such (Mezzadri, 2007), scaled by sqrt(d_model / n)."""
    q, r = torch.linalg.qr(torch.randn(d_model, n, generator=generator))
    return (q * r.diagonal().sign()).T * (d_model / n) ** 0.5


def gradients(
    model: Model,
    groups: Sequence[Sequence[nn.Parameter]],
    rows: list[list[int]],
    projections: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Gradients:
    """Projected gradients of prompts given as token ids, for each group of weights by itself; ``projections`` on each
    side, or exact from d_model on. The weights given require gradients within the call. ``progress`` hears of every
    prompt."""
    network = model.network.eval()
    root = _root(output_matrix(network)).to(model.device)
    d_model = len(root)
    exact = projections >= d_model
    generator = torch.Generator().manual_seed(seed)
    sides = [root] if exact else [_projections(d_model, projections, generator).to(root) @ root for _ in range(2)]
    weights = [weight for group in groups for weight in group]
    before = [weight.requires_grad for weight in weights]
    folds = [_Fold(sum(w.numel() for w in group), root.device) for group in groups]
    found: list[list[list[Tensor]]] = [[[] for _ in groups] for _ in sides]
    states = []
    try:
        for weight in weights:
            weight.requires_grad_(True)
        for row in rows:
            batch = model.batch([row], 0)
            with model.compute():
                state = final_states(network, batch, batch.last)[0].float()
            states.append(state.detach().cpu())
            for side, kept in zip(sides, found, strict=True):
                ours: list[list[Tensor]] = [[] for _ in groups]
                for direction in side:
                    slopes = torch.autograd.grad(state @ direction, weights, retain_graph=True, allow_unused=True)
                    whole = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, slopes, strict=True)]
                    start = 0
                    for group, fold, own in zip(groups, folds, ours, strict=True):
                        part = torch.cat([g.flatten().float() for g in whole[start : start + len(group)]])
                        own.append(fold(part).cpu())
                        start += len(group)
                for own, all_rows in zip(ours, kept, strict=True):
                    all_rows.append(torch.stack(own))
            progress(1)
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)
    stacked = [[torch.stack(group) for group in side] for side in found]
    return Gradients(stacked[0], stacked[-1], torch.stack(states), exact)


def products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Kernel blocks (prompts, prompts, projections, projections), summed over groups of weights."""
    total = torch.zeros(())
    for a, b in zip(left, right, strict=True):
        total = total + torch.einsum("akd,bld->abkl", a, b)
    return total


def similarity(blocks: Tensor) -> Tensor:
    """||K(x', x)|| / ||K(x', x')|| from kernel blocks: (prompts x', prompts x)."""
    sizes = blocks.square().sum((2, 3))
    return (sizes / sizes.diagonal()[:, None]).sqrt()


def mean_similarity(blocks: Tensor, of: Tensor, exact: bool) -> tuple[float, float]:
    """The mean similarity over the pairs of prompts marked in ``of`` (prompts, prompts), and its standard error from
    projections, by leaving out each of them in turn; 0 where exact."""
    value = float(similarity(blocks)[of].mean())
    n = blocks.shape[-1]
    if exact or n < 2:
        return value, 0.0 if exact else float("nan")
    without = []
    for i in range(n):
        rest = torch.arange(n) != i
        without.append(float(similarity(blocks[:, :, rest][..., rest])[of].mean()))
    spread = torch.tensor(without, dtype=torch.float64)
    return value, float(((n - 1) / n * (spread - spread.mean()).square().sum()).sqrt())


def last_layer_similarity(states: Tensor) -> Tensor:
    """The same with respect to the output matrix alone, exact: there K(x', x) = (h' . h) I, from last states
    (prompts, d_model): (prompts x', prompts x)."""
    inner = states @ states.T
    return inner.abs() / inner.diagonal()[:, None]
