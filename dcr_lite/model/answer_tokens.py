"""Answers in packed passes: where their tokens are predicted, the log-probabilities of these, and the gradient of any
weighted sum of them, with the logits of a few tokens at a time."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dcr_lite.model.hidden_states import vocabulary_logits
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import LOGITS_PER_PASS
from dcr_lite.model.packing import Batch, filled


class Tokens(NamedTuple):
    """A row: the chat template's ids up to the answer, and the answer's."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def answer_places(batch: Batch, rows: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Where in the flattened batch of rows of (prompt ids, answer ids) each answer token is predicted (one place before
    it stands), and the tokens."""
    places, targets = [], []
    for (prompt, answer), own in zip(rows, batch.index, strict=True):
        first = len(prompt) - batch.shared - 1
        places.append(own[first : first + len(answer)])
        targets += answer
    return torch.cat(places), torch.tensor(targets, device=places[0].device)


@torch.no_grad()
def log_probabilities(model: Model, states: Tensor, targets: Tensor) -> Tensor:
    """Of the tokens ``targets`` (tokens,), predicted from post-norm states (tokens, d_model), without gradient:
    (tokens,), float32."""
    parts = zip(states.split(LOGITS_PER_PASS), targets.split(LOGITS_PER_PASS), strict=True)
    return torch.cat([_logits(model, some).log_softmax(-1).gather(1, wanted[:, None])[:, 0] for some, wanted in parts])


def backward_through_vocabulary(model: Model, states: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The log-probabilities (tokens,) of ``targets`` (tokens,), predicted from post-norm states (tokens, d_model); and
    the gradient of -sum(weights * log-probabilities), times ``model.gradient_scale``, is added to what the states come
    from.

    The logits of a few tokens at a time: all of them together would be the largest tensor of a whole stage.
    """
    leaf = states.detach().requires_grad_()
    found = []
    for start in range(0, len(leaf), LOGITS_PER_PASS):
        part = slice(start, start + LOGITS_PER_PASS)
        logits, wanted = _logits(model, leaf[part]), targets[part]
        # The gradient of cross-entropy is softmax minus one at the target: written in place of the logits' copies that
        # autograd would keep, three passes over them instead of seven.
        with torch.no_grad():
            log_p = logits.log_softmax(-1)
            found.append(log_p.gather(1, wanted[:, None])[:, 0])
            gradient = log_p.exp_()
            gradient[torch.arange(len(wanted)), wanted] -= 1
            gradient *= (weights[part] * model.gradient_scale)[:, None]
        logits.backward(gradient)
    states.backward(leaf.grad)
    return torch.cat(found)


def _logits(model: Model, states: Tensor) -> Tensor:
    """Logits of a few states, in one of few shapes on a CPU (see packing): (tokens, vocabulary), float32."""
    places = filled(torch.arange(len(states), device=states.device))
    with model.compute():
        if len(places) == len(states):
            return vocabulary_logits(model.network, states)
        return vocabulary_logits(model.network, states[places])[: len(states)]
