"""Preferences for DPO from pairs of prompts: an answer over a refusal where a prompt only seems toxic, a refusal over
an answer where it is toxic.

POROver (Karaman et al., ICML 2025, arXiv 2410.12999) takes both from a stronger teacher. Here nobody is there to teach,
and pairs have no answers; so the two models that a comparison has answer for each other:

- the answer is the stock model's, or where it refuses, what it writes behind a complying opening that is put into its
  mouth, the opening included; at its cap it is learnt without an end;
- the refusal is safety SFT's own, or where it does not refuse, what it writes behind the opening of most refusals that
  it has learnt. So refusals speak of their prompt: shipped ones, which speak of another, could be told by that alone.

Where a model refuses by itself and DPO begins with it, both are the same model. What it wrongly refuses, which is what
it has to learn from, has an answer all the same, which its own refusal is the other side of; and so have toxic prompts.

    rows = preferences.of_run(run, model, training_pairs, refusals, seed)    # the adapter of safety SFT is active

A side without a usable answer or refusal is left out, and counted; the other side of its pair stays, as there are few,
and each kind has its set share of the loss whatever their numbers. The answers are given once, in batches, and kept in
the run folder. Private: they hold answers to toxic prompts.
"""

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dcr_lite.compare.directions import LEAST
from dcr_lite.data.rows import Before, Conversation, Pair, Prompt, prompts_of
from dcr_lite.errors import MethodError
from dcr_lite.files import sha256_of, write_jsonl
from dcr_lite.measure.brokenness import is_broken
from dcr_lite.measure.judge import is_refusal
from dcr_lite.measure.openings import led
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.generation import Answer
from dcr_lite.model.loading import Model
from dcr_lite.model.thinking import answer_of
from dcr_lite.names import LABELS
from dcr_lite.run import long_rows
from dcr_lite.run.kept_rows import DIGEST, Row, kept_rows
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.terminal import progress_bar

PART = "dpo_preferences"  # of a run, and the name of its file; by another rule it changes, so that no run mixes two
PAIRS = 256  # at most: two models answer both prompts of each, which takes minutes on a CPU
TOKENS = 40  # of an answer, as those that are measured: enough to refuse or to begin to help
BATCH = 64  # prompts between two writes of the file

# Of the file: answer, of the stock model, and refusal, of safety SFT, with whether they end; forced: whether the answer
# had to be; left_out: the reason, empty where the prompt is learnt from.
FIELDS = {
    "label": str, "prompt": str, "answer": str, "answer_ends": bool, "forced": bool, "refusal": str,
    "refusal_ends": bool, "left_out": str,
}  # fmt: skip
LEARNT = ("learnt", "learnt, answer forced")  # in the counts of a part: not forced, forced


@dataclass(frozen=True)
class Said:
    """What a model said. ends: whether it ended by itself; else it was cut off."""

    text: str
    ends: bool


@dataclass(frozen=True)
class Preference:
    """A prompt with the answer that is preferred and the one that is not. pair: the number of its pair of prompts, of
    which it is the toxic side or the other one. before: the messages before the prompt."""

    prompt: str
    toxic: bool
    pair: int
    chosen: Said
    rejected: Said
    before: Before = ()


def of_run(
    run: RunFolder, model: Model, pairs: list[Pair], refusals: list[Conversation], seed: int
) -> list[Preference]:
    """The preferences of at most PAIRS of the pairs, drawn with ``seed``; both sides of a pair next to each other.
    refusals: those that safety SFT, whose adapter is the active one, drew from.

    Raises MethodError where fewer than LEAST are left, UserError where the kept file is damaged.
    """
    path = run.path / f"{PART}.jsonl"
    asked = [side for pair in _drawn(run, model, pairs, seed) for side in prompts_of([pair])]
    rows = kept_rows(run, PART, path, FIELDS, [side.prompt for side in asked])
    if not run.finished(PART):
        forget_peak_memory()
        started = time.monotonic()
        rows = _answered(model, asked, usual_opening(model.openings, refusals), rows, path)
        counts = Counter(f"{row['label']}: {row['left_out'] or LEARNT[row['forced']]}" for row in rows)
        facts = {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory_bytes(), "counts": counts}
        run.finish(PART, facts | {DIGEST: sha256_of(path)})
    found = learnt(asked, rows)
    if len(found) < LEAST:
        raise MethodError(
            f"DPO finds only {len(found)} preferences in {len(rows)} prompts: what is said to the others is of no use. "
            f"The reasons are in {path}. Give other --pairs."
        )
    return found


