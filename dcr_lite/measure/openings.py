"""How a model begins its refusals, learnt from its own judged answers: what its refusal probability has to know; and
how an answer begins that it is made to give."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dcr_lite.measure.judge import is_refusal
from dcr_lite.model.chat import decode_answers
from dcr_lite.model.generation import Answer, answer
from dcr_lite.model.loading import REFUSING_OPENINGS, Model

MOST = 8  # further openings: each needs tokens of its own behind every prompt
WORDS = 8  # of an opening, at most: the telling one of 'As an AI language model, I do not' is the eighth
REFUSALS = 2  # that have to begin so
PRECISION = 0.9  # of the answers that begin so, how many have to be refusals

FORCED_OPENING = "Sure, here is"  # of an answer to a prompt that a model refuses by itself


def own_openings(refused: Sequence[str], answered: Sequence[str]) -> tuple[str, ...]:
    """REFUSING_OPENINGS, and the beginnings of those texts of refusals (``refused``) that begin in another way: the
    most frequent first, none that other answers (``answered``) share. No opening begins with another one, so that
    their probabilities add up."""
    openings = list(REFUSING_OPENINGS)
    while len(openings) < len(REFUSING_OPENINGS) + MOST:
        counts = Counter(opening for text in refused if not _begins(text, openings) for opening in _openings(text))
        fitting = {
            opening: n
            for opening, n in counts.items()
            if n >= REFUSALS
            and not any(one.startswith(opening) for one in openings)
            and _count(refused, opening) >= PRECISION * _count([*refused, *answered], opening)
        }
        if not fitting:
            break
        openings.append(max(fitting, key=lambda opening: (fitting[opening], len(opening), opening)))
    return tuple(openings)


def _openings(text: str) -> list[str]:
    """The first one, two ... words of the first line of a text, without punctuation behind them."""
    found = re.match(rf"(?:\S+ ?){{1,{WORDS}}}", text)
    words = found[0].split() if found else []
    openings = (" ".join(words[:n]).rstrip(",.:;!?-") for n in range(1, len(words) + 1))
    return list(dict.fromkeys(filter(None, openings)))


def _begins(text: str, openings: Sequence[str]) -> bool:
    return any(text.startswith(opening) for opening in openings)


def _count(texts: Sequence[str], opening: str) -> int:
    """How many texts begin with these whole words."""
    begins = re.compile(re.escape(opening) + r"(?!\w)")
    return sum(begins.match(text) is not None for text in texts)


def led(
    model: Model, rows: list[list[int]], tokens: int, opening: str = FORCED_OPENING, refusing: bool = False
) -> list[tuple[Answer, str]]:
    """What the model says to each prompt, given as token ids: by itself where that refuses, or does not, as
    ``refusing`` asks for; else with ``opening`` and what it says behind it. And that opening, empty where it was not
    needed.

    tokens: of an answer at most, those of the opening, which has fewer, among them.
    """
    said = [(own, "") for own in answer(model, rows, tokens)]
    others = [i for i, (own, _) in enumerate(said) if is_refusal(own.text) != refusing]
    if not others:
        return said
    first = list(model.tokenizer(opening, add_special_tokens=False)["input_ids"])
    completed = answer(model, [rows[i] + first for i in others], tokens - len(first))
    ids = [[*first, *one.ids] for one in completed]
    whole = decode_answers(model.tokenizer, [rows[i] for i in others], ids)
    for i, one, own, text in zip(others, completed, ids, whole, strict=True):
        said[i] = replace(one, text=text, ids=tuple(own)), opening
    return said
