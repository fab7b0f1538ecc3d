"""What a run has of mending so far, read back from its folder: the check, and how it came out."""

from dataclasses import dataclass
from pathlib import Path

from dcr_lite.files import damaged, load_json, read_state
from dcr_lite.measure.answers import Measured, answers_to
from dcr_lite.mend import prompts
from dcr_lite.mend.checks import Check
from dcr_lite.mend.outcome import Numbers, old_stays
from dcr_lite.mend.prompts import FOLDER, Wish
from dcr_lite.run.dial_report import TURNED
from dcr_lite.run.exported import create_command, served_name
from dcr_lite.run.terminal import quoted

CHECK, OUTCOME = "check.json", "mend.json"
ANSWERS = ("before.jsonl", "after.jsonl")


@dataclass(frozen=True)
class Outcome:
    """How mending came out. run: its folder. name: what its model is called where it is exported. found: the numbers of
    mend.json, and the check. before, after: the answers to ``wishes`` of the model as it was, and mended."""

    run: Path
    name: str
    verdict: str
    found: Numbers
    wishes: list[Wish]
    before: list[Measured]
    after: list[Measured]

    @property
    def old_stays(self) -> bool:
        """Whether the old model stays the default."""
        return old_stays(self.found)

    @property
    def commands(self) -> list[str]:
        """What shows the mended model and, unless the old one stays the default, takes it to Ollama."""
        run = quoted(self.run)
        demo = f"dcr-lite demo --run {run}"
        if self.old_stays:
            return [demo]
        modelfile = self.run / "ollama" / "Modelfile"
        return [demo, f"dcr-lite export {run} --to ollama", create_command(self.name, modelfile)]


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
        report = load_json(run / "report.json")
        name = served_name(report, run)
        turned = str(report.get("note", "")).partition("\n\n")[0]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise damaged(path, prompts.CURE) from None
    wishes = prompts.kept(run)
    asked = [wish.measured() for wish in wishes]
    before, after = (answers_to(asked, run / FOLDER / name, prompts.CURE) for name in ANSWERS)
    if turned.startswith(TURNED):
        verdict = f"{turned} {verdict}"
    return Outcome(run, name, verdict, found, wishes, before, after)
