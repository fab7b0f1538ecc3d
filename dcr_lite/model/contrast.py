"""Two prompts for one answer: its first tokens are chosen by the next-token logits of both."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Contrast:
    """A second prompt beside each prompt.

    prompts: gives the second ones for prompts, both as rows of token ids.
    adjusted: (logits, logits behind the second prompts) -> the logits that tokens are chosen by; all of them
        (batch, vocabulary).
    steps: how many tokens of an answer are chosen so. Both prompts are given the same tokens; from then on the second
        ones are left, and the others go on alone.
    """

    prompts: Callable[[list[list[int]]], list[list[int]]]
    adjusted: Callable[[Tensor, Tensor], Tensor]
    steps: int
