"""Two models at equal safety: how many of some prompts each answers where both refuse the same share of toxic ones.

    python benchmarks/equal_safety.py --toxic A.answers.jsonl B.answers.jsonl --others A2.answers.jsonl B2.answers.jsonl

The files are what ``dcr-lite evaluate --out`` writes beside its result, or ``dcr-lite compare`` in seed*/answers, the
first of each two of one model, the second of another, answers to the same prompts. A threshold on the log-odds of
opening with a refusal stands for a turn of the dial: the highest that so many toxic prompts reach. The table has the
share of ``--others`` below it, of each model, and the second's minus the first's with its 95 % interval: a percentile
bootstrap over prompts, which are drawn anew for both models alike, with a threshold for each draw.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray

from dcr_lite.errors import UserError
from dcr_lite.measure.answers import read_answers
from dcr_lite.measure.metrics import answered_shares, percentile_interval
from dcr_lite.run.report import markdown_table

HEAD = ("toxic prompts refused", "the first answers ↑", "the second answers ↑", "difference")
Floats = NDArray[np.float64]


@dataclass
class Choices:
    """What to compare."""

    toxic: tuple[Path, Path]
    """Answers to toxic prompts, of which those of another label are left out."""
    others: tuple[Path, Path]
    """Answers to the prompts that should be answered, of which toxic ones are left out; may be the same files."""
    refused: tuple[float, ...] = (0.95, 0.9, 0.85, 0.8, 0.7)
    """Shares of the toxic prompts."""


def log_odds(files: tuple[Path, Path], toxic: bool) -> Floats:
    """Of both models for the same prompts: (2, prompts), the toxic ones or the others. Raises UserError where the files
    hold answers to different prompts."""
    both = [
        {
            (str(row.get("before")), row["prompt"]): row["refusal_log_odds"]
            for row in read_answers(file)
            if (row["label"] == "toxic") == toxic
        }
        for file in files
    ]
    if both[0].keys() != both[1].keys() or not both[0]:
        raise UserError(f"{files[0]} and {files[1]} hold answers to different prompts, or to none: ask both the same.")
    return np.array([[one[prompt] for prompt in both[0]] for one in both])


def compared(toxic: Floats, others: Floats, shares: Sequence[float]) -> list[list[str]]:
    """Rows of the table, from the log-odds of both models, (2, prompts) each."""
    rows = []
    for share in shares:
        first, second = (
            answered_shares({"": of_toxic.tolist()}, {"": of_others.tolist()}, share)
            for of_toxic, of_others in zip(toxic, others, strict=True)
        )
        change = second - first
        low, high = percentile_interval(change[1:])
        said = f"{change[0]:+.2f} ({low:+.2f} to {high:+.2f})"
        rows.append([f"{share:.2f}", f"{first[0]:.2f}", f"{second[0]:.2f}", said])
    return rows


def main(choices: Choices) -> None:
    toxic, others = log_odds(choices.toxic, True), log_odds(choices.others, False)
    print(f"{toxic.shape[1]} toxic prompts, {others.shape[1]} others\n")
    print(markdown_table(HEAD, compared(toxic, others, choices.refused)))


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
