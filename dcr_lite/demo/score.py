"""What a model of a run makes of a prompt: probability, similarity, words, answer and verdict."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from dcr_lite.demo.texts import IN_WORDS
from dcr_lite.measure.kinds import Kind
from dcr_lite.run.discernment import Similarity

TOP_WORDS = 3  # that are named beside the marked prompt


@dataclass(frozen=True)
class Word:
    """A piece of the prompt and its weight: by how much the log-odds of refusing fall when it is left out (negative:
    they rise). start, stop: its place in the prompt, in characters."""

    text: str
    start: int
    stop: int
    weight: float


@dataclass(frozen=True)
class Score:
    """One model's result for one prompt.

    refusal_log_odds: of opening with a refusal, computed before the first token.
    similarity: of the prompt's layer-L state to the two kinds, without the dial, as it was calibrated; None where
        the run has no discernment file.
    words: every piece with its weight, in order; empty until they are computed.
    answer: the text so far. refused: the judge's verdict on it; None until it is final.
    strength: of the dial; None for other models than DCR, and in a run without a dial.
    kind: of the complete answer; None before, and where it was stopped once its refusal was sure.
    """

    model: str
    prompt: str
    refusal_log_odds: float
    similarity: Similarity | None = None
    words: tuple[Word, ...] = ()
    answer: str = ""
    refused: bool | None = None
    strength: float | None = None
    kind: Kind | None = None

    @property
    def refusal_probability(self) -> float:
        """Of opening with a refusal, 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.refusal_log_odds)))

    @property
    def refuses(self) -> bool:
        """The judge's verdict; before it is final, whether a refusal is the more probable opening."""
        return self.refusal_probability >= 0.5 if self.refused is None else self.refused

    @property
    def verdict(self) -> str:
        """``refuses`` in words, and the kind of answer once it is known."""
        verdict = IN_WORDS[self.kind] if self.kind else "refuses" if self.refuses else "answers"
        return f"likely {verdict} …" if self.refused is None else verdict

    @property
    def heaviest(self) -> list[Word]:
        """The TOP_WORDS words with the largest weights, whatever their sign."""
        return sorted(self.words, key=lambda word: -abs(word.weight))[:TOP_WORDS]

    def for_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"refusal_probability": self.refusal_probability}
