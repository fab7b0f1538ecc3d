"""A submission computed again from the stored answers of its comparison, by the contract's judges: no model answers.

What a verdict decides and AUROC are computed anew, and the settings in the run folders are those of the submission.
Answers kept and answer loss need the model and are left to a rerun, as is how long the answers may be.
The cue judge and AUROC give the same to the last digit. The learned judge reads answers with a model of its own, whose
sums are rounded otherwise on other hardware and beside other answers in a batch, so that a score near 0.5 can change
sides: its numbers may differ by the contract's tolerance.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr_lite.compare.contract import Contract
from dcr_lite.compare.findings import EXACT, Finding, checked, compared_where_both, differs, same
from dcr_lite.compare.measurement import Configuration, EvaluationData, answers_in
from dcr_lite.compare.submission import Entry, Judged, Point, Submission, judged_counts, setting_facts
from dcr_lite.compare.summary import set_counts
from dcr_lite.compare.verification import place_of
from dcr_lite.errors import UserError
from dcr_lite.files import sha256_of
from dcr_lite.judges.interface import Judge
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.rates import exchanges, rates_by_judge
from dcr_lite.measure.answers import Measured, discernment_intervals, prompts_asked, read_answers
from dcr_lite.run.run_folder import stored_settings
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings


def recomputed(
    submission: Submission, contract: Contract, data: EvaluationData, folder: Path, judges: Sequence[Judge]
) -> list[Finding]:
    """Findings for every number that the answers in the comparison's folder give. Raises UserError for a folder that
    holds no such comparison, and for a damaged file of answers."""
    if not (folder / "stock").is_dir():
        raise UserError(f"--compared {folder}: not the folder of a comparison (there is no stock in it)")
    places = [(entry, point) for entry in submission["methods"] for point in entry["points"]]
    found = _of_settings(submission, folder)
    with progress_bar("Judging", len(places) * len(data.prompts) * len(judges)) as shown:
        for entry, point in places:
            place, path = place_of(entry, point["seed"]), _path(folder, entry, point, data)
            if not path.exists():
                found.append(Finding("differs", f"{place}: {path} is missing"))
                continue
            faults = []
            if (digest := sha256_of(path)) != point["answers"]["sha256"]:
                faults.append(differs(f"{place}, SHA-256 of the answers", point["answers"]["sha256"], digest))
            answers = read_answers(path)
            if prompts_asked(answers) != data.prompts:
                found += [*faults, Finding("differs", f"{place}: answers to other prompts than the contract's")]
                continue
            scores = judge_rows(judges, exchanges(answers), progress=shown.advance)
            again = judged_again(scores, answers, contract)
            faults += _of_judges(place, point, again, contract) + _of_auroc(place, point, answers)
            found += checked(f"{place}: its answers give its numbers", faults)
    return found


def judged_again(scores: dict[str, list[float]], answers: list[Measured], contract: Contract) -> dict[str, Judged]:
    """Counts and numbers by each judge from the scores that it gave to the answers."""
    return {
        rates["name"]: judged_counts(set_counts(rates["sets"]), rates["without_verdict"], contract)  # type: ignore[arg-type]
        for rates in rates_by_judge(scores, answers)
    }


def _of_settings(submission: Submission, folder: Path) -> list[Finding]:
    seeds = dict.fromkeys(point["seed"] for entry in submission["methods"] for point in entry["points"])
    faults = []
    for run in (_run(folder, seed) for seed in seeds):
        if run.is_dir():  # else its answers are missing, which is said
            settings = setting_facts(stored_settings(run, Settings, run=run))
            faults += compared_where_both(
                f"{run.name}, settings", dict(submission["recipe"]["settings"]), dict(settings)
            )
    return checked("settings are those of its run folders", faults)


def _run(folder: Path, seed: int | None) -> Path:
    return folder / ("stock" if seed is None else f"seed{seed}")


def _path(folder: Path, entry: Entry, point: Point, data: EvaluationData) -> Path:
    configuration = Configuration(entry["method"], entry["strength"], point["seed"])
    return answers_in(_run(folder, point["seed"]), configuration, data)


def _of_judges(place: str, point: Point, again: dict[str, Judged], contract: Contract) -> list[Finding]:
    faults = []
    for name, judged in again.items():
        within = contract.tolerance["judges"].get(name, EXACT)
        for key in contract.by_judge:
            expected, found = judged["numbers"].get(key), point["judges"][name]["numbers"].get(key)
            if not same(expected, found, within):
                faults.append(differs(f"{place}, {name}, {key}", expected, found))
    return faults


def _of_auroc(place: str, point: Point, answers: list[Measured]) -> list[Finding]:
    found = discernment_intervals(answers)
    pairs: list[tuple[str, Any, Any]] = [("auroc", found["auroc"], point["numbers"]["auroc"])]
    if "auroc" in point["intervals"]:
        pairs.append(("interval of auroc", found["auroc_ci95"], point["intervals"]["auroc"]))
    return [
        differs(f"{place}, {name}", expected, there) for name, expected, there in pairs if not same(expected, there)
    ]
