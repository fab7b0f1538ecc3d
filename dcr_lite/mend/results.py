"""What a run has of mending so far, read back from its folder: the check, and how it came out."""

from dataclasses import dataclass
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_json, read_state
from dcr_lite.measure.answers import Measured, read_answers
from dcr_lite.mend import prompts
from dcr_lite.mend.checks import Check
from dcr_lite.mend.outcome import Numbers
from dcr_lite.mend.prompts import FOLDER, Wish
from dcr_lite.run.dial_report import TURNED

CHECK, OUTCOME = "check.json", "mend.json"
ANSWERS = ("before.jsonl", "after.jsonl")


@dataclass(frozen=True)
class Outcome:
    """How mending came out. found: the numbers of mend.json, and the check. before, after: the answers to ``wishes`` of
    the model as it was, and mended."""

    verdict: str
    found: Numbers
    wishes: list[Wish]
    before: list[Measured]
    after: list[Measured]


def read_check(run: Path) -> Check | None:
    """What the check of a run's prompts found; None before it has ended. Raises UserError where it is damaged."""
    path = run / FOLDER / CHECK
    return read_state(path, prompts.CURE) if path.exists() else None


def read_outcome(run: Path) -> Outcome:
    """How a finished run came out. Raises UserError where a file of it is missing or damaged."""
    path = run / FOLDER / OUTCOME
    try:
        found = load_json(path)
        verdict = str(found["verdict"])
        turned = str(load_json(run / "report.json").get("note", "")).partition("\n\n")[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise damaged(path, prompts.CURE) from None
    wishes = prompts.kept(run)
    before, after = (read_answers(run / FOLDER / name) for name in ANSWERS)
    if not len(wishes) == len(before) == len(after):
        raise UserError(f"{run / FOLDER}: its answers are of other prompts. {prompts.CURE}")
    if turned.startswith(TURNED):
        verdict = f"{turned} {verdict}"
    return Outcome(verdict, found, wishes, before, after)
