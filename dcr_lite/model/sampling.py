"""How the next token of an answer is chosen from its logits: the most probable one, or one drawn from the softmax."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# (logits (rows, vocabulary), the rows' numbers, how many tokens each answer has so far) -> tokens (rows,)
Choose = Callable[[Tensor, Sequence[int], int], Tensor]


def most_probable(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """Greedy decoding: the token with the highest logit."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Sampled:
    """Sampling at temperature 1: a token from the softmax of the logits, none left out.

    The draw depends on the seed, on the row's number and on the step alone, so that batches, and rows that end, change
    no other row's answer.
    """

    seed: int

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        # Seeded by a text, Python's generator mixes its digest: neighbouring rows and steps have nothing in common.
        draws = [random.Random(f"{self.seed} {row} {step}").random() for row in rows]
        below = logits.cpu().double().softmax(-1).cumsum(-1)  # on the CPU: a Mac's GPU has no float64
        # Of the total and not of 1, which rounding can leave just out of reach.
        wanted = torch.tensor(draws, dtype=torch.float64)[:, None] * below[:, -1:]
        return torch.searchsorted(below, wanted, right=True)[:, 0].clamp(max=logits.shape[-1] - 1).to(logits.device)
