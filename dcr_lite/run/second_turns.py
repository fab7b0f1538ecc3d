"""Rows of safety SFT as second turns of conversations: a model that has learnt from single prompts alone refuses less
later on (docs/probing.md)."""

import random
import sys
from collections.abc import Sequence
from dataclasses import replace

from dcr_lite.data.rows import Conversation
from dcr_lite.model.chat import Tokenizer, encode_conversations


def with_second_turns(
    tokenizer: Tokenizer, rows: Sequence[Conversation], share: float, seed: int, most: int
) -> list[Conversation]:
    """The rows, a share of them behind another one with its answer, refusals and instructions as they come; fewer where
    nothing is short enough for ``most`` tokens together. Of the messages before such a row one of the system stays the
    first; no row that stands behind messages itself comes first, where they would be missing."""
    prompts, answers = [row.prompt for row in rows], [row.begun + row.response for row in rows]
    earlier = [row.before for row in rows]
    encoded = encode_conversations(tokenizer, prompts, answers, sys.maxsize, before=earlier)  # alone known to fit
    lengths = [len(prompt) + len(answer) for prompt, answer in encoded]
    firsts = [number for number, row in enumerate(rows) if row.ends and not row.begun and not row.before]
    rng, found = random.Random(seed), list(rows)
    for number in rng.sample(range(len(rows)), round(share * len(rows))):
        short = [other for other in firsts if other != number and lengths[other] + lengths[number] <= most]
        if short:
            other, own = rows[rng.choice(short)], rows[number].before
            first = sum(role == "system" for role, _ in own)
            turn = ("user", other.prompt), ("assistant", other.response)
            found[number] = replace(rows[number], before=(*own[:first], *turn, *own[first:]))
    return found
