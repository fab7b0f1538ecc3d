"""Refusals behind the beginning of an answer, so that a model stops an answer that has begun wrongly: the data
augmentation of Qi et al., "Safety Alignment Should Be Made More Than Just a Few Tokens Deep", ICLR 2025, arXiv
2406.05946, section 3. The stock model's own first tokens take the place of their harmful answers; the refusal behind
them is learnt, and nothing of them."""

import random
from dataclasses import replace

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import evenly_drawn
from dcr_lite.measure.judge import is_refusal
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.settings import Settings

MOST = 40  # tokens of the beginning: as many as an answer that is measured has


def refusals_behind_answers(model: Model, rows: list[Conversation], settings: Settings) -> list[Conversation]:
    """``settings.begun_refusals`` of the refusals among ``rows`` once more, each behind 1 to MOST tokens of the stock
    model's answer to its prompt; fewer where that refuses by itself, or says nothing.

    Raises UserError for more than there are refusals.
    """
    chosen = evenly_drawn("begun refusals", [r for r in rows if r.refuses], settings.begun_refusals, settings.seed)
    prompts = encode_asked(model.tokenizer, chosen, model.window - MOST)
    with adapters.stock(model):
        answers = answer(model, prompts, MOST)
    lengths = random.Random(settings.seed)
    found = []
    for row, said in zip(chosen, answers, strict=True):
        ids = said.ids[: lengths.randint(1, MOST)]
        begun = model.tokenizer.decode(ids, skip_special_tokens=True)
        if begun.strip() and not is_refusal(said.text):
            found.append(replace(row, begun=begun))
    return found
