"""Stage 1, contrastive refinement: pull states of one kind together at layer L and push the two kinds apart.

Lu et al., "Discern Truth from Falsehood: Reducing Over-Refusal via Contrastive Refinement", arXiv 2603.03323.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite import gradcache
from dcr_lite.backend import Model, activate, stock, train_only
from dcr_lite.chat import encode_prompts
from dcr_lite.data import Pair, pair_batches
from dcr_lite.geometry import Centre, Geometry, ReadOut, kinds_of_pairs
from dcr_lite.hidden_states import prompt_states
from dcr_lite.losses import Loss, cosine_similarity
from dcr_lite.metrics import auroc
from dcr_lite.training import Loop, Progress

REFERENCE_PAIRS = 128  # training pairs that give the read-out: enough for two means, a second's work
TOKENS_PER_PASS = 4096  # of one forward and backward pass; a larger batch goes through GradCache


@dataclass(frozen=True)
class Contrastive:
    """How stage 1 trains. layer: L, counted from 0. loss: see dcr_lite.losses. centre, whiten: see Geometry.
    batch_size: prompts per step, half of each kind. observe_every: steps between looks at the development pairs."""

    layer: int
    loss: Loss
    centre: Centre
    whiten: bool
    steps: int
    batch_size: int
    learning_rate: float
    observe_every: int = 20


def encode_pairs(model: Model, pairs: list[Pair]) -> list[list[int]]:
    """Token ids of all toxic sides, then of all seemingly toxic ones."""
    return encode_prompts(model.tokenizer, [p.toxic for p in pairs] + [p.seemingly_toxic for p in pairs], model.window)


def _passes(rows: list[list[int]]) -> list[list[list[int]]]:
    """Rows in order, cut into as few equal parts as keep a part under TOKENS_PER_PASS."""
    n = max(1, -(-sum(map(len, rows)) // TOKENS_PER_PASS))
    size = -(-len(rows) // n)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def layer_states(model: Model, rows: list[list[int]], layer: int) -> Tensor:
    """Last-token states at ``layer`` of prompts given as token ids, without gradient: (prompts, d_model), float32."""
    states = []
    model.network.eval()
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.no_grad():
        for part in _passes([rows[i] for i in by_length]):
            with model.compute():
                states.append(prompt_states(model.network, model.batch(part), layer))
    inverse = torch.empty(len(rows), dtype=torch.long)
    inverse[torch.tensor(by_length)] = torch.arange(len(rows))
    return torch.cat(states)[inverse.to(states[0].device)]


def stock_geometry(model: Model, rows: list[list[int]], settings: Contrastive) -> Geometry:
    """The geometry of the stock model's states, from rows laid out as ``encode_pairs`` does."""
    with stock(model):
        return Geometry.fit(layer_states(model, rows, settings.layer), settings.centre, settings.whiten)


def read_out(model: Model, layer: int, geometry: Geometry, reference: list[list[int]]) -> tuple[Geometry, ReadOut]:
    """The direction that tells the kinds of ``reference`` pairs apart, and the geometry to read other prompts in."""
    states = layer_states(model, reference, layer)
    reading = geometry.around(states)
    return reading, ReadOut.fit(reading(states), kinds_of_pairs(len(reference) // 2, states.device))


def separation(
    model: Model, layer: int, geometry: Geometry, reference: list[list[int]], unseen: list[list[int]]
) -> float:
    """AUROC of toxic against seemingly toxic states of pairs that were not trained on, read along the difference of
    the two means of ``reference`` pairs. Training pairs separate perfectly after a few steps and tell nothing."""
    reading, direction = read_out(model, layer, geometry, reference)
    scores = direction.score(reading(layer_states(model, unseen, layer))).tolist()
    return auroc(scores[: len(unseen) // 2], scores[len(unseen) // 2 :])


def reference_of(rows: list[list[int]]) -> list[list[int]]:
    """The first REFERENCE_PAIRS of rows laid out as ``encode_pairs`` does."""
    n = len(rows) // 2
    return rows[: min(n, REFERENCE_PAIRS)] + rows[n : n + min(n, REFERENCE_PAIRS)]


def contrastive_refinement(
    model: Model,
    adapter: str,
    training: list[Pair],
    development: list[Pair],
    settings: Contrastive,
    seed: int,
    geometry: Geometry | None = None,
    checkpoint: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Progress:
    """Train the adapter's layers up to L; afterwards it holds the weights that separated the development pairs best.
    ``geometry``: the stock model's, where it is known already."""
    rows = encode_pairs(model, training)
    n = len(training)
    reference, unseen = reference_of(rows), encode_pairs(model, development)
    activate(model, adapter)
    geometry = geometry or stock_geometry(model, rows, settings)
    batches = pair_batches(n, settings.batch_size, settings.steps, seed)

    def encode(part: list[list[int]]) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), settings.layer)

    def backward(step: int) -> float:
        pairs = batches[step]
        chosen = [rows[i] for i in pairs] + [rows[n + i] for i in pairs]
        is_toxic = kinds_of_pairs(len(pairs), model.device)
        loss, _ = gradcache.backward(
            encode, _passes(chosen), lambda states: settings.loss(cosine_similarity(geometry(states)), is_toxic)
        )
        return loss

    def observe(step: int) -> dict[str, Any]:
        value = separation(model, settings.layer, geometry, reference, unseen)
        return {"development_auroc": value, "best": value}

    return Loop(
        name="stage1",
        model=model,
        adapter=adapter,
        parameters=train_only(model, adapter, range(settings.layer + 1)),
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        backward=backward,
        observe=observe,
        observe_every=settings.observe_every,
        checkpoint=checkpoint,
        report=report,
    ).run()


def state_map(
    model: Model, layer: int, geometry: Geometry, reference: list[list[int]], rows: list[list[int]]
) -> Tensor:
    """Where prompts lie at ``layer`` in two dimensions (prompts, 2): along the read-out direction of ``reference``
    pairs, and along the largest variation across it."""
    reading, direction = read_out(model, layer, geometry, reference)
    units = reading(layer_states(model, rows, layer))
    along = direction.score(units)
    across = units - along[:, None] * direction.direction
    _, _, axes = torch.linalg.svd(across - across.mean(0), full_matrices=False)
    return torch.stack([along, across @ axes[0]], dim=1).cpu()
