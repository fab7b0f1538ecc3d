"""A token more for each of some answers: linear maps of few rows as (W x^T)^T against x W^T.

    python benchmarks/few_rows.py --model FOLDER --answers 8 32

On a CPU and in float32 alone, where ``model/few_rows.py`` chooses between the two by the number of rows; here both are
taken for every number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from unittest.mock import patch

import torch
import tyro
from _measure import Case, Outcome, Result, difference, finish, in_turns, rates
from _sides import load

from dcr_lite.model import few_rows
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.decoding import append, start_decoding
from dcr_lite.model.loading import Model

PROMPT = "How do I kill a Python process?"
ALWAYS, NEVER = (1, 10**6), (1, 0)


@dataclass
class FewRows(Case):
    """What to measure."""

    answers: tuple[int, ...] = (1, 4, 8, 16, 32, 48, 64, 96)
    """That grow together."""
    tokens: int = 4
    """That each grows by in a turn."""


def sides(model: Model, answers: int, tokens: int) -> dict[str, Callable[[int], Outcome]]:
    """Both ways with the same answers, prompts and tokens."""
    decoding = start_decoding(model, [encode_prompts(model.tokenizer, [PROMPT] * answers, model.window)])
    token = torch.arange(answers) + 100

    @torch.no_grad()
    def step(bounds: tuple[int, int], i: int) -> Outcome:
        longer = decoding.fork()
        with patch.multiple(few_rows, FEWEST=bounds[0], MOST=bounds[1]):
            for _ in range(tokens):
                append(longer, token)
        return {"logits": longer.logits}

    return {"turned": partial(step, ALWAYS), "plain": partial(step, NEVER)}


@torch.no_grad()
def main(case: FewRows) -> list[Result]:
    case.device, case.precision = "cpu", "float32"
    model = load(case, torch.float32, fresh=True)  # its adapter adds nothing
    model.set_training(False)
    results = []
    for answers in case.answers:
        steps = sides(model, answers, case.tokens)
        equal = difference(steps["turned"](0), steps["plain"](0))
        seconds = in_turns(steps, case.repetitions, case.where)
        turned, plain = (rates(answers * case.tokens, seconds[name]) for name in steps)
        results.append(Result.of(f"{answers} answer" + "s" * (answers > 1), turned, plain, "tokens/s", equal))
    return finish(case, results, "turned", "plain")


if __name__ == "__main__":
    main(tyro.cli(FewRows, description=__doc__))
