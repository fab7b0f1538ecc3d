"""submission.json: what a comparison by a contract has measured, without any answer or prompt, so that it can be
published and checked: numbers of every method by seed and over seeds, and the digests of what they were measured on.
"""

import datetime
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from dcr_lite.compare.contract import Contract, content_digest
from dcr_lite.compare.measurement import Configuration, EvaluationData, answers_file, at_usual_strength
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.summary import numbers_of, over_seeds
from dcr_lite.data.sources import locate
from dcr_lite.files import sha256_of, write_json
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.run.machine import hardware_class, source_digest
from dcr_lite.run.opening import machine
from dcr_lite.run.report import without_folders
from dcr_lite.settings import SHIPPED_FILES, Settings

FORMAT = 1  # of the file: raised where fields change
FILE = "submission.json"
# Settings that are no facts of a recipe: other fields of the file have what they come to (model, rows, prompts, seeds,
# precision), or a comparison leaves them no choice.
ELSEWHERE = {"model", "base_model", "base_format", "from_base_model", *SHIPPED_FILES, "augmentation_rows", "evaluation",
             "seed", "run", "compare_with", "device", "backend", "precision", "quantization"}  # fmt: skip


class Value(TypedDict):
    """A number over seeds: mean, 95 % interval, and how many seeds there are."""

    mean: float
    ci95: list[float] | None
    n: int


class Counts(TypedDict):
    """Of the prompts of one set and label: n with a verdict, how many of them were refused."""

    name: str
    label: str
    n: int
    refused: int


class Judged(TypedDict):
    """One judge's verdicts, and the contract's numbers ``by_judge`` that follow from them, with intervals over
    prompts."""

    sets: list[Counts]
    without_verdict: int
    numbers: dict[str, float]
    intervals: dict[str, list[float]]


class Answers(TypedDict):
    """The file of answers, which is not published."""

    sha256: str
    n: int


class Point(TypedDict):
    """One measurement. seed: None for what is measured once. numbers: the contract's ``by_model``; intervals: theirs
    over prompts, of a method that has no other measurement (over seeds there are others then). note: what a reader has
    to know of the method there, as that it does not apply to the model; else empty."""

    seed: int | None
    answers: Answers
    judges: dict[str, Judged]
    numbers: dict[str, float]
    intervals: dict[str, list[float]]
    minutes: float
    peak_memory_gb: float
    note: str


class Entry(TypedDict):
    """A method: its measurements, and the same numbers over seeds. origin: kit, or added."""

    method: str
    title: str
    origin: str
    strength: float
    points: list[Point]
    judges: dict[str, dict[str, Value]]
    numbers: dict[str, Value]


class ContractName(TypedDict):
    """Which contract, and the digest of its file."""

    number: int
    sha256: str


class ModelFacts(TypedDict):
    """The base model: its name, where it came from, and the digests of its configuration and weights by file."""

    name: str
    source: str
    files: dict[str, str]
    precision: str
    four_bit: bool


class RecipeFacts(TypedDict):
    """The recipe: digests of its file and of its training rows, and its settings as every seed has them, those that
    were found among them."""

    name: str
    sha256: str
    rows: dict[str, str]
    settings: dict[str, str | float | bool]


class Hardware(TypedDict):
    """kind: the class within which results should repeat, see ``hardware_class``. name: the machine in words."""

    kind: str
    name: str


class Submission(TypedDict):
    """The whole file. source: the digest of the package that wrote it, see ``source_digest``."""

    submission: int
    contract: ContractName
    by: str
    date: str
    command: str
    model: ModelFacts
    recipe: RecipeFacts
    methods: list[Entry]
    hardware: Hardware
    versions: dict[str, str]
    source: str
    seconds: float


