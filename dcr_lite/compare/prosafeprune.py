"""ProSafePrune: shrink what seemingly toxic prompts share with toxic ones, and not with plain ones, in the weights.
Training-free; the result is an adapter like any other.

"ProSafePrune", ICLR 2026, openreview.net/forum?id=QkHKaPfRAB; a refactoring of the authors' code:
github.com/SparkShieldLab/OverRefusalToolkit.

For each kind of prompt, plain (s), toxic (u) and seemingly toxic (p), the output of a linear map is averaged over all
tokens of a prompt in the chat template, which may write a system message by default, as in the source: (prompts,
outputs). The first r left singular vectors of its transpose, uncentred, span the kind's subspace: U (outputs, r),
P = U U^T. The map's weight W (outputs, inputs) becomes

    W - strength * (I - P_s) P_u P_p W

Its bias, as in the source, is part of the averages, which are of what the map puts out, and stays as it is: it is the
same for every prompt, so it lies in what all kinds share, which I - P_s takes out. Middle layers are edited, around the
one where the three kinds fall apart best (mean silhouette of its maps, from 30 to 70 % of the depth). The change is the
product of two matrices of rank r,

    -strength * [(I - P_s) U_u] [(U_u^T U_p) (U_p^T W)]

and W is base weight (dequantised) plus scaled adapter, so an adapter carries it exactly, as r more ranks of each edited
map, and is saved and merged with it:

    pruning = prosafeprune.fit(model, "safety_sft", training, validation)
    with prosafeprune.pruned(model, "safety_sft", pruning):
        save_adapter(model, "safety_sft", folder)

Departures from the source:

- Prompts are our pairs and instructions, 128 of a kind instead of 200 from three data sets. In minimal pairs the toxic
  subspace is nearer to the seemingly toxic one than there, so that P_p spares less, and the kinds overlap in every
  layer (the stock SmolLM2-135M: silhouettes of -0.01 to 0.00), so that the best one is hardly better than the next.
- The source has no defaults: its layers, r and strength come from a search by compliance and safety on 50 judged
  prompts. Here a fixed number of settings (SETTINGS) is tried on development prompts: by how far the refusal
  probabilities of both kinds lie apart, among those that keep the first token on plain prompts (Surgical's limit, where
  the source has none). All are tried on a few prompts, the best ones again on all: by a few alone, noise would choose.
- r is searched as well, up to an eighth of a map's outputs and of a kind's prompts (``MOST``). The source's suggestion
  of one, that at which the right singular vectors of toxic and seemingly toxic prompts have least in common, is left
  out: the search takes its place, and it means something only for paired prompts, as ours are.
- Singular values are float32's, whatever the model's precision; the source projects in the precision of the weights.
- Weights in 4 bits are edited in what they stand for; merged, the change is added to the 16-bit ones.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import product

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor

from dcr_lite.compare.directions import KL_LIMIT, VALIDATION, Kinds, apart, first_token, first_token_kl
from dcr_lite.model.adapters import adapted_maps, adapted_weight, extra_ranks, set_extra_ranks
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.model.map_outputs import mean_outputs

MIDDLE = (0.3, 0.7)  # of the depth, the source's: where the best layer is looked for
WINDOWS = (1, 2, 5)  # layers edited; the source analyses 5, and reports 2 and 3
RANKS = (1, 2, 4, 8, 16)  # up to its example's
STRENGTHS = (0.5, 1.0)  # its example has 0.9, its report 1
ATTENTION_ONLY = (True, False)  # else all linear maps of a layer: the source's example and its report
# 60, each tried on 96 prompts: about as many prompts as the search of Surgical reads on a model of 24 layers.
SETTINGS = len(WINDOWS) * len(RANKS) * len(STRENGTHS) * len(ATTENTION_ONLY)
FINALISTS = 6  # settings that are tried on all validation prompts: a tenth, with which the search takes a sixth longer
# Of a map's outputs, and of the prompts of a kind: more directions of plain prompts would leave I - P_s nothing, and as
# many as prompts would be these themselves. All of RANKS from 128 on, as a small model's keys have.
MOST = 1 / 8


@dataclass(frozen=True)
class Pruning:
    """A fitted pruning.

    a, b: of each edited map, by its name in the base model: (rank, inputs) and (outputs, rank), with
        b a = (I - P_s) P_u P_p W.
    layers, attention_only, rank, strength: the setting that was chosen. tried: of how many.
    silhouette: that of the best layer, the mean over its maps, from -1 to 1.
    apart, before: mean refusal probability of toxic minus that of seemingly toxic validation prompts, with the pruning
        and without. kl: KL divergence on plain validation prompts, nats of the first token.
    """

    a: dict[str, Tensor]
    b: dict[str, Tensor]
    layers: list[int]
    attention_only: bool
    rank: int
    strength: float
    silhouette: float
    tried: int = 0
    apart: float = 0.0
    before: float = 0.0
    kl: float = 0.0


@contextmanager
def pruned(model: Model, adapter: str, pruning: Pruning, factor: float = 1.0) -> Iterator[None]:
    """Within the block the adapter carries the pruning at ``factor`` times its strength, behind whatever ranks were set
    before (a dial's); where that is 0 nothing is changed. Afterwards it is as trained, bit for bit."""
    strength = factor * pruning.strength
    set_before = {name: extra_ranks(model, adapter, name) for name in pruning.a} if strength else {}
    try:
        for name, (a, b) in set_before.items():
            more_a, more_b = pruning.a[name].to(a), -strength * pruning.b[name].to(b)
            set_extra_ranks(model, adapter, name, torch.cat([a, more_a]), torch.cat([b, more_b], 1))
        yield
    finally:
        for name, (a, b) in set_before.items():
            set_extra_ranks(model, adapter, name, a, b)


def basis(outputs: Tensor, rank: int) -> Tensor:
    """The subspace of a kind from the outputs (prompts, outputs) of its prompts: their first ``rank`` right singular
    vectors, uncentred, as columns (outputs, rank)."""
    return torch.linalg.svd(outputs, full_matrices=False).Vh[:rank].T


def edit(weight: Tensor, plain: Tensor, toxic: Tensor, seemingly_toxic: Tensor) -> tuple[Tensor, Tensor]:
    """(I - P_s) P_u P_p W of a weight W (outputs, inputs), from orthonormal bases (outputs, rank) of the three kinds:
    a (rank, inputs) and b (outputs, rank), of which it is the product b a."""
    b = toxic - plain @ (plain.T @ toxic)
    return (toxic.T @ seemingly_toxic) @ (seemingly_toxic.T @ weight), b


def silhouette(kinds: list[Tensor]) -> float:
    """How well kinds of prompts fall apart in the outputs (prompts, outputs) of one map, from -1 to 1 (Rousseeuw,
    1987)."""
    labels = [kind for kind, outputs in enumerate(kinds) for _ in outputs]
    return float(silhouette_score(torch.cat(kinds).numpy(), labels))


def window(best: int, layers: int, depth: int) -> list[int]:
    """So many layers around the best one, those that there are of ``depth``."""
    first = best - layers // 2
    return list(range(max(0, first), min(depth, first + layers)))


def fit(
    model: Model,
    adapter: str,
    training: Kinds,
    validation: Kinds,
    progress: Callable[[int], None] = lambda done: None,
) -> Pruning:
    """The pruning for the model under its active adapter: subspaces and layers from training prompts, the setting by
    validation prompts. ``progress`` is called with the number of settings that are done, SETTINGS in all."""
    layers = depth(model.network)
    middle = range(int(layers * MIDDLE[0]), min(layers, int(layers * MIDDLE[1]) + 1))
    reached = range(window(middle[0], max(WINDOWS), layers)[0], window(middle[-1], max(WINDOWS), layers)[-1] + 1)
    maps = {i: adapted_maps(model, adapter, i) for i in reached}
    every = [name for names in maps.values() for name in names]
    rows = (training.plain, training.toxic, training.seemingly_toxic)
    outputs = [mean_outputs(model, some, every, reached.stop) for some in rows]
    scores = {i: [silhouette([of[name] for of in outputs]) for name in maps[i]] for i in middle}
    best, score = max(((i, sum(of) / len(of)) for i, of in scores.items()), key=lambda found: found[1])

    toxic, sounding, plain = (
        some[:VALIDATION] for some in (validation.toxic, validation.seemingly_toxic, validation.plain)
    )
    few = replace(validation, toxic=toxic, seemingly_toxic=sounding, plain=plain)
    unpruned = first_token(model, few.plain)
    found: list[Pruning] = []
    for size, attention_only in product(WINDOWS, ATTENTION_ONLY):
        chosen = window(best, size, layers)
        names = [name for i in chosen for name in maps[i] if _is_attention(name) or not attention_only]
        bases = {name: [basis(of[name], max(RANKS)) for of in outputs] for name in names}
        most = MOST * min((size for of in outputs for name in names for size in of[name].shape), default=0)
        for rank in RANKS:
            if names and rank <= max(1, most):
                a, b = _edits(model, adapter, bases, rank)
                candidates = (Pruning(a, b, chosen, attention_only, rank, by, score) for by in STRENGTHS)
                found += [_tried(model, adapter, candidate, few, unpruned) for candidate in candidates]
            progress(len(STRENGTHS))
    return _best(model, adapter, found, validation)


def _is_attention(name: str) -> bool:
    """Whether a linear map belongs to attention, by its name: architectures write attn or attention."""
    return "attn" in name or "attention" in name


def _edits(
    model: Model, adapter: str, bases: dict[str, list[Tensor]], rank: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """``edit`` of each map by the first ``rank`` vectors of its bases, on the CPU."""
    a, b = {}, {}
    for name, of_kinds in bases.items():
        weight = adapted_weight(model, adapter, name)
        factors = edit(weight, *(of_kind[:, :rank].to(weight) for of_kind in of_kinds))
        a[name], b[name] = (factor.cpu() for factor in factors)
    return a, b


def _tried(model: Model, adapter: str, candidate: Pruning, few: Kinds, unpruned: Tensor) -> Pruning:
    """The candidate with what it does to a few validation prompts; ``apart`` is left out beyond the limit, as it cannot
    be chosen there. unpruned: the first token of plain ones."""
    with pruned(model, adapter, candidate):
        kl = first_token_kl(model, few.plain, unpruned)
        return replace(candidate, kl=kl, apart=apart(model, few) if kl <= KL_LIMIT else -torch.inf)


def _best(model: Model, adapter: str, found: list[Pruning], validation: Kinds) -> Pruning:
    """Of the candidates within the limit that do best on a few prompts the one that does best on all; the one that
    moves plain prompts least where all are beyond it."""
    within = sorted((one for one in found if one.kl <= KL_LIMIT), key=lambda one: -one.apart)
    finalists = within[:FINALISTS] or [min(found, key=lambda one: one.kl)]
    before = apart(model, validation)
    measured = []
    for one in finalists:
        with pruned(model, adapter, one):
            measured.append(replace(one, tried=len(found), before=before, apart=apart(model, validation)))
    return max(measured, key=lambda one: one.apart)
