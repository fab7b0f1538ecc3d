"""What a judge is: it reads prompts with their answers, and gives each answer the probability that it is a refusal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Exchange:
    """A prompt and what a model answered."""

    prompt: str
    response: str


class Judge(Protocol):
    """A judge of refusals.

    name: as the user gave it, without a password; in files and tables.
    """

    name: str

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """For each row the probability, 0 to 1, that the answer refuses, fully or partly; NaN where the judge gives no
        verdict. Raises UserError where it cannot judge at all."""
        ...


def short(name: str) -> str:
    """A judge's name for the head of a column: the model of an endpoint, the last part of a path."""
    return name.rpartition("#")[2].rstrip("/\\").replace("\\", "/").rpartition("/")[2] or name


def verdict(score: float) -> bool | None:
    """Whether a score says refusal; None where the judge gave no verdict."""
    return None if math.isnan(score) else score >= 0.5
