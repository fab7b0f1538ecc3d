"""Prompts of the three kinds, which of them are refused, models steered along directions that they give, and what a
change of the model does to them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import final_states, vocabulary_logits
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix

LEAST = 8  # prompts behind a mean: with fewer it depends on the single prompts
VALIDATION = 32  # prompts of a kind that every candidate of a search is tried on, as in the paper of Surgical
KL_LIMIT = 0.2  # nats, of the first token on plain prompts: a candidate that moves it more is discarded (also Surgical)


@dataclass(frozen=True)
class Kinds:
    """Prompts of the three kinds as rows of token ids in the chat template.

    meaning: intercept and slope of the log-odds that an answer is judged a refusal over those of opening with one, by
        answers of the model that a method begins with (``trade_off.fit_map``). A model that refuses in other words than
        its openings hardly ever opens with one: their probabilities alone would then tell settings apart by noise.
    """

    toxic: list[list[int]]
    seemingly_toxic: list[list[int]]
    plain: list[list[int]]
    meaning: tuple[float, float] = (0.0, 1.0)

    def judged(self, log_odds: Tensor) -> Tensor:
        """Log-odds that answers are judged refusals, from those of opening with one."""
        intercept, slope = self.meaning
        return intercept + slope * log_odds


def shared_ending(rows: list[list[int]]) -> int:
    """How many tokens all rows end with: what the chat template writes behind a prompt. At least 1."""
    return max(1, shared_prefix([row[::-1] for row in rows]))


@contextmanager
def steering(model: Model, added: Callable[[list[list[int]]], dict[int, Tensor]]) -> Iterator[None]:
    """Within the block decoder layers add to their output what ``added`` gives; see ``Model.steering``."""
    before, model.steering = model.steering, added
    try:
        yield
    finally:
        model.steering = before


def steered(model: Model, vectors: dict[int, Tensor]) -> AbstractContextManager[None]:
    """``steering`` with the same vectors (d_model,) by layer for every prompt."""
    return steering(model, lambda rows: {i: v.to(model.device).expand(len(rows), -1) for i, v in vectors.items()})


def refusal_log_odds(model: Model, rows: list[list[int]]) -> Tensor:
    """Log-odds (rows,) of opening with a refusal, of the model as it stands."""
    return torch.tensor([given.refusal_log_odds for given in answer(model, rows, max_new_tokens=0)])


def apart(model: Model, validation: Kinds) -> float:
    """The mean probability of toxic prompts minus that of seemingly toxic ones that the answer is judged a refusal, of
    the model as it stands."""
    toxic, seemingly_toxic = (
        validation.judged(refusal_log_odds(model, rows)).sigmoid().mean()
        for rows in (validation.toxic, validation.seemingly_toxic)
    )
    return float(toxic - seemingly_toxic)


def first_token(model: Model, rows: list[list[int]]) -> Tensor:
    """Log-probabilities of the first token of the answers, of the model as it stands: (rows, vocabulary)."""
    batch = model.batch(rows)
    with torch.no_grad(), model.compute():
        states = final_states(model.network, batch, batch.last)
        return vocabulary_logits(model.network, states).log_softmax(-1)


def first_token_kl(model: Model, rows: list[list[int]], before: Tensor) -> float:
    """How far the model as it stands has moved the first token of the answers from its log-probabilities ``before``
    (rows, vocabulary): the mean KL divergence, KL(before || now), in nats."""
    return float(kl_div(first_token(model, rows), before, reduction="none", log_target=True).sum(-1).mean())


def spread(states: Tensor) -> Tensor:
    """The root mean square distance (...) of states (..., prompts, d_model) from their mean."""
    return (states - states.mean(-2, keepdim=True)).norm(dim=-1).square().mean(-1).sqrt()


def refused(rows: list[list[int]], log_odds: Tensor, refuses: bool = True) -> list[list[int]]:
    """The rows that are refused (or answered: ``refuses=False``), by log-odds above or below 0. Where these are fewer
    than LEAST, the LEAST most so."""
    sign = 1 if refuses else -1
    order = sorted(range(len(rows)), key=lambda i: -sign * float(log_odds[i]))
    n = max(int((sign * log_odds > 0).sum()), min(LEAST, len(rows)))
    return [rows[i] for i in sorted(order[:n])]
