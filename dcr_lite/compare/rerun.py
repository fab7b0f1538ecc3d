"""Measurements of a submission repeated: with the adapters of its comparison, or trained anew.

How close a rerun comes depends on what is the same. With the adapters of the comparison, on hardware of its class, the
same sums are rounded the same way except where the number of threads or of prompts in a batch splits them otherwise;
greedy decoding then takes another token where two were nearly as probable, and from there on another answer: a few
verdicts of a hundred can change. A training repeats on a processor of the same class with as many threads, and nearly
so on cards, whose sums have no fixed order; small differences grow with every step, up to those between seeds. On
other hardware, and with other versions of torch or transformers, kernels round otherwise throughout; what differs there
says little about a submission and is shown as a note, up to WIDE times what a training anew may differ by: whoever made
up numbers could name a hardware that no verifier has. The contract's tolerances are of the first two cases.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr_lite.compare.command import seed_run
from dcr_lite.compare.contract import Contract
from dcr_lite.compare.findings import Finding, State, checked, compared_where_both, differs, same
from dcr_lite.compare.measurement import (
    Configuration,
    EvaluationData,
    answers_file,
    finished_result,
    measure_configuration,
    read_stored,
)
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.recompute import judged_again
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.submission import Entry, Judged, Point, Submission, setting_facts
from dcr_lite.compare.summary import Result, applies
from dcr_lite.compare.verification import place_of
from dcr_lite.errors import MethodError, UserError
from dcr_lite.files import read_state, write_state, write_whole_folder
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.opening import open_judges
from dcr_lite.judges.rates import exchanges
from dcr_lite.names import STOCK
from dcr_lite.run.machine import hardware_class, versions
from dcr_lite.run.opening import machine
from dcr_lite.run.run_folder import FOUND_FILE, NUMBERS
from dcr_lite.run.terminal import console
from dcr_lite.settings import Settings

# By these the same sums are rounded otherwise; a difference there makes the comparison a note.
ROUNDING = ("torch", "transformers")
WIDE = 4  # times the tolerance of a training anew: larger differences are no note on any hardware
BEGUN = "rerun.json"  # of the folder of a rerun: what it was begun with

Place = tuple[Entry, Point]  # a measurement in a submission


def places_of(submission: Submission) -> list[Place]:
    """Every measurement."""
    return [(entry, point) for entry in submission["methods"] for point in entry["points"]]


def point_of(submission: Submission, method: str, seed: int) -> Place:
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
    submission: Submission, contract: Contract, data: EvaluationData, places: Sequence[Place], settings: Settings,
    methods: dict[str, Method], compared: Path | None, out: Path,
) -> list[Finding]:  # fmt: skip
    """Repeat the measurements ``places`` in the folder ``out``, which keeps what is done, and compare.

    settings: the recipe's, with the contract applied. methods: the kit's and those added. compared: the folder whose
    adapters are taken; None: they are trained. Raises UserError where a method is not among ``methods``, and where
    ``out`` holds anything but the beginning of this rerun.
    """
    for entry, _ in places:
        if entry["method"] not in methods:
            raise UserError(f"--rerun {entry['title']}: give the same --add as the submission, of the same version")
    first_seed = contract.seeds[0]
    seeds = [first_seed if point["seed"] is None else point["seed"] for _, point in places]
    _begin(out, compared, first_seed, seeds, [entry["method"] for entry, _ in places])
    first = seed_run(settings, out, first_seed)
    stock = SeedRun(first.settings, out / "stock", 0, first.run.path)
    runs: dict[int | None, SeedRun] = {None: stock, first_seed: first}
    for seed in sorted(set(seeds) - {first_seed}):
        runs[seed] = SeedRun(first.settings, out / f"seed{seed}", seed, first.run.path)
    facts = dict(submission["recipe"]["settings"]), dict(setting_facts(first.settings))
    found = checked("settings are those of the submission", compared_where_both("settings", *facts))
    if other := other_rounding(submission, settings):
        found.append(Finding("note", f"{other}: differences up to {WIDE} times those of a training anew are notes"))
    judges = open_judges(contract.judge_names, settings.device)
    for i, (entry, point) in enumerate(places, start=1):
        place = place_of(entry, point["seed"])
        console.print(f"{i}/{len(places)} {place}", markup=False, soft_wrap=True)
        asked = Configuration(entry["method"], entry["strength"], point["seed"])
        try:
            result = _measured(runs, methods, asked, data)
        except MethodError as error:
            found.append(Finding("differs", f"{place}: it cannot be measured again: {error}"))
            continue
        rows = read_stored(answers_file(runs[asked.seed], asked, data), data)
        again = judged_again(judge_rows(judges, exchanges(rows)), rows, contract)
        found += _beside(place, point, again, result, contract, "adapters" if compared else "trained", bool(other))
    for run in runs.values():
        run.run.leave()
    return found


def _measured(
    runs: dict[int | None, SeedRun], methods: dict[str, Method], asked: Configuration, data: EvaluationData
) -> Result:
    """The result of a configuration, which is measured now unless it is there; before it that of the stock model."""
    reference = Configuration(STOCK, METHODS[STOCK].strengths(runs[None].settings)[0], None)
    answers = answers_file(runs[None], reference, data)
    for one in dict.fromkeys((reference, asked)):
        if not finished_result(runs[one.seed], one, data):
            for run in runs.values():
                run.unload()  # one model at a time
            measure_configuration(runs[one.seed], methods[one.method], one, data, answers)
            runs[one.seed].unload()
    return finished_result(runs[asked.seed], asked, data) or {}


def other_rounding(submission: Submission, settings: Settings) -> str:
    """What is other here than where the submission was measured, and makes kernels round otherwise; empty where
    nothing is."""
    on, here = machine(settings), versions()
    pairs = [("hardware class", submission["hardware"]["kind"], hardware_class(on.device))]
    pairs.append(("precision", submission["model"]["precision"], str(on.precision).removeprefix("torch.")))
    pairs.append(("4-bit weights", str(submission["model"]["four_bit"]), str(on.four_bit)))
    pairs += [(name, submission["versions"].get(name, "none"), here[name]) for name in ROUNDING]
    return "; ".join(f"{name} {there} there, {own} here" for name, there, own in pairs if there != own)


def _beside(
    place: str, point: Point, judged: dict[str, Judged], result: Result, contract: Contract, kind: str, other: bool
) -> list[Finding]:
    """The numbers and the note of a measurement beside those that were submitted. kind: of tolerances. other: whether
    sums are rounded otherwise here."""
    there, again = point["note"], result["note"]
    found = [] if _sense(there) == _sense(again) else [differs(f"{place}, note", there or "none", again or "none")]
    groups = [(f", {name}", point["judges"][name]["numbers"], of["numbers"]) for name, of in judged.items()]
    for which, submitted, measured in (*groups, ("", point["numbers"], result["numbers"])):
        for name in contract.by_judge if which else contract.by_model:
            pair = submitted.get(name), measured.get(name)
            if pair == (None, None):
                continue
            within, wide = contract.tolerance[kind][name], WIDE * contract.tolerance["trained"][name]
            state: State = "ok" if same(*pair, within) else "note" if other and same(*pair, wide) else "differs"
            said = " submitted, ".join("nothing" if value is None else f"{value:.4f}" for value in pair)
            found.append(Finding(state, f"{place}{which}, {name}: {said} again, within {within:g}"))
    return found


def _sense(note: str) -> tuple[str, bool]:
    """What a note says but for its numbers, which differ by rounding: how it begins, and whether the method applies."""
    return re.split(r"\d", note)[0], applies(note)


def _begin(out: Path, compared: Path | None, first: int, seeds: Sequence[int], methods: Sequence[str]) -> None:
    """Make the folder ``out``, with what the rerun builds on, unless it is begun. Its trainings are all of ``compared``
    or all its own: the tolerances go by that. With those of ``compared`` it is for these measurements alone, as the
    notes on all others are copied."""
    out = out.resolve()
    begun: dict[str, Any] = {"compared": None}
    if compared:
        begun = {"compared": str(compared.resolve()), "measured": [*map(list, zip(methods, seeds, strict=True))]}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        if not (out / BEGUN).exists():
            raise UserError(f"{out} is not empty, and no rerun has begun it. Choose another --out.")
        cure = "Choose another --out, or delete it."
        if read_state(out / BEGUN, cure) != begun:
            raise UserError(
                f"{out} was begun by another rerun, so its adapters and measurements may be of that one. {cure}"
            )
        return

    def write(folder: Path) -> None:
        if compared:
            _copy(compared, folder, first, seeds, methods)
        write_state(begun, folder / BEGUN)

    write_whole_folder(out, write)


def _copy(compared: Path, to: Path, first: int, seeds: Sequence[int], methods: Sequence[str]) -> None:
    """What a rerun builds on: the trainings of the seeds, what the first seed found, the stock model's answers; without
    the notes that the methods are measured already, and in which numbers."""
    folders = dict.fromkeys(("stock", *(f"seed{seed}" for seed in seeds)))
    for name in dict.fromkeys((f"seed{first}", *folders)):
        if not (compared / name / "settings.json").exists():
            raise UserError(f"--compared {compared}: there is no {name} of a comparison in it")
    # In this machine's numbers: others are a note.
    left = shutil.ignore_patterns(*(f"measured_{method}_*" for method in methods), f"{NUMBERS}.json")
    for name in folders:
        # Contents alone: of a comparison that may not be written to, files that may.
        shutil.copytree(compared / name, to / name, ignore=left, copy_function=shutil.copyfile)
    if first not in seeds:
        (to / f"seed{first}").mkdir()
        for name in ("settings.json", FOUND_FILE):
            shutil.copyfile(compared / f"seed{first}" / name, to / f"seed{first}" / name)
