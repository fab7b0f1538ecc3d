"""Large batches of negatives: stage 1's exact two-pass scheme (GradCache) against one pass.

    python benchmarks/negatives.py                   # 32, 128 and 512 prompts in one loss

Both sides are the package's own step; the second takes a batch of any size in one pass. Growth compares the two-pass
scheme with itself: the cost of the largest batch over that of the smallest one, per prompt in time and in total in
memory.
"""

from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
import tyro
from _measure import Outcome, Result, Step, finish, memory_rows, peak_memory, require_equal, time_sides
from _sides import gradients
from stage1 import Stage1, prepare

from dcr_lite.model import states


@dataclass
class Negatives(Stage1):
    """What to measure."""

    sizes: tuple[int, ...] = (32, 128, 512)
    """Prompts in a batch, in ascending order."""
    tokens_per_pass: int | None = None
    """Tokens of one pass, and of a part of a larger batch. Unset: as a run cuts a batch."""


def _step(case: Negatives, precision: torch.dtype, tokens_per_pass: int | None) -> Step:
    stage = prepare(case, precision)
    whole = tokens_per_pass or states.TOKENS_PER_PASS
    part = tokens_per_pass or states.TOKENS_PER_PART
    stage.model.tokens_per_pass = whole

    def step(i: int) -> Outcome:
        with patch.multiple(states, TOKENS_PER_PASS=whole, TOKENS_PER_PART=part):
            return {"loss": stage.step(i), **gradients(stage.model.network)}

    return step


def two_pass(case: Negatives, precision: torch.dtype) -> Step:
    """Parts of a batch, encoded twice; a batch of one part takes one pass."""
    return _step(case, precision, case.tokens_per_pass)


def one_pass(case: Negatives, precision: torch.dtype) -> Step:
    """The whole batch at once."""
    return _step(case, precision, 2**62)


def main(case: Negatives) -> list[Result]:
    results: list[Result] = []
    time: dict[int, list[float]] = {}
    memory: dict[int, tuple[float, float]] = {}
    for size in case.sizes:
        sized = replace(case, prompts=size)
        equal_to = require_equal(two_pass, one_pass, sized)
        seconds = time_sides({"two": two_pass, "one": one_pass}, sized)
        per_prompt = {name: [1e3 * s / size for s in turns] for name, turns in seconds.items()}
        results.append(Result.of(f"{size} prompts: step", per_prompt["two"], per_prompt["one"], "ms/prompt", equal_to))
        time[size], memory[size] = per_prompt["two"], peak_memory(two_pass, sized)
        results += memory_rows(f"{size} prompts", [memory[size]], [peak_memory(one_pass, sized)], equal_to)
    low, high = case.sizes[0], case.sizes[-1]
    growth = f"two passes, {high} against {low} prompts"
    results.append(Result.of(f"{growth}: step", time[high], time[low], "ms/prompt", equal_to))
    results += memory_rows(growth, [memory[high]], [memory[low]], equal_to)
    note = "The last three rows compare the two-pass scheme with itself: the large batch left, the small one right."
    return finish(case, results, "two passes", "one pass", note)


if __name__ == "__main__":
    main(tyro.cli(Negatives, description=__doc__))
