"""Large batches of negatives: stage 1's exact two-pass scheme (GradCache) against one pass.

    python benchmarks/negatives.py                   # 32, 128 and 512 prompts in one loss

Both sides are the kit's own step; the second may take a batch of any size in one pass. Growth compares the two-pass
scheme with itself: what the largest batch costs over the smallest one, per prompt in time and in all in memory.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import torch
import tyro

sys.path.insert(0, str(Path(__file__).parent))

from _measure import Outcome, Result, Step, finish, gradients, in_turns, peak_memory, require_equal
from stage1 import Stage1, prepare


@dataclass
class Negatives(Stage1):
    """What to measure."""

    sizes: tuple[int, ...] = (32, 128, 512)
    """Prompts in a batch, in ascending order."""
    tokens_per_pass: int | None = None
    """What goes through at once, and a part of what does not. Unset: as the kit cuts a batch."""


def _step(case: Negatives, precision: torch.dtype, tokens_per_pass: int | None) -> Step:
    from dcr_lite.method import contrastive
    from dcr_lite.model import states

    model, loop, _ = prepare(case, precision)
    model.network.train()
    whole = tokens_per_pass or states.TOKENS_PER_PASS
    part = tokens_per_pass or states.TOKENS_PER_PART
    model.tokens_per_pass = whole

    def step(i: int) -> Outcome:
        with patch.multiple(contrastive, TOKENS_PER_PASS=whole, TOKENS_PER_PART=part):
            return {"loss": loop.backward(i), **gradients(model.network)}

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
        precision = case.timed_precision
        sides = {"two": two_pass(sized, precision), "one": one_pass(sized, precision)}
        seconds = in_turns(sides, case.repetitions, case.where)
        sides.clear()
        per_prompt = {name: [1e3 * s / size for s in turns] for name, turns in seconds.items()}
        results.append(Result.of(f"{size} prompts: step", per_prompt["two"], per_prompt["one"], "ms/prompt", equal_to))
        time[size], memory[size] = per_prompt["two"], peak_memory(two_pass, sized)
        whole = peak_memory(one_pass, sized)
        for k, what in enumerate(("peak memory", "memory beyond the loaded model")):
            results.append(Result.of(f"{size} prompts: {what}", [memory[size][k]], [whole[k]], "GB", equal_to))
    low, high = case.sizes[0], case.sizes[-1]
    growth = f"two passes, {high} against {low} prompts"
    results.append(Result.of(f"{growth}: step", time[high], time[low], "ms/prompt", equal_to))
    for k, what in enumerate(("peak memory", "memory beyond the loaded model")):
        results.append(Result.of(f"{growth}: {what}", [memory[high][k]], [memory[low][k]], "GB", equal_to))
    note = "The last three rows compare the two-pass scheme with itself: the large batch left, the small one right."
    return finish(case, results, "two passes", "one pass", note)


if __name__ == "__main__":
    main(tyro.cli(Negatives, description=__doc__))
