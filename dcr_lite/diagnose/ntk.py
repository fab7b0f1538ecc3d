"""The empirical neural tangent kernel of the first token of the answer, normalised: how much a training step on one
prompt moves the first token of another.

With z(x) the logits of the first generated token and K(x', x) = grad z(x') grad z(x)^T over the adapter's weights, the
similarity of x' to x is ||K(x', x)||_F / ||K(x', x')||_F (Lu et al., arXiv 2603.03323, section 3). It is 1 where a step
on x does to x' what a step on x' itself does, 0 where it does nothing.

z = W h with h the last state behind the final norm and W the output matrix, which no adapter changes, so
||K(x', x)||_F = ||G M G||_F with M = grad h(x') grad h(x)^T and G the root of W^T W: d_model gradients a prompt instead
of one for every token of the vocabulary. Where even these are too many, random orthonormal rows R and S, scaled to keep
sizes, replace G's: the expectation of ||R G M G S^T||^2 is ||G M G||^2 (R and S independent). Gradients longer than
BUCKETS are folded by a count sketch (Charikar et al., 2002), which keeps inner products on average and adds to squares
about 1 / BUCKETS of what the lengths alone would give: far below the error of the projections. That error is given with
every number, by the jackknife over them. Logits that a model caps are taken before the cap.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.model.adapters import train_only
from dcr_lite.model.double import in_double
from dcr_lite.model.hidden_states import depth, final_states, output_matrix
from dcr_lite.model.loading import Model, require_finite
from dcr_lite.names import LABELS

BUCKETS = 2**16  # of the count sketch: an error of 1/256 of the product of two lengths in each inner product
FOLD_SEED = 1
COLUMNS = 512  # of the output matrix, in float64 at a time


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
    # In blocks: a float64 copy of an 8B model's output matrix takes 4.2 GB.
    blocks = matrix.split(COLUMNS, dim=1)
    product = torch.cat([torch.cat([in_double(a).T @ in_double(b) for b in blocks], dim=1) for a in blocks])
    values, vectors = torch.linalg.eigh(product)
    return ((vectors * values.clamp_min(0).sqrt()) @ vectors.T).to(matrix.device, torch.float32)


def _projections(d_model: int, n: int, generator: torch.Generator) -> Tensor:
    """Random orthonormal rows (n, d_model), uniform over all such (Mezzadri, 2007), scaled by sqrt(d_model / n)."""
    q, r = torch.linalg.qr(torch.randn(d_model, n, generator=generator))
    return (q * r.diagonal().sign()).T * (d_model / n) ** 0.5


@contextmanager
def _trainable(weights: list[nn.Parameter]) -> Iterator[None]:
    """Within the block the weights require gradients."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, trained in zip(weights, before, strict=True):
            weight.requires_grad_(trained)


def gradients(
    model: Model,
    groups: Sequence[Sequence[nn.Parameter]],
    rows: list[list[int]],
    projections: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Gradients:
    """Projected gradients of prompts given as token ids, for each group of weights by itself; ``projections`` on each
    side, or exact from d_model on. ``progress`` is called with 1 after every prompt."""
    network = model.network.eval()
    root = _root(output_matrix(network)).to(model.device)
    d_model = len(root)
    exact = projections >= d_model
    generator = torch.Generator().manual_seed(seed)
    sides = [root] if exact else [_projections(d_model, projections, generator).to(root) @ root for _ in range(2)]
    weights = [weight for group in groups for weight in group]
    folds = [_Fold(sum(w.numel() for w in group), root.device) for group in groups]

    def folded(value: Tensor) -> list[Tensor]:
        """The gradient of a number in each group."""
        slopes = iter(torch.autograd.grad(value, weights, retain_graph=True, materialize_grads=True))
        flat = [torch.cat([next(slopes).flatten().float() for _ in group]) for group in groups]
        return [fold(slope).cpu() for fold, slope in zip(folds, flat, strict=True)]

    states: list[Tensor] = []
    of_side: list[list[list[Tensor]]] = [[] for _ in sides]  # of every prompt, each group (projections, weights)
    with _trainable(weights):
        for row in rows:
            batch = model.batch([row], 0)
            with model.compute():
                state = final_states(network, batch, batch.last)[0].float()
            states.append(state.detach().cpu())
            for side, prompts in zip(sides, of_side, strict=True):
                slopes = [folded(state @ direction) for direction in side]
                prompts.append([torch.stack(group) for group in zip(*slopes, strict=True)])
            progress(1)
    stacked = [[torch.stack(group) for group in zip(*prompts, strict=True)] for prompts in of_side]
    return Gradients(stacked[0], stacked[-1], require_finite(model, torch.stack(states), "last states"), exact)


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
    if exact:
        return value, 0.0
    n = blocks.shape[-1]
    without = []
    for i in range(n):
        rest = torch.arange(n) != i
        without.append(float(similarity(blocks[:, :, rest][..., rest])[of].mean()))
    spread = torch.tensor(without, dtype=torch.float64)
    return value, float(((n - 1) / n * (spread - spread.mean()).square().sum()).sqrt())


def last_layer_similarity(states: Tensor) -> Tensor:
    """The similarity with respect to the output matrix alone, exact: there K(x', x) = (h' . h) I, from last states
    (prompts, d_model): (prompts x', prompts x)."""
    inner = states @ states.T
    return inner.abs() / inner.diagonal()[:, None]


def label_similarities(
    model: Model,
    adapter: str,
    layer: int,
    prompts: dict[str, list[list[int]]],
    projections: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Mean similarities between prompts of each label, for the adapter as it stands.

    ``prompts``: rows of token ids by label; toxic and seemingly toxic ones are pairs. Returns {exact, projections,
    prompts, adapter: {all, above: {means, pair}}, last_layer: {means, pair}}: of all adapter layers, of those above
    ``layer``, and of the output matrix. means[moved][by] and pair are [similarity, standard error]; pair is that of
    each seemingly toxic prompt to its own toxic side.
    """
    labels = [label for label in LABELS if prompts[label]]
    rows = [row for label in labels for row in prompts[label]]
    label_of = [label for label in labels for _ in prompts[label]]
    below = train_only(model, adapter, range(layer + 1))
    above = train_only(model, adapter, range(layer + 1, depth(model.network)))
    found = gradients(model, [below, above], rows, projections, progress=progress)
    is_label = {label: torch.tensor([other == label for other in label_of]) for label in labels}
    others = ~torch.eye(len(rows), dtype=torch.bool)
    pairs = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    n = len(prompts["toxic"])
    pairs[torch.arange(n, 2 * n), torch.arange(n)] = True

    def summary(mean: Callable[[Tensor], tuple[float, float]]) -> dict[str, Any]:
        marked = {a: {b: is_label[a][:, None] & is_label[b] & others for b in labels} for a in labels}
        means = {a: {b: list(mean(of)) for b, of in by.items() if of.any()} for a, by in marked.items()}
        return {"means": means, "pair": list(mean(pairs))}

    def of_groups(first: int) -> dict[str, Any]:
        blocks = products(found.left[first:], found.right[first:])
        return summary(lambda of: mean_similarity(blocks, of, found.exact))

    last = last_layer_similarity(found.states)
    return {
        "exact": found.exact,
        "projections": projections,
        "prompts": {label: len(prompts[label]) for label in labels},
        "adapter": {"all": of_groups(0), "above": of_groups(1)},
        "last_layer": summary(lambda of: (float(last[of].mean()), 0.0)),
    }
