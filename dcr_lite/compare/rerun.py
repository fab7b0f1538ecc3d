"""One method of a submission measured again with one seed: with the adapters of its comparison, or trained anew.

How close a rerun comes depends on what is the same. With the adapters of the comparison, on hardware of its class, the
same sums are rounded the same way except where the number of threads or of prompts in a batch splits them otherwise;
greedy decoding then takes another token where two were nearly as probable, and from there on another answer: a few
verdicts of a hundred can change. A training repeats on a processor of the same class with as many threads, and nearly
so on cards, whose sums have no fixed order; small differences grow with every step, up to those between seeds. On
other hardware, and with other versions of torch or transformers, kernels round otherwise throughout; what differs there
says nothing about a submission and is shown as a note. The contract's tolerances are of the first two cases.
"""

import shutil
from pathlib import Path

from dcr_lite.compare.command import seed_run
from dcr_lite.compare.contract import Contract
from dcr_lite.compare.findings import Finding, same
from dcr_lite.compare.measurement import (
    Configuration,
    EvaluationData,
    answers_file,
    finished_result,
    measure_configuration,
)
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.recompute import judged_again
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.submission import Entry, Point, Submission
from dcr_lite.compare.verification import place_of
from dcr_lite.errors import UserError
from dcr_lite.files import PARTIAL
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.opening import open_judges
from dcr_lite.judges.rates import exchanges
from dcr_lite.measure.answers import read_answers
from dcr_lite.names import STOCK
from dcr_lite.run.machine import hardware_class, versions
from dcr_lite.run.opening import machine
from dcr_lite.run.run_folder import FOUND_FILE, NUMBERS
from dcr_lite.settings import Settings

# By these the same sums are rounded otherwise; a difference there makes the comparison a note.
ROUNDING = ("torch", "transformers")


def point_of(submission: Submission, method: str, seed: int) -> tuple[Entry, Point]:
    """The measurement of a method, by its key or its title, with a seed. Raises UserError where there is none."""
    for entry in submission["methods"]:
        if method in (entry["method"], entry["title"]):
            for point in entry["points"]:
                if point["seed"] in (seed, None):
                    return entry, point
            raise UserError(f"--seed {seed}: {entry['title']} was not measured with it")
    names = ", ".join(entry["method"] for entry in submission["methods"])
    raise UserError(f"--rerun {method}: no such method in the submission. Choose from {names}.")


def rerun(
    submission: Submission, contract: Contract, data: EvaluationData, entry: Entry, point: Point, settings: Settings,
    methods: dict[str, Method], compared: Path | None, out: Path,
) -> list[Finding]:  # fmt: skip
    """Measure again in the folder ``out``, which keeps what is done, and compare.

    settings: the recipe's, with the contract applied. methods: the kit's and those added. compared: the folder whose
    adapters are taken; None: they are trained. Raises UserError where the method is not among ``methods``.
    """
    if entry["method"] not in methods:
        raise UserError(f"--rerun {entry['title']}: give the same --add as the submission, of the same version")
    seed = contract.seeds[0] if point["seed"] is None else point["seed"]
    if compared and not out.exists():
        _copy(compared, out, contract.seeds[0], seed, entry["method"])
    first = seed_run(settings, out, contract.seeds[0])
    stock = SeedRun(first.settings, out / "stock", 0, first.run.path)
    runs: dict[int | None, SeedRun] = {None: stock, contract.seeds[0]: first}
    if seed not in runs:
        runs[seed] = SeedRun(first.settings, out / f"seed{seed}", seed, first.run.path)
    asked = Configuration(entry["method"], entry["strength"], point["seed"])
    reference = Configuration(STOCK, METHODS[STOCK].strengths(first.settings)[0], None)
    answers = answers_file(stock, reference, data)
    for one in dict.fromkeys((reference, asked)):
        run = runs[one.seed]
        if not finished_result(run, one, data):
            first.unload()  # loaded to find the settings: one model at a time
            measure_configuration(run, methods[one.method], one, data, answers)
            run.unload()
    rows = read_answers(answers_file(runs[asked.seed], asked, data))
    scores = judge_rows(open_judges(contract.judge_names, settings.device), exchanges(rows))
    for run in runs.values():
        run.run.leave()
    place = place_of(entry, point["seed"])
    within = contract.tolerance["adapters" if compared else "trained"]
    other = other_rounding(submission, settings)
    found = [Finding("note", f"{place}: {other}; differences are shown and not judged")] if other else []
    groups = {f", {name}": judged["numbers"] for name, judged in judged_again(scores, rows, contract).items()}
    there = {f", {name}": judged["numbers"] for name, judged in point["judges"].items()}
    measured = (finished_result(runs[asked.seed], asked, data) or {})["numbers"]
    for which, again in {**groups, "": measured}.items():
        for name, value in (there | {"": point["numbers"]})[which].items():
            found.append(_beside(f"{place}{which}, {name}", value, again.get(name), within[name], not other))
    return found


def other_rounding(submission: Submission, settings: Settings) -> str:
    """What is other here than where the submission was measured, and makes kernels round otherwise; empty where
    nothing is."""
    on, here = machine(settings), versions()
    pairs = [("hardware class", submission["hardware"]["kind"], hardware_class(on.device))]
    pairs.append(("precision", submission["model"]["precision"], str(on.precision).removeprefix("torch.")))
    pairs.append(("4-bit weights", str(submission["model"]["four_bit"]), str(on.four_bit)))
    pairs += [(name, submission["versions"].get(name, "none"), here[name]) for name in ROUNDING]
    return "; ".join(f"{name} {there} there, {own} here" for name, there, own in pairs if there != own)


def _beside(what: str, submitted: float, again: float | None, within: float, judge: bool) -> Finding:
    text = (
        f"{what}: {submitted:.4f} submitted, {'nothing' if again is None else f'{again:.4f}'} again, within {within:g}"
    )
    if same(submitted, again, within):
        return Finding("ok", text)
    return Finding("differs" if judge else "note", text)


def _copy(compared: Path, out: Path, first: int, seed: int, method: str) -> None:
    """What a rerun builds on: the trainings of the seed, what the first seed found, the stock model's answers; without
    the notes that the method is measured already, and in which numbers."""
    for name in dict.fromkeys((f"seed{first}", f"seed{seed}", "stock")):
        if not (compared / name / "settings.json").exists():
            raise UserError(f"--compared {compared}: there is no {name} of a comparison in it")
    partial = out.with_name(out.name + PARTIAL)  # a copy that was stopped is begun anew
    shutil.rmtree(partial, ignore_errors=True)
    left = shutil.ignore_patterns(f"measured_{method}_*", f"{NUMBERS}.json")  # in this machine's numbers: a note
    for name in (f"seed{seed}", "stock"):
        shutil.copytree(compared / name, partial / name, ignore=left)
    if seed != first:
        (partial / f"seed{first}").mkdir()
        for name in ("settings.json", FOUND_FILE):
            shutil.copyfile(compared / f"seed{first}" / name, partial / f"seed{first}" / name)
    partial.replace(out)
