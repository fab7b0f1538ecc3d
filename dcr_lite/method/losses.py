"""Contrastive losses over two kinds of prompt: pairs of one kind are positives, pairs across kinds negatives.

Every loss has one shape: ``loss(similarity, is_toxic) -> scalar``, where ``similarity`` (batch, batch) holds the cosine
similarities of all prompts of the batch and ``is_toxic`` (batch,) their kinds. Each anchor without a positive or
without a negative is left out; a batch of one kind has nothing to contrast and raises ValueError.
All arithmetic is in float32 or wider, whatever comes in.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus

Loss = Callable[[Tensor, Tensor], Tensor]


def cosine_similarity(states: Tensor) -> Tensor:
    """Cosine similarities of all rows: (batch, d_model) -> (batch, batch). A zero row has similarity 0 to every row."""
    unit = normalize(states if states.dtype == torch.float64 else states.float(), dim=-1)
    return unit @ unit.T


def _masks(similarity: Tensor, is_toxic: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Positives and negatives as (batch, batch) booleans, and the anchors (batch,) that have both."""
    if similarity.shape != (len(is_toxic), len(is_toxic)):
        raise ValueError(f"similarity is {tuple(similarity.shape)} for {len(is_toxic)} prompts")
    kind = is_toxic.bool()
    if kind.all() or not kind.any():
        raise ValueError("a contrastive batch needs both toxic and seemingly toxic prompts")
    same = kind[:, None] == kind[None, :]
    positive = same & ~torch.eye(len(kind), dtype=torch.bool, device=kind.device)
    anchors = positive.any(1)
    if not anchors.any():
        raise ValueError("a contrastive batch needs two prompts of at least one kind")
    return positive, ~same, anchors


def _masked_logsumexp(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, -torch.inf).logsumexp(1)


def circle(margin: float = 0.25, scale: float = 16.0) -> Loss:
    """Circle loss (Sun et al., CVPR 2020, eq. 6; the DCR paper's choice, arXiv 2603.03323).

    The weights alpha_p = [1 + m - s_p]+ and alpha_n = [s_n + m]+ are detached, as in the paper: a gradient through them
    changes the update by tens of per cent while the value stays the same.
    """

    def loss(similarity: Tensor, is_toxic: Tensor) -> Tensor:
        positive, negative, anchors = _masks(similarity, is_toxic)
        s = similarity if similarity.dtype == torch.float64 else similarity.float()
        alpha_p = (1 + margin - s).clamp_min(0).detach()
        alpha_n = (s + margin).clamp_min(0).detach()
        pull = _masked_logsumexp(-scale * alpha_p * (s - (1 - margin)), positive)
        push = _masked_logsumexp(scale * alpha_n * (s - margin), negative)
        return softplus(pull + push)[anchors].mean()

    return loss


def supervised_contrastive(temperature: float) -> Loss:
    """SupCon, the "out" form (Khosla et al., NeurIPS 2020, eq. 2): every positive against all other prompts."""

    def loss(similarity: Tensor, is_toxic: Tensor) -> Tensor:
        positive, _, anchors = _masks(similarity, is_toxic)
        logits = (similarity if similarity.dtype == torch.float64 else similarity.float()) / temperature
        others = ~torch.eye(len(logits), dtype=torch.bool, device=logits.device)
        log_p = logits - _masked_logsumexp(logits, others)[:, None]
        per_anchor = -(log_p.masked_fill(~positive, 0).sum(1)[anchors] / positive.sum(1)[anchors])
        return per_anchor.mean()

    return loss


def info_nce(temperature: float) -> Loss:
    """InfoNCE (van den Oord et al., 2018, eq. 4), one term for each positive, against that anchor's negatives only."""

    def loss(similarity: Tensor, is_toxic: Tensor) -> Tensor:
        positive, negative, anchors = _masks(similarity, is_toxic)
        logits = (similarity if similarity.dtype == torch.float64 else similarity.float()) / temperature
        against = _masked_logsumexp(logits, negative)[:, None]
        terms = softplus(against - logits).masked_fill(~positive, 0)  # -log(e^p / (e^p + sum e^n))
        return (terms.sum(1)[anchors] / positive.sum(1)[anchors]).mean()

    return loss