def submission_of(
    report: dict[str, Any], contract: Contract, methods: Mapping[str, Method], runs: Mapping[int | None, SeedRun],
    data: EvaluationData, recipe: Path, by: str | None,
) -> Submission:  # fmt: skip
    """The submission of a comparison by the contract, from its ``report``."""
    settings = runs[None].settings
    points: dict[str, list[Point]] = {}
    for result in at_usual_strength(report["points"], settings, methods):
        path = answers_file(runs[result["seed"]], Configuration.of(result), data)
        points.setdefault(result["method"], []).append(_point(result, report["judged"]["judges"], path, contract))
    for point in [point for own in points.values() if len(own) > 1 for point in own]:
        point["intervals"] = {}
    return {
        "submission": FORMAT,
        "contract": {"number": contract.number, "sha256": contract.sha256},
        "by": by or "",
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(map(without_folders, shlex.split(report["command"]))),
        "model": model_facts(settings),
        "recipe": recipe_facts(recipe, settings),
        "methods": [
            entry_of(name, methods[name].title, methods[name].strengths(settings)[0], own)
            for name, own in points.items()
        ],
        "hardware": {"kind": hardware_class(machine(settings).device), "name": report["hardware"]},
        "versions": report["versions"],
        "source": source_digest(),
        "seconds": report["seconds"],
    }


def write_submission(submission: Submission, out: Path) -> None:
    """Write it to the folder of the comparison."""
    write_json(submission, out / FILE)


def _point(result: dict[str, Any], judges: Sequence[dict[str, Any]], path: Path, contract: Contract) -> Point:
    verdicts: dict[str, Judged] = {}
    for judge in judges:
        (found,) = [one for one in judge["points"] if Configuration.of(one) == Configuration.of(result)]
        verdicts[judge["name"]] = judged_counts(found["sets"], found["without_verdict"], contract)
    numbers = result["numbers"]
    return {
        "seed": result["seed"],
        "answers": {"sha256": sha256_of(path), "n": sum(contract.n.values())},
        "judges": verdicts,
        "numbers": {name: numbers[name] for name in contract.by_model if name in numbers},
        "intervals": {name: result["intervals"][name] for name in contract.by_model if name in result["intervals"]},
        "minutes": numbers["minutes"],
        "peak_memory_gb": numbers["peak_memory_gb"],
        "note": result.get("note", ""),
    }


def judged_counts(sets: list[Counts], without_verdict: int, contract: Contract) -> Judged:
    """The counts of one judge with what follows from them."""
    rows = []
    for counts in sets:
        n, refused = counts["n"], counts["refused"]
        rows.append({**counts, "refusal_rate": refused / n, "ci95": wilson_interval(refused, n)})
    numbers, intervals = numbers_of({"sets": rows, "discernment": {"auroc": 0.0}}, (0.0, 0.0))
    return {
        "sets": sets,
        "without_verdict": without_verdict,
        "numbers": {name: numbers[name] for name in contract.by_judge if name in numbers},
        "intervals": {name: list(intervals[name]) for name in contract.by_judge if name in intervals},
    }


def entry_of(name: str, title: str, strength: float, points: list[Point]) -> Entry:
    """A method with its numbers over seeds."""

    def over(own: Sequence[Any]) -> dict[str, Value]:
        results = [
            {"method": name, "strength": strength, "seed": point["seed"]}
            | {k: one[k] for k in ("numbers", "intervals")}
            for point, one in zip(points, own, strict=True)
        ]
        return over_seeds(results)[0]["numbers"]

    return {
        "method": name,
        "title": title,
        "origin": "kit" if name in METHODS else "added",
        "strength": strength,
        "points": points,
        "judges": {judge: over([point["judges"][judge] for point in points]) for judge in points[0]["judges"]},
        "numbers": over(points),
    }


def model_facts(settings: Settings) -> ModelFacts:
    """The base model of these settings. Raises UserError where it cannot be had."""
    folder, source = locate(settings.model)
    on = machine(settings)
    files = [Path(folder) / "config.json", *sorted(Path(folder).glob("*.safetensors"))]
    return {
        "name": without_folders(settings.model),
        "source": source,
        "files": {path.name: sha256_of(path) for path in files},
        "precision": str(on.precision).removeprefix("torch."),
        "four_bit": on.four_bit,
    }


def recipe_facts(recipe: Path, settings: Settings) -> RecipeFacts:
    """A recipe file with its resolved settings, in which nothing is left to be found."""
    files = settings.files | {"augmentation_rows": settings.augmentation_rows}
    return {
        "name": recipe.stem,
        "sha256": content_digest(recipe),
        "rows": {name: content_digest(path) for name, path in files.items()},
        "settings": setting_facts(settings),
    }


def setting_facts(settings: Settings) -> dict[str, str | float | bool]:
    """Of resolved settings those that decide numbers; none is a path."""
    return {name: value for name, value in settings.for_json().items() if name not in ELSEWHERE}
