"""Prompts of the three kinds and which of them are refused: the training-free methods take directions from them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix

LEAST = 8  # prompts behind a mean: with fewer it depends on the single prompts


@dataclass(frozen=True)
class Kinds:
    """Prompts of the three kinds as rows of token ids in the chat template."""

    toxic: list[list[int]]
    seemingly_toxic: list[list[int]]
    plain: list[list[int]]


def shared_ending(rows: list[list[int]]) -> int:
    """How many tokens all rows end with: what the chat template writes behind a prompt. At least 1."""
    return max(1, shared_prefix([row[::-1] for row in rows]))


def refusal_log_odds(model: Model, rows: list[list[int]]) -> Tensor:
    """Log-odds (rows,) of opening with a refusal, of the model as it stands."""
    return torch.tensor([given.refusal_log_odds for given in answer(model, rows, max_new_tokens=0)])


def refused(rows: list[list[int]], log_odds: Tensor, refuses: bool = True) -> list[list[int]]:
    """The rows that are refused (or answered: ``refuses=False``), by log-odds above or below 0. Where these are fewer
    than LEAST, the LEAST most so."""
    sign = 1 if refuses else -1
    order = sorted(range(len(rows)), key=lambda i: -sign * float(log_odds[i]))
    n = max(int((sign * log_odds > 0).sum()), min(LEAST, len(rows)))
    return [rows[i] for i in sorted(order[:n])]
