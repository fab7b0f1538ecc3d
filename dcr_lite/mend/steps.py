"""The steps that dcr-lite mend has beside those of a recipe. Each is done once: a run that goes on takes what is
finished from its folder."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from dcr_lite.data.rows import Conversation, read_conversations
from dcr_lite.errors import UserError
from dcr_lite.files import read_state, write_json, write_state, write_text
from dcr_lite.measure.answers import Measured
from dcr_lite.mend import checks, joining, prompts
from dcr_lite.mend.outcome import caution, outcome, verdict_of
from dcr_lite.mend.page import check_lines, page
from dcr_lite.mend.prompts import FOLDER, Wish
from dcr_lite.mend.reader import Reader, alone
from dcr_lite.mend.results import CHECK, OUTCOME, read_outcome
from dcr_lite.mend.settings import MendSettings
from dcr_lite.model import distributed
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import longer_answers
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR, STOCK
from dcr_lite.run import long_rows
from dcr_lite.run.caution import set_caution
from dcr_lite.run.inputs import Data
from dcr_lite.run.joined import has_joined, with_joined
from dcr_lite.run.kept import kept_of
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.steps import answer_with, answers_given
from dcr_lite.run.terminal import console, progress_bar, show_file, show_line, show_results

BEFORE, AFTER, CHECKED, JOINED = "mend_before", "mend_after", "mend_check", "mend_joined"  # parts of a run
PAGE = "mend.md"
ANSWER_TOKENS = 80  # of an answer to a user's own prompt, which a person reads: as many as the demo shows


def require_chat_model(settings: MendSettings) -> None:
    """Raises UserError for a base model, which refuses nothing of its own."""
    if settings.from_base_model or settings.chat_format != "own":
        raise UserError(
            "dcr-lite mend starts from a chat model, in its own chat format: leave out --chat-format and "
            "--from-base-model, or train a base model with dcr-lite train"
        )


def require_short(run: RunFolder, model: Model, settings: MendSettings, wishes: list[Wish]) -> None:
    """Raises UserError, with file and line, for a prompt that the model cannot take."""
    most = distributed.on_main(lambda: run.finished(long_rows.PART)) or {}
    further = {"stage1": 0, "evaluation": max(0, ANSWER_TOKENS - settings.answer_tokens)}  # tokens of an answer
    longest = min([model.window - ANSWER_TOKENS, *(most[stage] - further[stage] for stage in further if stage in most)])
    for wish in wishes:
        try:
            encode_prompts(model.tokenizer, [wish.prompt], longest)
        except UserError as error:
            raise UserError(f"{wish.place}: {error}") from None


def look(run: RunFolder, reader: Reader, data: Data, settings: MendSettings, wishes: list[Wish]) -> checks.Check:
    """What the model says to the user's prompts today, and what they look like (``checks.look``), shown as well."""

    def keep() -> None:
        if not prompts.same(prompts.kept(run.path), wishes):
            for old in (path, run.note(CHECKED), run.note(BEFORE)):  # first: what is kept is of these prompts alone
                old.unlink(missing_ok=True)
            prompts.keep(run.path, wishes)

    path = run.path / FOLDER / CHECK
    distributed.on_main(keep)
    today = _answered(run, reader.model, STOCK, BEFORE, settings, wishes)
    if not run.finished(CHECKED):
        started = time.monotonic()
        found = checks.look(reader, alone(data), wishes, today)
        distributed.on_main(lambda: write_state(found, path))
        run.finish(CHECKED, {"seconds": time.monotonic() - started})
    check = distributed.on_main(lambda: read_state(path, f"Delete {run.note(CHECKED)} to have them checked again."))
    if distributed.is_main():
        console.print(Markdown("\n".join(check_lines(check, wishes))))
        console.print()
    return check


