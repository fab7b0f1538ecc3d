"""Stage 1, contrastive refinement: pull states of one kind together at layer L and push the two kinds apart.

Lu et al., "Discern Truth from Falsehood: Reducing Over-Refusal via Contrastive Refinement", arXiv 2603.03323.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dcr_lite.data.rows import Pair
from dcr_lite.data.splits import pair_batches
from dcr_lite.method import gradcache
from dcr_lite.method.geometry import Centre, Geometry, kinds_of_pairs, separation
from dcr_lite.method.loop import Loop, Progress
from dcr_lite.method.losses import Loss, cosine_similarity
from dcr_lite.model import distributed
from dcr_lite.model.adapters import activate, stock, train_only
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.hidden_states import prompt_states
from dcr_lite.model.loading import Model
from dcr_lite.model.states import _passes, layer_states

REFERENCE_PAIRS = 64  # training pairs that give the read-out: enough for two means, and looked at again and again
GEOMETRY_PAIRS = 420  # training pairs that give the stock model's geometry: 840 states for a shrunk covariance


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


def stock_geometry(model: Model, rows: list[list[int]], settings: Contrastive) -> Geometry:
    """The geometry of the stock model's states, from rows laid out as ``encode_pairs`` does."""
    with stock(model):
        states = layer_states(model, first_pairs(rows, GEOMETRY_PAIRS), settings.layer)
    return Geometry.fit(states, settings.centre, settings.whiten)


def first_pairs(rows: list[list[int]], n: int) -> list[list[int]]:
    """The first ``n`` pairs of rows laid out as ``encode_pairs`` does."""
    half = len(rows) // 2
    return rows[: min(n, half)] + rows[half : half + min(n, half)]


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
    reference, unseen = first_pairs(rows, REFERENCE_PAIRS), encode_pairs(model, development)
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

        def loss_of(own: Tensor) -> Tensor:
            states = distributed.gathered_rows(own)  # every process sees every negative
            return settings.loss(cosine_similarity(geometry(states)), is_toxic) * model.gradient_scale

        loss, _ = gradcache.backward(encode, _passes(model, distributed.share(chosen)), loss_of)
        return loss / model.gradient_scale

    def observe(step: int) -> dict[str, Any]:
        states = layer_states(model, reference + unseen, settings.layer)
        value = separation(geometry, states[: len(reference)], states[len(reference) :])
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
