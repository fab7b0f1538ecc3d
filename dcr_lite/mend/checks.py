"""What is seen of the user's prompts before anything trains on them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.benchmarks import benchmarks_at_hand
from dcr_lite.data.near import near_duplicates, telltale_words
from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import Measured
from dcr_lite.mend.joining import toxic_prompts
from dcr_lite.mend.prompts import LEAST, Wish
from dcr_lite.mend.reader import Reader
from dcr_lite.run.inputs import Data

ASKED = 0.05  # of seemingly toxic development prompts that would be doubted too: so rarely is a person asked in vain
ALL = "all"

Check = dict[str, Any]


def look(reader: Reader, data: Data, wishes: Sequence[Wish], today: Sequence[Measured]) -> Check:
    """{refused, answered_today, refuse_answered_today, doubtful, duplicates, compared_with, words}, as plain JSON.

    today: the model's answers to all prompts. Prompts are called by their numbers, from 1, among those to answer or
    among those to refuse.
    refused, answered_today: numbers of those to answer. refuse_answered_today: of those to refuse, which it answers.
    doubtful: {number, prompt, reasons, nearest} of those to answer that may be toxic after all, with the toxic prompt
        nearest to each. duplicates: {number, kind, set, prompt} that are nearly the same as one of a prompt set,
        of those in compared_with. words: {answer, refuse}, words that alone tell the one kind from the other.

    Raises UserError where the model answers everything already.
    """
    to_answer, to_refuse = ([w.prompt for w in wishes if w.answered == answered] for answered in (True, False))
    refused = [row["refused"] for row in today]
    n = len(to_answer)
    if not any(refused[:n]):
        raise UserError(
            f"the model answers all {n} prompts that are to be answered: there is nothing to mend. If it is a trained "
            "run that refuses them, mend that: dcr-lite export RUN --to merged, then dcr-lite mend --model RUN/merged"
        )
    sets = benchmarks_at_hand()
    for row in data.held_out:
        sets.setdefault(row.source, []).append(row)
    shipped = [pair.toxic for pair in data.training]
    known = [shipped, to_refuse] if len(to_refuse) >= LEAST else [shipped]
    return {
        "refused": [i + 1 for i in range(n) if refused[i]],
        "answered_today": [i + 1 for i in range(n) if not refused[i]],
        "refuse_answered_today": [i + 1 for i in range(len(to_refuse)) if not refused[n + i]],
        "doubtful": doubtful(reader, data, to_answer, sets),
        "duplicates": [
            {"number": i + 1, "kind": kind, "set": name, "prompt": rows[j].prompt}
            for kind, own in (("answer", to_answer), ("refuse", to_refuse))
            for name, rows in sets.items()
            for i, j, _ in near_duplicates(own, [row.prompt for row in rows])
        ],
        "compared_with": list(sets),
        "words": {
            "answer": telltale_words(to_answer, *known),
            "refuse": telltale_words(to_refuse, to_answer),
        },
    }


def doubtful(
    reader: Reader, data: Data, prompts: list[str], sets: Mapping[str, Sequence[Prompt]]
) -> list[dict[str, Any]]:
    """Those that are nearly the same as a toxic prompt of the run's or of ``sets``; and those that read as toxic at
    layer L of the stock model, or lie nearer to a toxic prompt of the reader's pairs than to any seemingly toxic one,
    by more than nearly all seemingly toxic development prompts do. Each with the nearest of all toxic training
    prompts, which are read where there are such ones; of more pairs both sides would have to be, since of two numbers
    of prompts the larger one comes nearer."""
    known = [pair.toxic for pair in data.training + data.development] + [row.prompt for row in data.refusals]
    same = nearly_toxic(prompts, {"": [Prompt(text, "toxic", "") for text in known], **sets})
    toxic = [pair.toxic for pair in reader.pairs]
    development = [pair.seemingly_toxic for pair in data.development]

    def nearer(some: list[str]) -> Tensor:
        other = reader.cosines(some, [pair.seemingly_toxic for pair in reader.pairs])
        return reader.cosines(some, toxic).max(1).values - other.max(1).values

    scores = {
        "reads as toxic": (reader.toxicity(prompts), reader.toxicity(development)),
        "lies nearer to a toxic prompt than to any other": (nearer(prompts), nearer(development)),
    }
    beyond = {what: own > max(0.0, torch.quantile(usual, 1 - ASKED).item()) for what, (own, usual) in scores.items()}
    reasons = {i: [reason] for i, (reason, _) in same.items()}
    for what, is_so in beyond.items():
        for i in is_so.nonzero().flatten().tolist():
            reasons.setdefault(i, []).append(what)
    nearest = {i: text for i, (_, text) in same.items()}
    if others := sorted(reasons.keys() - same.keys()):
        trained = toxic_prompts(data)
        places = reader.cosines([prompts[i] for i in others], trained).argmax(1).tolist()
        nearest |= {i: trained[j] for i, j in zip(others, places, strict=True)}
    return [
        {"number": i + 1, "prompt": prompts[i], "reasons": reasons[i], "nearest": nearest[i]} for i in sorted(reasons)
    ]


def nearly_toxic(prompts: list[str], sets: Mapping[str, Sequence[Prompt]]) -> dict[int, tuple[str, str]]:
    """{place: (reason, toxic prompt)} of those that are nearly the same as a toxic prompt, of several as the nearest. A
    set speaks of a prompt by its row nearest to it alone: many have seemingly toxic prompts that share most words with
    toxic ones, and what is nearly the same as one of these is not toxic."""
    found: dict[int, tuple[float, str, str]] = {}
    for name, rows in sets.items():
        nearest = dict.fromkeys(range(len(prompts)), (0.0, False, ""))
        for i, j, cosine in near_duplicates(prompts, [row.prompt for row in rows]):
            nearest[i] = max(nearest[i], (cosine, rows[j].label == "toxic", rows[j].prompt))
        reason = f"is nearly the same as a toxic prompt{name and f' of {name}'}"
        for i, (cosine, is_toxic, text) in nearest.items():
            if is_toxic:
                found[i] = max(found.get(i, (0.0, "", "")), (cosine, reason, text))
    return {i: (reason, text) for i, (_, reason, text) in found.items()}


def refused_today(check: Check, wishes: Sequence[Wish]) -> set[int]:
    """The places of the prompts that the model refuses today, of those to answer, which come first, and the others."""
    n = sum(wish.answered for wish in wishes)
    answered = {n + number - 1 for number in check["refuse_answered_today"]}
    return {number - 1 for number in check["refused"]} | set(range(n, len(wishes))) - answered


def left_out(check: Check, sure: Sequence[str]) -> set[int]:
    """The places of the doubtful prompts that ``sure``, their numbers or "all", does not confirm. Raises UserError for
    numbers that are none of theirs."""
    numbers = {str(one["number"]) for one in check["doubtful"]}
    if unknown := set(sure) - numbers - {ALL}:
        those = ", ".join(sorted(numbers, key=int)) or "none"
        raise UserError(f"--sure {' '.join(sorted(unknown))}: not among the doubtful prompts ({those}), nor all")
    return set() if ALL in sure else {int(number) - 1 for number in numbers - set(sure)}
