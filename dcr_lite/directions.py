"""Directions in a model's states between kinds of prompt: what the training-free baselines and the diagnosis share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcr_lite.backend import Model
from dcr_lite.generation import answer
from dcr_lite.hidden_states import states_of_every_layer
from dcr_lite.packing import shared_prefix

TOKENS_PER_PASS = 4096  # of one forward pass
LEAST = 8  # prompts behind a mean: fewer say more of themselves than of their kind


@dataclass(frozen=True)
class Kinds:
    """Prompts of the three kinds as rows of token ids in the chat template."""

    toxic: list[list[int]]
    seemingly_toxic: list[list[int]]
    plain: list[list[int]]


def last_states(model: Model, rows: list[list[int]], tokens: int = 1) -> Tensor:
    """States of the last ``tokens`` tokens of each row at every decoder layer, pre-norm: (layers, rows, tokens,
    d_model), float32 on the CPU. Rows need that many tokens of their own behind what all of them share."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    most = min(TOKENS_PER_PASS, model.tokens_per_pass)
    parts = []
    model.network.eval()
    start = 0
    while start < len(order):
        stop, size = start, 0
        while stop < len(order) and (stop == start or size + len(rows[order[stop]]) <= most):
            size += len(rows[order[stop]])
            stop += 1
        # A row shared up to its last tokens keeps them: they are asked for.
        part = [rows[i] for i in order[start:stop]]
        prefix = min(shared_prefix(part), min(map(len, part)) - tokens)
        batch = model.batch(part, prefix)
        places = torch.cat([own[-tokens:] for own in batch.index])
        with torch.no_grad(), model.compute():
            states = states_of_every_layer(model.network, batch, places).cpu()
        parts.append(states.view(len(states), stop - start, tokens, -1))
        start = stop
    inverse = torch.empty(len(rows), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(rows))
    return torch.cat(parts, 1)[:, inverse]


def shared_ending(rows: list[list[int]]) -> int:
    """How many tokens all rows end with: what the chat template writes behind a prompt. At least 1."""
    return max(1, shared_prefix([row[::-1] for row in rows]))


def refusal_log_odds(model: Model, rows: list[list[int]]) -> Tensor:
    """Log-odds (rows,) of opening with a refusal, of the model as it stands."""
    return torch.tensor([said.refusal_log_odds for said in answer(model, rows, max_new_tokens=0)])


def refused(rows: list[list[int]], log_odds: Tensor, refuses: bool = True) -> list[list[int]]:
    """The rows that are refused (or answered: ``refuses=False``), by log-odds above or below 0. Where these are fewer
    than LEAST, the LEAST most so."""
    sign = 1 if refuses else -1
    order = sorted(range(len(rows)), key=lambda i: -sign * float(log_odds[i]))
    n = max(int((sign * log_odds > 0).sum()), min(LEAST, len(rows)))
    return [rows[i] for i in sorted(order[:n])]