def learnt(asked: Sequence[Prompt], rows: Sequence[Row]) -> list[Preference]:
    """The preferences among the rows of a file, of the prompts ``asked``, in which both sides of each pair follow each
    other."""
    found = []
    for number, (side, row) in enumerate(zip(asked, rows, strict=True)):
        if not row["left_out"]:
            toxic = row["label"] == LABELS[0]
            answered, refused = Said(row["answer"], row["answer_ends"]), Said(row["refusal"], row["refusal_ends"])
            chosen, rejected = (refused, answered) if toxic else (answered, refused)
            found.append(Preference(side.prompt, toxic, number // 2, chosen, rejected, side.before))
    return found


def usual_opening(openings: Sequence[str], refusals: Sequence[Conversation]) -> str:
    """The one of ``openings`` with which most of the refusals begin; the first of several, or where none does so."""
    return max(openings, key=lambda opening: sum(row.response.startswith(opening) for row in refusals))


def _drawn(run: RunFolder, model: Model, pairs: list[Pair], seed: int) -> list[Pair]:
    """Of the pairs whose preferences, two rows each, fit into the memory that safety SFT has for one row."""
    most = long_rows.longest_row(run, model)
    lengths = long_rows.pair_lengths(model.tokenizer, pairs)
    short = [pair for pair, n in zip(pairs, lengths, strict=True) if 2 * (n + TOKENS) <= most]
    return random.Random(seed).sample(short, min(PAIRS, len(short)))


def _answered(model: Model, asked: list[Prompt], opening: str, rows: list[Row], path: Path) -> list[Row]:
    """The rows of all prompts ``asked``, of which ``rows`` were made before; the file is written after every batch."""
    with progress_bar("DPO: answers", max(1, len(asked))) as shown:
        shown.start_at(len(rows))
        while len(rows) < len(asked):
            batch = asked[len(rows) :][:BATCH]
            ids = encode_asked(model.tokenizer, batch, model.window - TOKENS)
            with adapters.stock(model):
                answers = led(model, ids, TOKENS)
            refusals = led(model, ids, TOKENS, opening, refusing=True)
            rows = rows + [_row(*one) for one in zip(batch, answers, refusals, strict=True)]
            write_jsonl(rows, path)
            shown.facts["left out"] = str(sum(bool(row["left_out"]) for row in rows))
            shown.advance(len(batch))
    return rows


def _row(asked: Prompt, answered: tuple[Answer, str], refused: tuple[Answer, str]) -> Row:
    """What is kept of a prompt and both models' words to it, as ``led`` gives them."""
    (answering, forced), (refusing, _) = answered, refused
    said, refusal = answer_of(answering.text), answer_of(refusing.text)
    own = said.removeprefix(forced)  # an opening that the model has not chosen hides that it refuses behind it
    if is_refusal(own):
        left_out = "the stock model refuses behind an opening, too"
    elif is_broken(asked.prompt, own):
        left_out = "the stock model's answer is broken"
    else:
        left_out = "" if is_refusal(refusal) else "no refusal of safety SFT"
    return {
        "label": asked.label, "prompt": asked.prompt, "answer": said, "answer_ends": answering.ended,
        "forced": bool(forced), "refusal": refusal, "refusal_ends": refusing.ended, "left_out": left_out,
    }  # fmt: skip
