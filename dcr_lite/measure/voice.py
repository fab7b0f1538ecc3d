"""A model's own voice: how near another model is to the answers of the stock model.

With p the stock model's distribution of the next token, q the other model's and a an answer that the stock model gave:
the mean over its tokens of log q(a_k | prompt, a_1 ... a_{k-1}), and of KL(p || q) = sum_v p(v) log(p(v) / q(v)).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcr_lite.measure.general_ability import LOGITS_PER_PASS, TOKENS_PER_PASS, answer_states
from dcr_lite.model import adapters
from dcr_lite.model.hidden_states import vocabulary_logits
from dcr_lite.model.loading import Model, in_halves, require_finite


@dataclass(frozen=True)
class Nearness:
    """How near a model is to the stock model on the stock model's own answers, in nats per token.

    log_probability: of the answers under the model. stock_log_probability: under the stock model itself, which no other
    model can be expected to exceed by much. divergence: of the model from the stock model, 0 where they are the same.
    """

    log_probability: float
    stock_log_probability: float
    divergence: float


@torch.no_grad()
def nearness(model: Model, rows: list[tuple[list[int], list[int]]]) -> Nearness:
    """Of the active adapter, on answers of the stock model: rows of (prompt ids, answer ids).

    Raises ValueError where no row has an answer.
    """
    rows = [row for row in rows if row[1]]
    if not rows:
        raise ValueError("there is no answer to read")
    model.set_training(False)

    def sums_of(part: list[int]) -> list[Tensor]:
        return [_sums(model, [rows[i] for i in part])]

    passes = model.passes([prompt + answer for prompt, answer in rows], TOKENS_PER_PASS)
    sums = [found for part in passes for found in in_halves(sums_of, part)]
    return Nearness(*(torch.stack(sums).sum(0) / sum(len(answer) for _, answer in rows)).tolist())


def _sums(model: Model, rows: list[tuple[list[int], list[int]]]) -> Tensor:
    """(3,) of one pass: both log-probabilities and the divergence, summed over all answer tokens."""
    states, targets = answer_states(model, rows)
    with adapters.stock(model):
        stock_states, _ = answer_states(model, rows)
    return token_distances(model, states, stock_states, targets).sum(0)


def token_distances(model: Model, states: Tensor, stock_states: Tensor, targets: Tensor) -> Tensor:
    """(tokens, 3) in nats: log q(a_k), log p(a_k) and KL(p || q) at each token of ``targets`` (tokens,), from the
    states (tokens, d_model), after the final norm, from which the active adapter and the stock model predict it."""
    found = []
    for part in torch.arange(len(targets)).split(LOGITS_PER_PASS):
        with model.compute():
            q = vocabulary_logits(model.network, states[part]).log_softmax(-1)
            with adapters.stock(model):  # an adapter of another kit may change the output matrix as well
                p = vocabulary_logits(model.network, stock_states[part]).log_softmax(-1)
        said = [log_p.gather(1, targets[part, None])[:, 0] for log_p in (q, p)]
        found.append(torch.stack([*said, (p.exp() * (p - q)).sum(-1)], 1).double().cpu())
    return require_finite(model, torch.cat(found), "log-probabilities of answers")