def join(
    run: RunFolder, reader: Reader, data: Data, settings: MendSettings, wishes: list[Wish], check: checks.Check
) -> tuple[list[Wish], Data]:
    """The wishes with their parts, and the data with the pairs that the user's prompts make and, where there is a stage
    2, with refusals of them. Raises UserError where too few of them are left, or where --sure comes after they have
    joined."""
    left_out = checks.left_out(check, settings.sure)
    if not has_joined(run.path):
        # As the check has read them: after a stop in other passes, their states would be rounded otherwise.
        reader.toxicity([wish.prompt for wish in wishes if wish.answered])
        reader.read(joining.toxic_prompts(alone(data)))
        refused = checks.refused_today(check, wishes)
        wishes = prompts.divided(wishes, refused, left_out, settings.seed)
        others = [row for row in read_conversations(settings.augmentation_rows) if not row.before]
        joined = joining.join(reader, alone(data), wishes, others)
        if settings.stage2 != "no":
            joined = replace(joined, refusals=_refusals(run, reader, data, settings, wishes))
        facts: dict[str, Any] = {"cross_validated": None}
        if not any(wishes[i].answered and wishes[i].part == "kept" for i in refused):
            facts["cross_validated"] = joining.cross_validated(reader, joined.training)

        def keep() -> None:
            prompts.keep(run.path, wishes)
            run.finish(JOINED, facts)
            joined.save(run.path)  # last: from here on the run rests on it

        distributed.on_main(keep)
    elif settings.sure and any(wish.part == "left_out" and i not in left_out for i, wish in enumerate(wishes)):
        raise UserError(f"--sure: {run.path} has begun to train without these prompts. Begin anew with another --run.")
    return wishes, with_joined(run.path, data)


def _refusals(
    run: RunFolder, reader: Reader, data: Data, settings: MendSettings, wishes: list[Wish]
) -> list[Conversation]:
    """What stage 2 is to learn of the user's prompts, without rows that are too long for it."""
    today = _answered(run, reader.model, STOCK, BEFORE, settings, wishes)
    rows = joining.refusals_of_today(reader, alone(data), wishes, today)
    lengths, most = long_rows.row_lengths(reader.model.tokenizer, rows), long_rows.longest_row(run, reader.model)
    return [row for row, length in zip(rows, lengths, strict=True) if length <= most]


def measure(
    run: RunFolder, model: Model, settings: MendSettings, wishes: list[Wish], check: checks.Check,
    answers: dict[str, list[Measured]],
) -> str:  # fmt: skip
    """RUN/mend.md and RUN/mend/mend.json: the user's prompts and held-out toxic ones before and after; returns the
    sentences that stand first. answers: of the run's models to held-out prompts."""
    before = _answered(run, model, STOCK, BEFORE, settings, wishes)
    after = _answered(run, model, DCR, AFTER, settings, wishes)

    def write() -> str:
        found = outcome(wishes, before, after, answers)
        found |= {"check": check, "cross_validated": (run.finished(JOINED) or {}).get("cross_validated")}
        verdict = verdict_of(found, settings.model, run.path)
        set_caution(run.path, caution(found))
        write_json(found | {"verdict": verdict}, run.path / FOLDER / OUTCOME)
        kept = kept_of(run, DCR).get("kept", {})
        write_text(run.path / PAGE, page(verdict, found, wishes, before, after, kept))
        return verdict

    return distributed.on_main(write)


def _answered(
    run: RunFolder, model: Model, method: str, part: str, settings: MendSettings, wishes: list[Wish]
) -> list[Measured]:
    """The answers of one of the run's models to the user's prompts, in their order. Refusals too are given to their
    end, or to ANSWER_TOKENS."""
    path: Path = run.path / FOLDER / f"{part.removeprefix('mend_')}.jsonl"
    if not run.finished(part):
        own = distributed.share([wish.measured() for wish in wishes])
        fewer = longer_answers(model, settings.answer_tokens, ANSWER_TOKENS)
        with progress_bar("Your prompts", max(1, len(own))) as shown, fewer:
            answer_with(run, model, method, part, own, path, ANSWER_TOKENS, shown, whole=True)
    answers: list[Measured] = distributed.on_main(lambda: answers_given(run, part, path))
    return answers


def show_outcome(run: RunFolder, report: dict[str, Any]) -> None:
    """Print the results and the files of the run, how mending came out, and what to do next."""
    if not distributed.is_main():
        return
    show_results(report, run.path)
    show_file(run.path / PAGE, "your prompts before and after (private)")
    found = read_outcome(run.path)
    show_line(f"\n{found.verdict}")
    console.print("Next:")
    for command in found.commands:
        console.print(f"  {command}", markup=False, soft_wrap=True)
