"""Rows that are too long, in tokens of the model at hand: found before anything trains.

A row has to fit the model's window, and alone the memory of one pass. Of public data longer ones are left out and
counted; in a user's own files they are errors with file and line.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.data.paper_data import sources
from dcr_lite.data.rows import Conversation, Pair, Prompt, before_field, prompts_of, read_jsonl
from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_json
from dcr_lite.model import distributed
from dcr_lite.model.chat import Tokenizer, encode_asked, encode_rows, prompt_window
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE
from dcr_lite.run.inputs import Data, drawn
from dcr_lite.run.joined import with_joined
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings

Row = Pair | Conversation | Prompt

NO_LIMIT = sys.maxsize
PART = "longest_rows"  # of a run, under which its limits are noted


def limits(window: int, longest_in: dict[str, int], answer_tokens: int) -> dict[str, int]:
    """The most tokens of a row in stage 1, in safety SFT and of a prompt to answer: what fits alone, at most the
    window. Raises UserError where an answer would fill that."""

    def of(*stages: str) -> int:
        return min([window, *(longest_in.get(stage, NO_LIMIT) for stage in stages)])

    return {
        "stage1": of("stage1"),
        "safety_sft": of("stage2", BASELINE),
        "evaluation": min(of("evaluation") - answer_tokens, prompt_window(window, answer_tokens)),
    }


def without_long_rows(run: RunFolder, model: Model, data: Data, settings: Settings) -> Data:
    """``data`` without the public rows that are too long for the model or for its memory. A run that goes on keeps the
    limits that it began with, however much memory is free now, and so its rows.

    Raises UserError for a row of a user's own that is too long, or where fewer public rows are left than asked for.
    """
    # Of several processes, whose memory differs, the first one's.
    most = distributed.on_main(
        lambda: run.finished(PART) or limits(model.window, model.longest_in, settings.answer_tokens)
    )
    short = short_rows(data, settings, model.tokenizer, model.window, most)
    run.finish(PART, most)  # after the rows are known to be fine: a run that ends with an error has not begun
    return short


def rows_of_run(model: Model, data: Data, settings: Settings) -> Data:
    """``data`` as the finished run of these settings had it: without the rows that were too long for it, whatever the
    memory here, and with those that have joined. Raises UserError where its report is damaged."""
    path, most = settings.run / "report.json", limits(model.window, {}, settings.answer_tokens)
    try:
        facts = load_json(path)["data"]
        for stage, names in {"stage1": {"pairs"}, "safety_sft": {"instruction_rows", "refusal_rows"}}.items():
            if names & facts.get("left_out", {}).keys():  # none in a report of version 0.1.0
                most[stage] = max(facts["longest"][name] for name in names)  # of those that were kept
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        raise damaged(path, "Restore the run folder, or choose another run.") from None
    return with_joined(settings.run, short_rows(data, settings, model.tokenizer, model.window, most))


def longest_row(run: RunFolder, model: Model) -> int:
    """The most tokens of a row of safety SFT in a run, at most the model's window."""
    most: int = (run.finished(PART) or {}).get("safety_sft", model.window)
    return most


def short_rows(data: Data, settings: Settings, tokenizer: Tokenizer, window: int, most: dict[str, int]) -> Data:
    """``data`` without the public rows that are longer than ``most``, the ``limits``. Raises as above."""
    files = settings.files
    longest: dict[str, int] = {}
    left_out: dict[str, int] = {}
    kept: dict[str, list[Any]] = {}
    for name, setting, rows, lengths, stage in (
        ("training", "pairs", data.training, pair_lengths(tokenizer, data.training), "stage1"),
        ("development", "pairs", data.development, pair_lengths(tokenizer, data.development), "stage1"),
        (
            "instructions",
            "instruction_rows",
            data.instructions,
            row_lengths(tokenizer, data.instructions),
            "safety_sft",
        ),
        ("refusals", "refusal_rows", data.refusals, row_lengths(tokenizer, data.refusals), "safety_sft"),
    ):
        if not sources(files[setting]):
            _require_short([files[setting]], rows, lengths, most[stage], window)
        kept[name] = [row for row, length in zip(rows, lengths, strict=True) if length <= most[stage]]
        longest[setting] = max([n for n in lengths if n <= most[stage]] + [longest.get(setting, 0)])
        left_out[setting] = left_out.get(setting, 0) + len(rows) - len(kept[name])
    lengths = prompt_lengths(tokenizer, data.held_out)
    _require_short(settings.evaluation, data.held_out, lengths, most["evaluation"], window)
    found = drawn(settings, held_out=data.held_out, **kept)
    left_out = {setting: n for setting, n in left_out.items() if n}
    return replace(found, longest=longest | {"evaluation": max(lengths)}, left_out=left_out)


def pair_lengths(tokenizer: Tokenizer, rows: list[Pair]) -> list[int]:
    """Tokens of the longer side of each pair."""
    sides = prompt_lengths(tokenizer, prompts_of(rows))
    return [max(both) for both in zip(sides[: len(rows)], sides[len(rows) :], strict=True)]


def row_lengths(tokenizer: Tokenizer, rows: list[Conversation]) -> list[int]:
    """Tokens of each row with its answer."""
    return [len(prompt) + len(answer) for prompt, answer in encode_rows(tokenizer, rows, NO_LIMIT)]


def prompt_lengths(tokenizer: Tokenizer, rows: list[Prompt]) -> list[int]:
    """Tokens of each prompt."""
    return [len(row) for row in encode_asked(tokenizer, rows, NO_LIMIT)]


def _require_short(files: Iterable[Path], rows: Sequence[Row], lengths: list[int], most: int, window: int) -> None:
    """Raises UserError, with file and line of the longest row, where one has more than ``most`` tokens."""
    if max(lengths, default=0) <= most:
        return
    longest = max(range(len(rows)), key=lengths.__getitem__)
    others = sum(length > most for length in lengths) - 1
    more = f" ({others} more are too long)" if others else ""
    what = f"this model's window of {window:,}" if most * 2 > window else "one pass in the free memory"
    raise UserError(
        f"{_place(files, rows[longest])}: {lengths[longest]:,} tokens in the chat template, and at most {most:,} fit "
        f"{what}{more}. Shorten it, or leave that row out."
    )


def _place(files: Iterable[Path], row: Row) -> str:
    """File and line of a row that was read from one of the files."""
    texts = [row.toxic, row.seemingly_toxic] if isinstance(row, Pair) else [row.prompt]
    if isinstance(row, Conversation):
        texts.append(row.response)
    for file in files:
        for place, fields in read_jsonl(file, lambda fields, place: (place, fields)):
            if all(text in fields.values() for text in texts) and before_field(fields, place) == row.before:
                return place
    return ", ".join(map(str, files))
