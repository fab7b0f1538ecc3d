"""ACTOR: move each prompt's own state along the refusal direction, by training one layer on prompts without answers.

Dabas et al., "Just Enough Shifts: Mitigating Over-Refusal in Aligned Language Models with Targeted Representation
Fine-Tuning", ICML 2025, arXiv 2507.04250.

- The layer l* is the middle one at which the last-token states of toxic and harmless prompts have the best silhouette.
- The refusal direction R is the mean of the toxic states that leave l* minus that of the harmless ones. A state a has
  the projection (a . R / |R|^2) R.
- The target of a state is a - alpha * projection for harmless and seemingly toxic prompts, and a + alpha * projection
  for toxic ones. It is fixed for an epoch; the next one has an R and targets of its own.
- The loss is the mean of 1 - cos(state, target). Layer l* alone trains, so the states that enter it are computed once.

    layer = best_layer(model, training)
    config = ActorConfig(layer.number, alpha=0.5, learning_rate=1e-3)
    Loop(Actor("actor", model, adapter, training, development, config, seed=0, folder=folder)).run()

Of several alphas and 1 to 3 epochs that one is taken which sets the refusal probabilities of toxic and seemingly toxic
development prompts furthest apart, among those that move the first token of harmless ones by at most KL_LIMIT.

Departures:

- The code that the paper announces was not found, and its alpha, learning rate and batches are not known here. Alpha is
  chosen as said; a batch has PER_KIND prompts of each kind; the rate is left to the caller.
- At l* the adapter of safety SFT goes on training, where the paper fine-tunes the layer: the model keeps one adapter
  and is exported as any other.
- Where the mean projection of a kind is negative, subtracting it would move that kind up. There the projection is
  counted from the midpoint between the toxic and the harmless mean, and its length is taken: harmless and seemingly
  toxic states go down by alpha times their distance from the midpoint, toxic ones up.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.compare.directions import KL_LIMIT, VALIDATION, Kinds, apart, first_token, first_token_kl
from dcr_lite.files import load_tensors, save_tensors
from dcr_lite.model.adapters import train_only
from dcr_lite.model.hidden_states import depth, states_between
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix
from dcr_lite.model.states import last_states
from dcr_lite.model.states_below import states_below

MIDDLE = (0.3, 0.7)  # of the depth: where l* is looked for
ALPHAS = (0.1, 0.25, 0.5, 1.0)  # of which the best is taken
EPOCHS = 3  # the paper's; the weights after each are tried
PER_KIND = 8  # prompts of each kind in a batch: 16 steps an epoch from 128 of each


@dataclass(frozen=True)
class Layer:
    """l*, counted from 0, and the silhouette of toxic against harmless states there, from -1 to 1."""

    number: int
    silhouette: float


@dataclass(frozen=True)
class Choice:
    """The setting that was taken: layer l*, alpha and epochs; ``tried``, how many settings it was taken from; apart, as
    ``directions.apart``, of development prompts, or -1 minus the divergence where that is beyond KL_LIMIT for all."""

    layer: int
    alpha: float
    epochs: int
    apart: float
    tried: int


@dataclass(frozen=True)
class ActorConfig:
    """How ACTOR trains. layer: l*. alpha: the share of its projection by which a state is to move."""

    layer: int
    alpha: float
    learning_rate: float


def best_layer(model: Model, training: Kinds) -> Layer:
    """l* of the model as it stands."""
    first, stop = (round(share * depth(model.network)) for share in MIDDLE)
    stop = max(stop, first + 1)
    states = torch.cat([last_states(model, rows, layers=stop)[:, :, 0] for rows in (training.toxic, training.plain)], 1)
    is_toxic = [i < len(training.toxic) for i in range(states.shape[1])]
    found = [Layer(i, float(silhouette_score(states[i].numpy(), is_toxic))) for i in range(first, stop)]
    return max(found, key=lambda layer: layer.silhouette)


def targets(toxic: Tensor, seemingly_toxic: Tensor, plain: Tensor, alpha: float) -> list[Tensor]:
    """Where the states of each kind (prompts, d_model), which leave l*, are to go: as many, in the same order."""
    direction = toxic.mean(0) - plain.mean(0)
    along = [states @ direction / (direction @ direction) for states in (toxic, seemingly_toxic, plain)]
    if min(float(own.mean()) for own in along) < 0:
        midpoint = (along[0].mean() + along[2].mean()) / 2
        along = [(own - midpoint).abs() for own in along]
    ways = zip((toxic, seemingly_toxic, plain), along, (alpha, -alpha, -alpha), strict=True)
    return [states + share * own[:, None] * direction for states, own, share in ways]


def cosine_distances(states: Tensor, wanted: Tensor) -> Tensor:
    """1 - cos of each state (prompts, d_model) with its target: (prompts,). Computed as half the squared distance of
    the unit vectors, which is the same number; it and its gradient are exactly 0 for a state at its target."""
    return (normalize(states, dim=-1) - normalize(wanted, dim=-1)).square().sum(-1) / 2


def batches(training: Kinds, seed: int) -> list[list[int]]:
    """The batches of an epoch, the same in each: numbers of prompts, n toxic ones, n seemingly toxic ones and n plain
    ones being numbered one after the other. n is the number of the kind that has fewest."""
    n = min(len(training.toxic), len(training.seemingly_toxic), len(training.plain))
    order = list(range(n))
    Random(seed).shuffle(order)
    return [[k * n + i for k in range(3) for i in order[at : at + PER_KIND]] for at in range(0, n, PER_KIND)]


class Actor:
    """ACTOR as the training of an adapter that stands where safety SFT left it (see ``loop.Stage``). The loop keeps the
    weights of the best epoch.

    development: of the three kinds, to choose the epoch by. folder: where the targets of every epoch are kept: a
    training that goes on within an epoch no longer has the weights that gave them.
    """

    def __init__(
        self, name: str, model: Model, adapter: str, training: Kinds, development: Kinds, config: ActorConfig,
        seed: int, folder: Path,
    ):  # fmt: skip
        self.name, self.model, self.adapter, self.config, self.folder = name, model, adapter, config, folder
        self.development, self.watched = development, development.plain[:VALIDATION]
        self.batches = batches(training, seed)
        n = sum(map(len, self.batches)) // 3
        self.rows = training.toxic[:n] + training.seemingly_toxic[:n] + training.plain[:n]
        self.prefix = shared_prefix(self.rows)
        self.steps, self.observe_every = EPOCHS * len(self.batches), len(self.batches)
        self.learning_rate = config.learning_rate
        self.parameters = train_only(model, adapter, [config.layer])
        self.entering = states_below(model, dict(enumerate(self.rows)), self.prefix, config.layer - 1)
        self.before = first_token(model, self.watched)
        self._targets: dict[int, Tensor] = {}  # of the epoch that was last asked for

    def step(self, number: int) -> float:
        """One batch's gradients: states that leave l*, their distance from the targets, backward. Returns the loss."""
        epoch, place = divmod(number, len(self.batches))
        batch, wanted = self.batches[place], self.targets_of(epoch)
        loss = 0.0
        for part in self._passes(batch):
            of_part = cosine_distances(self.leaving(part), wanted[part]).sum() / len(batch)
            (of_part * self.model.gradient_scale).backward()
            loss += of_part.item()
        return loss

    def leaving(self, chosen: list[int]) -> Tensor:
        """Last-token states of the chosen prompts that leave l*: (prompts, d_model), float32."""
        batch = self.model.batch([self.rows[i] for i in chosen], self.prefix)
        with self.model.compute():
            entering = self.entering.of(batch, chosen)
            states = states_between(self.model.network, batch, entering, [self.config.layer], batch.last)
        return states.float()

    def targets_of(self, epoch: int) -> Tensor:
        """The targets of all prompts in an epoch, counted from 0: (prompts, d_model). Computed at its first step."""
        if epoch not in self._targets:
            path = self.folder / f"targets_{epoch}.safetensors"
            if not path.exists():
                save_tensors({"targets": self._new_targets().cpu()}, path)
            kept = load_tensors(path, f"Delete {self.folder} to have {self.name} trained anew.")
            self._targets = {epoch: kept["targets"].to(self.model.device)}
        return self._targets[epoch]

    def _new_targets(self) -> Tensor:
        """From the states of the model as it stands, computed as in a step, so that with alpha 0 they are the same."""
        states: dict[int, Tensor] = {}
        for batch in self.batches:
            for part in self._passes(batch):
                states |= zip(part, self.leaving(part).detach(), strict=True)
        toxic, seemingly_toxic, plain = torch.stack([states[i] for i in range(len(states))]).chunk(3)
        return torch.cat(targets(toxic, seemingly_toxic, plain, self.config.alpha))

    def _passes(self, batch: list[int]) -> list[list[int]]:
        parts = self.model.passes([self.rows[i] for i in batch], shared=self.prefix)
        return [[batch[k] for k in part] for part in parts]

    def observe(self, step: int) -> dict[str, Any]:
        """After each epoch: how far apart the two kinds are, and how far the first token of plain prompts has moved."""
        if step == 0:  # safety SFT alone, which is no candidate
            return {}
        divergence = first_token_kl(self.model, self.watched, self.before)
        value = apart(self.model, self.development)
        # Beyond the limit any is worse than every one within it, and the one that moves least the best.
        best = value if divergence <= KL_LIMIT else -1 - divergence
        return {"apart": value, "first_token_kl": divergence, "best": best}
