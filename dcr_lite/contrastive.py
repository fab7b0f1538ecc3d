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
from dcr_lite.geometry import ReadOut, centred, kinds_of_pairs, mean_state
from dcr_lite.hidden_states import prompt_states
from dcr_lite.losses import Loss, cosine_similarity
from dcr_lite.metrics import auroc
from dcr_lite.training import Loop, Progress

REFERENCE_PAIRS = 128  # training pairs that give the centre and the read-out: enough for a mean, a second's work
TOKENS_PER_PASS = 4096  # of one forward and backward pass; a larger batch goes through GradCache


@dataclass(frozen=True)
class Contrastive:
    """How stage 1 trains. layer: L, counted from 0. loss: see dcr_lite.losses. centre: subtract the stock model's mean
    state before the cosine (False: raw states, the paper's choice). batch_size: prompts per step, half of each kind."""

    layer: int
    loss: Loss
    centre: bool
    steps: int
    batch_size: int
    learning_rate: float
    observe_every: int = 10


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


def stock_centre(model: Model, rows: list[list[int]], layer: int) -> Tensor:
    """The stock model's mean state over both kinds, (d_model,), from rows laid out as ``encode_pairs`` does."""
    with stock(model):
        states = layer_states(model, rows, layer)
    return mean_state(states, kinds_of_pairs(len(rows) // 2, states.device))


def separation(model: Model, layer: int, centre: Tensor | None, reference: list[list[int]], unseen: list[list[int]]) -> float:
    """AUROC of toxic against seemingly toxic states of pairs that were not trained on, read along the difference of
    the two means of ``reference`` pairs. Training pairs separate perfectly after a few steps and tell nothing."""
    states = centred(layer_states(model, reference + unseen, layer), centre)
    known, new = states[: len(reference)], states[len(reference) :]
    scores = ReadOut.fit(known, kinds_of_pairs(len(reference) // 2, states.device)).score(new)
    n = len(unseen) // 2
    return auroc(scores[:n].tolist(), scores[n:].tolist())


def contrastive_refinement(
    model: Model,
    adapter: str,
    training: list[Pair],
    development: list[Pair],
    settings: Contrastive,
    seed: int,
    checkpoint: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Progress:
    """Train the adapter's layers up to L; afterwards it holds the weights that separated the development pairs best."""
    rows = encode_pairs(model, training)
    n = len(training)
    reference = [*rows[: min(n, REFERENCE_PAIRS)], *rows[n : n + min(n, REFERENCE_PAIRS)]]
    unseen = encode_pairs(model, development)
    activate(model, adapter)
    centre = stock_centre(model, reference, settings.layer) if settings.centre else None
    batches = pair_batches(n, settings.batch_size, settings.steps, seed)

    def encode(part: list[list[int]]) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), settings.layer)

    def backward(step: int) -> float:
        pairs = batches[step]
        chosen = [rows[i] for i in pairs] + [rows[n + i] for i in pairs]
        is_toxic = kinds_of_pairs(len(pairs), model.device)
        loss, _ = gradcache.backward(
            encode, _passes(chosen), lambda states: settings.loss(cosine_similarity(centred(states, centre)), is_toxic)
        )
        return loss

    def observe(step: int) -> dict[str, Any]:
        value = separation(model, settings.layer, centre, reference, unseen)
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
