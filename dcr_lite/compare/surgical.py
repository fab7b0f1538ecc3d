"""Surgical single-vector ablation: remove a false-refusal direction from the residual stream. Training-free.

Wang, Hu, Röttger, Plank, "Surgical, Cheap, and Flexible: Mitigating False Refusal in Language Models via Single Vector
Ablation", ICLR 2025, arXiv 2410.03415; their code: github.com/mainlp/False-Refusal-Mitigation.

Of the last tokens that the chat template writes behind a prompt, and of every layer, two differences of means:
true refusal r = refused toxic - answered plain prompts, false refusal w = refused seemingly toxic - answered plain
prompts. w is made orthogonal to r, so that ablating it leaves true refusals alone. Of these candidates, those of the
last fifth of the layers and those that move the first token of plain prompts by more than KL_LIMIT are discarded, and
the one that lowers the refusal of seemingly toxic validation prompts most is taken. It is projected out of every
layer's input and of what attention and MLP add, at every token:

    ablation = surgical.fit(model, training, validation)
    with surgical.ablated(model, ablation.direction):
        answer(model, rows, max_new_tokens=40)

``orthogonality`` below 1 takes out only that share of the overlap with r (their partial orthogonalisation): more false
and more true refusals go.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dcr_lite.compare.directions import (
    KL_LIMIT,
    VALIDATION,
    Kinds,
    first_token,
    first_token_kl,
    refusal_log_odds,
    refused,
    shared_ending,
)
from dcr_lite.model.hidden_states import decoder_of, depth
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states

DISCARDED = 0.2  # of the layers, the last ones: directions there are those of the output tokens (the paper's)


@dataclass(frozen=True)
class Ablation:
    """A false-refusal direction and where it comes from.

    direction: unit vector (d_model,). layer, position: of the states that gave it; position -1 is the last token.
    refusal_log_odds, before: mean over seemingly toxic validation prompts, with the ablation and without.
    kl: KL divergence on plain validation prompts, nats of the first token.
    """

    direction: Tensor
    layer: int
    position: int
    refusal_log_odds: float
    before: float
    kl: float


@contextmanager
def ablated(model: Model, direction: Tensor) -> Iterator[None]:
    """Within the block the model's residual stream has no component along the unit vector ``direction``, (d_model,)."""

    def without(states: Tensor) -> Tensor:
        along = direction.to(states)
        return states - (states @ along)[..., None] * along

    def on_input(_module: nn.Module, inputs: Any, keywords: Any) -> Any:
        if inputs:
            return (without(inputs[0]), *inputs[1:]), keywords
        return inputs, keywords | {"hidden_states": without(keywords["hidden_states"])}

    def on_output(_module: nn.Module, _inputs: Any, output: Any) -> Any:
        return (without(output[0]), *output[1:]) if isinstance(output, tuple) else without(output)

    with ExitStack() as hooks:
        for layer in decoder_of(model.network).layers:
            hooks.enter_context(layer.register_forward_pre_hook(on_input, with_kwargs=True))
            # Attention and MLP, whatever an architecture calls them: norms have no matrix.
            writers = [part for part in layer.children() if any(p.dim() > 1 for p in part.parameters())]
            # Gemma's and OLMo's norms behind both have weights of their own, which would put a part of it back.
            if hasattr(layer, "post_feedforward_layernorm"):
                writers += [layer.post_attention_layernorm, layer.post_feedforward_layernorm]
            for writer in writers:
                hooks.enter_context(writer.register_forward_hook(on_output))
        yield


def candidates(toxic: Tensor, seemingly_toxic: Tensor, plain: Tensor, orthogonality: float = 1.0) -> Tensor:
    """False-refusal directions of every layer and position, unit vectors (layers, positions, d_model), from states
    (layers, prompts, positions, d_model) of refused toxic, refused seemingly toxic and answered plain prompts."""
    true_refusal = normalize(toxic.mean(1) - plain.mean(1), dim=-1)
    false_refusal = seemingly_toxic.mean(1) - plain.mean(1)
    overlap = (false_refusal * true_refusal).sum(-1, keepdim=True)
    return normalize(false_refusal - orthogonality * overlap * true_refusal, dim=-1)


def layers_tried(model: Model) -> int:
    """The number of layers, from the first, whose states give candidates."""
    return int(depth(model.network) * (1 - DISCARDED))


def fit(
    model: Model,
    training: Kinds,
    validation: Kinds,
    orthogonality: float = 1.0,
    progress: Callable[[int], None] = lambda done: None,
) -> Ablation:
    """The direction for the model as it stands: candidates from training prompts, the choice among them by validation
    prompts. ``progress`` is called with 1 after the candidates of each layer (see ``layers_tried``)."""
    positions = shared_ending([*training.toxic, *training.plain])
    toxic, seemingly_toxic, answered = (
        last_states(model, refused(rows, validation.judged(refusal_log_odds(model, rows)), refuses), positions)
        for rows, refuses in ((training.toxic, True), (training.seemingly_toxic, True), (training.plain, False))
    )
    directions = candidates(toxic, seemingly_toxic, answered, orthogonality)
    rows = validation.seemingly_toxic
    sounding = refused(rows, validation.judged(refusal_log_odds(model, rows)))[:VALIDATION]
    plain = validation.plain[:VALIDATION]
    usual, before = first_token(model, plain), float(refusal_log_odds(model, sounding).mean())

    found: list[Ablation] = []
    for layer in range(layers_tried(model)):
        for position in range(positions):
            direction = directions[layer, position].to(model.device)
            with ablated(model, direction):
                kl = first_token_kl(model, plain, usual)
                # A candidate over the limit is discarded, whatever its log-odds.
                odds = float(refusal_log_odds(model, sounding).mean()) if kl <= KL_LIMIT else torch.inf
            found.append(Ablation(direction, layer, position - positions, odds, before, kl))
        progress(1)
    best = min(found, key=lambda a: (a.refusal_log_odds, a.kl))  # of the lowest KL where all are over the limit
    with ablated(model, best.direction):  # not yet known where it is over the limit
        return replace(best, refusal_log_odds=float(refusal_log_odds(model, sounding).mean()))
