"""What a token of an answer costs: some methods work on while the model answers."""

import math
import time
from collections.abc import Sequence

from torch import Tensor

from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer, end_tokens, most_probable
from dcr_lite.model.loading import Model

PROMPTS = 8  # plain ones, which every method answers: refusals end after a few tokens
TOKENS = 24  # of each answer: a method that works on the first ten alone has its share
TRIES = 3


def token_seconds(model: Model, prompts: list[str]) -> float | None:
    """Seconds for one more token of the answers to prompts that are answered together, of the model as it stands: what
    TOKENS tokens take longer than the first. The least of TRIES, since other work on a machine only ever adds. None
    without prompts, and where no answer has a second token.

    No answer ends before it has all tokens: of fewer answers at a time a token would cost more, and how soon a method's
    answers end is no part of its cost.
    """
    if not prompts:
        return None
    rows, ends = encode_prompts(model.tokenizer, prompts, model.window), end_tokens(model)

    def going_on(logits: Tensor, numbers: Sequence[int], step: int) -> Tensor:
        return most_probable(logits.index_fill(1, ends.to(logits.device), -math.inf), numbers, step)

    def timed(tokens: int) -> tuple[float, int]:
        started = time.perf_counter()
        given = answer(model, rows, tokens, choose=going_on)
        return time.perf_counter() - started, sum(len(one.ids) for one in given)

    first, whole = ([timed(tokens) for _ in range(TRIES)] for tokens in (1, TOKENS))
    more = whole[0][1] - first[0][1]
    return max(0.0, min(whole)[0] - min(first)[0]) / more if more > 0 else None
