"""Prefilling: the answer begins with tokens that the model has not chosen (Andriushchenko et al., arXiv 2404.02151; Qi
et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025, arXiv 2406.05946).

Behind the generation prompt stand the first tokens of the *stock* model's own answer, the same for every model, and
what follows them is judged alone. Where the stock model refuses by itself, its answer behind a forced opening takes the
place.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dcr_lite.measure.openings import led
from dcr_lite.model.loading import Model

MOST = 40  # tokens of an answer that are asked for


@dataclass(frozen=True)
class StockAnswer:
    """How the stock model answers a prompt: the first tokens, whether the answer has ended with them, and whether its
    opening was forced."""

    ids: list[int]
    ended: bool
    forced: bool

    def first(self, tokens: int) -> list[int]:
        """At most so many of its first tokens. Of an answer that has ended at most the first half: behind a whole one
        nothing would be left to say."""
        return self.ids[: min(tokens, (len(self.ids) + 1) // 2 if self.ended else len(self.ids))]


@contextmanager
def prefilled(model: Model, rows: list[list[int]], starts: list[list[int]]) -> Iterator[list[list[int]]]:
    """Gives prompts, as rows of token ids, each with the beginning of its answer behind it. Within the block the second
    prompts of a contrasted decoding (``Model.contrast``) are those of the prompts, and end with the same beginnings; a
    refusal may also open behind a space, as it does within a line."""
    openings = model.openings
    usual, whole = model.contrast, [row + start for row, start in zip(rows, starts, strict=True)]
    if usual is not None:
        prompts = usual.prompts
        parts = {tuple(row + start): (row, start) for row, start in zip(rows, starts, strict=True)}

        def second(given: list[list[int]]) -> list[list[int]]:
            known = [parts[tuple(row)] for row in given]
            found = prompts([row for row, _ in known])
            return [row + start for row, (_, start) in zip(found, known, strict=True)]

        model.contrast = replace(usual, prompts=second)
    if any(starts):
        model.openings = tuple(dict.fromkeys((*openings, *(f" {opening}" for opening in openings))))
    try:
        yield whole
    finally:
        model.contrast, model.openings = usual, openings


def stock_answers(model: Model, rows: list[list[int]]) -> list[StockAnswer]:
    """How the model as it stands, which has to be the stock model, answers prompts given as token ids."""
    return [StockAnswer(list(said.ids), said.ended, bool(forced)) for said, forced in led(model, rows, MOST)]
