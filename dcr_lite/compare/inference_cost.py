"""What an answer costs: some methods work on while the model answers, or before it begins to."""

import math
import time
from collections.abc import Sequence

from torch import Tensor

from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer, end_tokens, most_probable
from dcr_lite.model.loading import Model

PROMPTS = 8  # plain ones, which every method answers: refusals end after a few tokens
TRIES = 3


def answer_costs(model: Model, prompts: list[str], tokens: int) -> dict[str, float]:
    """What answers to prompts that are answered together cost, of the model as it stands, in milliseconds for each:

    first_token_ms: all that is done up to the first token, as reading the prompt, or another pass to classify it.
    token_ms: one more token, by what ``tokens`` tokens take longer than the first. Whoever works on some of the tokens
        alone, as on the first ten, has that in it in the proportion that answers of that length have.

    The least of TRIES, since other work on a machine only ever adds. Without prompts, or where no answer has a first or
    a second token, what cannot be known is not there.

    No answer ends before it has all tokens: of fewer answers at a time a token would cost more, and how soon a method's
    answers end is no part of its cost. Log-odds of refusing are none either: they are read for one opening of a token,
    which takes no pass.
    """
    if not prompts:
        return {}
    rows, ends = encode_prompts(model.tokenizer, prompts, model.window), end_tokens(model)

    def going_on(logits: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        return most_probable(logits.index_fill(1, ends.to(logits.device), -math.inf), numbers, step)

    def timed(tokens: int) -> tuple[float, int]:
        started = time.perf_counter()
        given = answer(model, rows, tokens, choose=going_on)
        return time.perf_counter() - started, sum(len(one.ids) for one in given)

    openings, model.openings = model.openings, ("I",)
    try:
        (first, begun), (whole, all_tokens) = (min(timed(some) for _ in range(TRIES)) for some in (1, tokens))
    finally:
        model.openings = openings
    costs = {"first_token_ms": first * 1000 / begun} if begun else {}
    more = all_tokens - begun
    return costs | ({"token_ms": max(0.0, whole - first) * 1000 / more} if more > 0 else {})
