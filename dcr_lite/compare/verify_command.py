"""``dcr-lite verify``: a submission checked, by itself, by the answers that it was measured on, and by a rerun."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_lite.compare.added import added_methods
from dcr_lite.compare.contract import Contract, content_digest
from dcr_lite.compare.findings import Finding, checked, compared
from dcr_lite.compare.measurement import EvaluationData
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.recompute import recomputed
from dcr_lite.compare.rerun import places_of, point_of, rerun
from dcr_lite.compare.submission import Submission, model_facts, recipe_facts
from dcr_lite.compare.verification import consistency, contract_of
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, sha256_of
from dcr_lite.judges.opening import open_judges
from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import find_recipe, load_recipe, recipe_titles
from dcr_lite.run.terminal import console
from dcr_lite.settings import Device, Settings

ALL = "all"  # every method with every seed


@dataclass(frozen=True)
class Asked:
    """What to check.

    file: the submission. compared: the folder of its comparison. method, seed: what is measured again; of ALL, without
    a seed, everything. recipe: by default the kit's of the submission's name. added: as ``added_methods`` takes them.
    device: of the learned judge. out: the folder of the rerun.
    """

    file: Path
    compared: Path | None = None
    method: str | None = None
    seed: int | None = None
    recipe: str | None = None
    added: tuple[str, ...] = ()
    device: Device = "auto"
    out: Path | None = None


def verify(asked: Asked) -> list[Finding]:
    """What is found, in the order of the checks. Raises UserError for a file that cannot be read, and for flags that do
    not go together."""
    if (asked.method in (None, ALL)) != (asked.seed is None):
        raise UserError(f"--rerun METHOD and --seed N go together; --rerun {ALL} takes no seed")
    submission: Any = _read(asked.file)
    contract, found = contract_of(submission)
    if contract is None:
        return found
    found += consistency(submission, contract)
    if any(finding.state == "differs" for finding in found):
        return found  # measuring again what contradicts itself would say nothing
    data = EvaluationData.read(contract.files, contract.rows, None)
    if asked.compared:
        judges = open_judges(contract.judge_names, asked.device)
        found += recomputed(submission, contract, data, asked.compared, judges)
    if asked.method is not None:
        found += _rerun(asked, asked.method, submission, contract, data)
    return found


def show(findings: Sequence[Finding]) -> bool:
    """Print a line for each finding; whether nothing differs."""
    for finding in findings:
        console.print(finding.line(), markup=False, soft_wrap=True)
    return all(finding.state != "differs" for finding in findings)


def _read(path: Path) -> Any:
    try:
        return load_json(path)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}). Give the submission.json of a comparison."
        ) from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}). Give the submission.json of a comparison.") from None


def _rerun(
    asked: Asked, method: str, submission: Submission, contract: Contract, data: EvaluationData
) -> list[Finding]:
    places = places_of(submission) if asked.seed is None else [point_of(submission, method, asked.seed)]
    path = find_recipe(asked.recipe or _kits_recipe(submission["recipe"]["name"]))
    settings: Settings = contract.applied(load_recipe(path).SETTINGS)
    methods = METHODS | added_methods(asked.added, contract.seeds)
    found = _same_inputs(path, settings, submission)
    out = asked.out or folder_of(asked)
    return found + rerun(submission, contract, data, places, settings, methods, asked.compared, out)


def _kits_recipe(name: str) -> str:
    """The name, which a stranger may have written, where it is one of the kit's recipes; a recipe is a program."""
    if name not in recipe_titles():
        raise UserError(f"the kit has no recipe {name}: give the submission's with --recipe FILE")
    return name


def folder_of(asked: Asked) -> Path:
    """A folder of this rerun alone, in which a stopped one goes on."""
    what = ALL if asked.seed is None else f"{asked.method}_{asked.seed}".replace(" ", "_")
    whence = "trained"
    if asked.compared is not None:
        whence = f"compared_{hashlib.sha256(str(asked.compared.resolve()).encode()).hexdigest()[:8]}"
    return Path("runs") / "verify" / f"{sha256_of(asked.file)[:8]}_{what}_{whence}"


def _same_inputs(path: Path, settings: Settings, submission: Submission) -> list[Finding]:
    """Whether recipe, training rows and model are those of the submission."""
    there, here = submission["recipe"], recipe_facts(path, resolved(settings))
    faults = compared("recipe", {"SHA-256": there["sha256"]}, {"SHA-256": content_digest(path)})
    faults += compared("training rows", dict(there["rows"]), dict(here["rows"]))
    faults += compared("model", dict(submission["model"]["files"]), dict(model_facts(settings)["files"]))
    return checked("recipe, training rows and model are those of the submission", faults)
