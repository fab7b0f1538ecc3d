"""Abliteration: the refusal direction of a model, fitted to that model and projected out of it.

Arditi et al., "Refusal in Language Models Is Mediated by a Single Direction", NeurIPS 2024, arXiv 2406.11717; their
code: github.com/andyrdt/refusal_direction.

Of every layer and of every token that the chat template writes behind a prompt, the difference of the mean states of
toxic and of plain training prompts is a candidate. Kept are those below LAYERS of the depth whose ablation moves the
first token of plain prompts by less than KL_LIMIT, and which, added, make the model refuse plain prompts (mean log-odds
above 0). Of these the one whose ablation leaves the least refusal of toxic prompts is taken, and projected out of every
layer's input and of what attention and MLP add, at every token (``surgical.ablated``):

    found = abliteration.fit(model, training, validation)
    with surgical.ablated(model, found.direction):
        answer(model, rows, max_new_tokens=40)

Departures: toxic prompts are not filtered by whether the model refuses them, so that every model gets the same; the
refusal score is the kit's, by several openings instead of one token; a candidate is added from the prompt's last token
on instead of at every token; it is tried at one layer in order of the refusals left, so that no time goes into others.
Where no candidate meets all conditions, the one of those below the KL limit with the least refusal is taken, and where
none is below it the one that moves plain prompts least (the authors' code ends with an error there): ``met`` says so.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.compare.directions import Kinds, first_token, first_token_kl, refusal_log_odds, shared_ending, steering
from dcr_lite.compare.surgical import ablated
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states

LAYERS = 0.8  # of the depth: above it directions are those of the output tokens (the authors')
KL_LIMIT = 0.1  # nats, of the first token on plain prompts (the authors')
VALIDATION = 32  # prompts of a kind (the authors')


@dataclass(frozen=True)
class Abliteration:
    """A refusal direction and where it comes from.

    direction: unit vector (d_model,). layer, position: of the states that gave it; position -1 is the last token.
    refusal_log_odds, before: mean over toxic validation prompts, with the ablation and without.
    kl: on plain validation prompts, nats of the first token. induced: mean refusal log-odds of these with the
    difference of means added. met: whether all conditions hold.
    """

    direction: Tensor
    layer: int
    position: int
    refusal_log_odds: float
    before: float
    kl: float
    induced: float = 0.0
    met: bool = False


def layers_tried(model: Model) -> int:
    """The number of layers, from the first, whose states give candidates."""
    return max(1, int(depth(model.network) * LAYERS))


@contextmanager
def _adding(model: Model, layer: int, vector: Tensor) -> Iterator[None]:
    """Within the block a layer adds ``vector`` (d_model,) as well, beside whatever steers the model already."""
    usual = model.steering

    def added(rows: list[list[int]]) -> dict[int, Tensor]:
        found = dict(usual(rows)) if usual else {}
        more = vector.to(model.device).expand(len(rows), -1)
        return found | {layer: found[layer] + more if layer in found else more}

    with steering(model, added):
        yield


def fit(
    model: Model, training: Kinds, validation: Kinds, progress: Callable[[int], None] = lambda done: None
) -> Abliteration:
    """The direction for the model as it stands, from toxic and plain prompts alone. ``progress`` is called with 1 after
    the candidates of each layer (see ``layers_tried``)."""
    toxic, plain = validation.toxic[:VALIDATION], validation.plain[:VALIDATION]
    positions = shared_ending([*training.toxic, *training.plain])
    layers = layers_tried(model)
    states = [last_states(model, rows, positions, layers).mean(1) for rows in (training.toxic, training.plain)]
    differences = states[0] - states[1]  # layers positions d_model
    usual, before = first_token(model, plain), float(refusal_log_odds(model, toxic).mean())

    found: list[Abliteration] = []
    for layer in range(layers):
        for position in range(positions):
            direction = normalize(differences[layer, position], dim=0).to(model.device)
            with ablated(model, direction):
                kl = first_token_kl(model, plain, usual)
                odds = float(refusal_log_odds(model, toxic).mean()) if kl < KL_LIMIT else torch.inf
            found.append(Abliteration(direction, layer, position - positions, odds, before, kl))
        progress(1)
    return _chosen(model, differences, toxic, plain, sorted(found, key=lambda one: (one.refusal_log_odds, one.kl)))


def _chosen(
    model: Model, differences: Tensor, toxic: list[list[int]], plain: list[list[int]], found: list[Abliteration]
) -> Abliteration:
    """The first of the candidates, in their order, that makes the model refuse plain prompts where it is added; else
    the first of all."""

    def with_induced(one: Abliteration) -> Abliteration:
        with _adding(model, one.layer, differences[one.layer, one.position]):
            return replace(one, induced=float(refusal_log_odds(model, plain).mean()))

    for one in found:
        if one.kl < KL_LIMIT and (tried := with_induced(one)).induced > 0:
            return replace(tried, met=True)
    best = with_induced(found[0])
    with ablated(model, best.direction):  # not yet known where it is over the limit
        return replace(best, refusal_log_odds=float(refusal_log_odds(model, toxic).mean()))
