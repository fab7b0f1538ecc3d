"""General instructions answered by the stock model itself: safety SFT on its own answers teaches a chat model to refuse
and leaves the way in which it answers as it is.

They are given once, in batches, and kept in the run folder with the reasons why some are not learnt from. An answer
that has not ended is learnt without an end, and one that repeats itself up to there: to leave out the long ones would
teach the model to be brief.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import evenly_drawn, safety_mixture
from dcr_lite.errors import UserError
from dcr_lite.files import sha256_of, write_jsonl
from dcr_lite.measure.brokenness import before_repeating, is_broken, repeats_itself
from dcr_lite.measure.judge import is_refusal
from dcr_lite.model import adapters, distributed
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.generation import Answer, answer, longer_answers
from dcr_lite.model.loading import Model
from dcr_lite.model.thinking import answer_of
from dcr_lite.run import long_rows
from dcr_lite.run.inputs import Data
from dcr_lite.run.kept_rows import DIGEST, Row, kept_rows
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.terminal import progress_bar, show_line
from dcr_lite.settings import Settings

PART = "own_answers"  # of a run, and the name of its file
OWN_TOKENS = 80  # of an own answer, at most: with 160 nothing is gained, at twice the time (docs/ablations.md)
BATCH = 64  # instructions between two writes of the file
LEAST = 0.25  # of the instructions that are wanted: with fewer, refusals would be most of what is learnt
SELDOM = 0.05  # of own answers end: a base model goes on and on. Of SmolLM2's 0.29 end, of Qwen2.5-Coder-0.5B's 0.48

# Of the file: prompt, response, ends (not cut off), and left_out, the reason, empty where the answer is learnt from.
FIELDS = {"prompt": str, "response": str, "ends": bool, "left_out": str}


def in_own_voice(run: RunFolder, model: Model, data: Data, settings: Settings) -> Data:
    """``data`` with the general instructions of safety SFT answered by the stock model, and the baseline's mixture of
    these; as it was where the settings take the given answers.

    Answers that are empty, refuse or are broken are left out, and further instructions taken in their place while there
    are any. Raises UserError where too few are left.
    """
    if settings.answers != "own":
        return data
    path, wanted = run.path / f"{PART}.jsonl", settings.sizes["instructions"]
    most = long_rows.longest_row(run, model)
    order = candidates(model, data, settings.seed, most)
    rows = distributed.on_main(lambda: kept_rows(run, PART, path, FIELDS, [row.prompt for row in order]))
    if not run.finished(PART):
        started = time.monotonic()
        rows = answers_of(model, order, wanted, settings.answer_tokens, rows, lambda some: write_jsonl(some, path))
        counts = Counter(row["left_out"] or "learnt" for row in rows)
        facts = {"seconds": time.monotonic() - started, "counts": counts}
        distributed.on_main(lambda: run.finish(PART, facts | {DIGEST: sha256_of(path)}))
        distributed.on_main(lambda: _say_if_few_end(rows))
    own = learnt(order, rows)
    if len(own) < LEAST * wanted:
        raise UserError(
            f"{settings.model} gives only {len(own)} of {len(rows)} general instructions an answer that can be learnt "
            f"from ({path}): take the given answers, with --answers given and another --run"
        )
    refusals = settings.sizes["baseline_refusals"]
    mixture = safety_mixture(own, data.refusals, len(own), refusals, settings.seed)
    return replace(data, instructions=own, baseline_mixture=mixture)


def _say_if_few_end(rows: list[Row]) -> None:
    ends = [row["ends"] for row in rows if not row["left_out"]]
    if sum(ends) < SELDOM * len(ends):
        show_line(
            f"Of {len(ends):,} own answers {sum(ends):,} end by themselves within {OWN_TOKENS} tokens. If this is a "
            "base model whose tokenizer brings a chat template, it teaches itself how it continues texts: begin anew "
            "with --chat-format chatml, or with --answers given."
        )


def candidates(model: Model, data: Data, seed: int, most: int) -> list[Conversation]:
    """The instructions that safety SFT draws, in its order, and behind them those that can take another's place: not
    the ones that are watched, nor those that would have more than ``most`` tokens with an answer."""
    order = evenly_drawn("instructions", data.instructions, len(data.instructions), seed)
    watched = {prompt.prompt for prompt in data.watched}
    lengths = [OWN_TOKENS + len(row) for row in encode_asked(model.tokenizer, order, model.window)]
    return [c for c, n in zip(order, lengths, strict=True) if c.prompt not in watched and n <= most]


def answers_of(
    model: Model, order: list[Conversation], wanted: int, answer_tokens: int, rows: list[Row],
    keep: Callable[[list[Row]], None],
) -> list[Row]:  # fmt: skip
    """The stock model's answers to the first of ``order``, the ``candidates``, until ``wanted`` can be learnt from or
    none is left; ``rows``: those that were given before. ``keep`` is called with all rows after every batch.

    ``answer_tokens``: of the answers for which the model's memory was planned; longer ones are given fewer at a time.
    """
    rows, fewer = list(rows), longer_answers(model, answer_tokens, OWN_TOKENS)
    with progress_bar("Own answers", wanted) as shown, adapters.stock(model), fewer:
        shown.start_at(usable := _usable(rows))
        while usable < wanted and len(rows) < len(order):
            batch = order[len(rows) :][: min(BATCH, wanted - usable)]
            ids = encode_asked(model.tokenizer, distributed.share(batch), model.window)
            said = distributed.gathered(answer(model, ids, OWN_TOKENS, stop=repeats_itself))
            rows += map(_row, batch, said)
            if distributed.is_main():
                keep(rows)
            new = _usable(rows) - usable
            usable += new
            shown.facts["left out"] = str(len(rows) - usable)
            shown.advance(new)
    return rows


def _row(instruction: Conversation, said: Answer) -> Row:
    """What is kept of an answer."""
    whole = answer_of(said.text)
    text = before_repeating(whole)
    ends = said.ended and text == whole
    return {"prompt": instruction.prompt, "response": text, "ends": ends, "left_out": _fault(instruction.prompt, text)}


def _fault(prompt: str, text: str) -> str:
    """Why an answer is not learnt from; empty where it is."""
    if not text:
        return "empty"
    if is_refusal(text):
        return "refusal"
    return "broken" if is_broken(prompt, text) else ""


def _usable(rows: list[Row]) -> int:
    return sum(not row["left_out"] for row in rows)


def learnt(order: list[Conversation], rows: list[Row]) -> list[Conversation]:
    """The instructions with the answers that are learnt from."""
    answered = zip(order, rows, strict=False)  # only as many were answered as were needed
    return [replace(one, response=row["response"], ends=row["ends"]) for one, row in answered if not row["left_out"]]
