"""``dcr-lite compare``: the methods trained and measured on one recipe with several seeds.

The stock model is measured once. Every training and every measurement is kept when it is finished, so that a stopped
comparison can be continued. A method that fails is named, and the others go on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from dcr_lite.compare.added import added_methods
from dcr_lite.compare.contract import Contract, read_contract, require_no_contradiction, require_unseen
from dcr_lite.compare.elapsed import Elapsed
from dcr_lite.compare.judged import judged, stored_answers
from dcr_lite.compare.measurement import (
    Configuration,
    EvaluationData,
    all_seeds,
    answers_file,
    configurations,
    finished_result,
    measure_configuration,
    require_seeds,
    take_over,
    with_seeds,
)
from dcr_lite.compare.methods import Method, chosen_methods
from dcr_lite.compare.operations import shared_parts
from dcr_lite.compare.report import comparison_report, listed, write_report
from dcr_lite.compare.schema import LONGEST
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.submission import submission_of, write_submission
from dcr_lite.compare.summary import Result
from dcr_lite.errors import MethodError, UserError, out_of_memory, sentence
from dcr_lite.judges.opening import DEFAULT, open_judges
from dcr_lite.names import STOCK, models_of
from dcr_lite.run.inputs import resolved
from dcr_lite.run.plan import ACHIEVED, matrix_rate
from dcr_lite.run.recipes import settings_of
from dcr_lite.run.terminal import console, show_plan
from dcr_lite.settings import Settings

SEEDS = (0, 1, 2)
NO_OTHERS: Mapping[str, tuple[int, ...]] = {}  # no method has seeds of its own
CUES_ALONE: dict[str, Any] = {"main": DEFAULT[0], "judges": [], "agreement": []}  # what ``judged`` says of no other


def compare(
    recipe: Path | Settings,
    seeds: tuple[int, ...] | None,
    files: tuple[Path, ...],
    rows: int | None,
    multiple_choice: Path | None,
    curve_seeds: tuple[int, ...] | None,
    out: Path,
    judges: tuple[str, ...] | None = None,
    judge_key: str | None = None,
    only: tuple[str, ...] = (),
    added: tuple[str, ...] = (),
    contract: int | None = None,
    by: str | None = None,
    benchmarks: tuple[str, ...] = (),
    seeds_of: Mapping[str, tuple[int, ...]] = NO_OTHERS,
) -> dict[str, Any]:
    """Train and measure the methods with every seed; write comparison.json, comparison.md and trade_off.png to ``out``
    and return what the JSON holds, with ``failed``: {method, strength, seed, why} of what could not be measured. By a
    contract, where all could be, write submission.json as well.

    recipe: its file, or the settings of a run without one. seeds: by default 0, 1, 2. files, benchmarks: of prompts to
    measure on, by default the recipe's held-out ones; at most ``rows`` of each set and label. multiple_choice:
    questions for general ability. curve_seeds: those at which further strengths are measured too, by default the first.
    judges, judge_key: as ``open_judges`` takes them, by default the cue judge; the tables are by the first. only: the
    methods besides the stock model, by default all. added: as ``added_methods`` takes them. contract: its number; it
    fixes seeds, prompts, rows, judges, and no curve is measured unasked. by: who submits. seeds_of: a method's own.
    """
    given = {"seeds": seeds, "prompts": files, "benchmarks": benchmarks, "rows": rows, "judge": judges}
    if terms := _terms(contract, given | {"multiple_choice": multiple_choice}, by):
        seeds, files, rows, judges = terms.seeds, terms.files, terms.rows, terms.judge_names
    usual = SEEDS if seeds is None else seeds
    seeds, curve_seeds = all_seeds(usual, () if terms and curve_seeds is None else curve_seeds, seeds_of)
    methods = with_seeds(chosen_methods(only) | added_methods(added, seeds), usual, seeds_of)
    settings = _settings(recipe, terms)
    files = files or (() if benchmarks else settings.evaluation)
    elapsed, data = Elapsed(out), EvaluationData.read(files, rows, multiple_choice, benchmarks)
    opened = [] if judges in (None, DEFAULT) and not terms else open_judges(judges or (), settings.device, judge_key)
    failed: dict[Configuration, str] = {}
    runs, results = measured(methods, settings, data, seeds, curve_seeds, out, elapsed.keep, failed)
    cues_alone = results, CUES_ALONE, partial(stored_answers, runs, data)
    results, section, answers = judged(opened, runs, results, data, out, methods) if opened else cues_alone
    found, name = runs[seeds[0]].settings, recipe.stem if isinstance(recipe, Path) else recipe.run.name
    report = comparison_report(name, found, results, curve_seeds, methods, answers)
    report |= _measured_on(data, files, benchmarks, rows, multiple_choice) | {"judged": section}
    report |= {"seconds": elapsed.keep(), "failed": [one._asdict() | {"why": why} for one, why in failed.items()]}
    write_report(report, found, out, methods)
    if terms and isinstance(recipe, Path) and not failed:
        write_submission(submission_of(report, terms, methods, runs, data, recipe, by), out)
    return report


def require_all(report: dict[str, Any], out: Path) -> None:
    """Raises UserError where something could not be measured, of what ``compare`` has written to ``out``."""
    if failed := report["failed"]:
        raise UserError(
            f"{len(failed)} of the models could not be measured, as {out / 'comparison.md'} says. The others are kept: "
            "the same command tries these again."
        )


def _measured_on(
    data: EvaluationData, files: tuple[Path, ...], benchmarks: tuple[str, ...], rows: int | None, questions: Path | None
) -> dict[str, Any]:
    """What the report says of the prompts and questions."""
    sets = {"files": [str(path) for path in files], "benchmarks": list(benchmarks)}
    return {
        "prompts": sets | {"rows": rows, "n": len(data.prompts)},
        "general": {"instructions": len(data.instructions), "multiple_choice": questions and str(questions)},
    }


def _terms(number: int | None, flags: dict[str, Any], by: str | None) -> Contract | None:
    """The contract of that number, which no flag may contradict; None where none is asked for."""
    if number is not None:
        contract = read_contract(number)
        require_no_contradiction(contract, flags)
        if by is not None and not (by.isprintable() and len(by) <= LONGEST):
            raise UserError(f"--by: one line of at most {LONGEST} characters")
        return contract
    if by is not None:
        raise UserError("--by names who submits, which goes with --contract")
    return None


def _settings(recipe: Path | Settings, terms: Contract | None) -> Settings:
    """The recipe's, under a contract with what that fixes. Raises UserError where it trains on prompts of that."""
    settings = settings_of(recipe)
    if terms is None:
        return settings
    if not isinstance(recipe, Path):
        raise UserError("--contract: others run the recipe again, so give the file of one and no --model")
    settings = terms.applied(settings)
    require_unseen(terms, resolved(settings))
    return settings


def measured(
    methods: dict[str, Method], settings: Settings, data: EvaluationData, seeds: tuple[int, ...],
    curve_seeds: tuple[int, ...], out: Path, keep: Callable[[], object] = lambda: None,
    failed: dict[Configuration, str] | None = None,
) -> tuple[dict[int | None, SeedRun], list[Result]]:  # fmt: skip
    """The run of each seed (None: the stock model's) and the results of all configurations; what is not yet measured is
    measured now, and ``keep`` called behind each. Settings that have to be found are found with the first seed and
    shared. failed: takes those that cannot be measured, with what their error says; without it the first ends all."""
    runs, every = _runs(methods, settings, seeds, curve_seeds, out)
    for one in every:
        take_over(runs[one.seed], methods[one.method], one, data)
    left = [one for one in every if finished_result(runs[one.seed], one, data) is None]
    if left:
        operations = _operations(methods, runs, left, len(data.prompts))
        show_plan(
            {
                "model": settings.model,
                "methods": ", ".join(method.title for method in methods.values()),
                "seeds": f"{listed(seeds)} (trade-off curve: {listed(curve_seeds) or '-'})",
                "prompts": str(len(data.prompts)),
                "to do": f"{len(left)} of {len(every)} configurations",
                "estimated time": f"about {_minutes(_seconds(operations, runs[seeds[0]]))} min",
                "folder": str(out),
            }
        )
        stock = answers_file(runs[None], every[0], data)
        _measure_all(methods, runs, left, data, stock, operations, keep, failed)
    for run in runs.values():
        run.run.leave()
    return runs, [result for one in every if (result := finished_result(runs[one.seed], one, data))]


def seconds_ahead(
    recipe: Path | Settings, seeds: tuple[int, ...], files: Sequence[tuple[Path, ...]], rows: int | None, out: Path,
    only: tuple[str, ...] = (), seeds_of: Mapping[str, tuple[int, ...]] = NO_OTHERS,
) -> float:  # fmt: skip
    """About how many seconds ``compare`` with these arguments and no curve still takes, on each of ``files`` in turn,
    by the operations of what is not measured yet. Settings that have to be found are found for it, and kept."""
    settings, (all_, _) = settings_of(recipe), all_seeds(seeds, (), seeds_of)
    methods = with_seeds(chosen_methods(only), seeds, seeds_of)
    runs, every = _runs(methods, settings, all_, (), out)
    operations: list[float] = []
    for i, some in enumerate(files):
        data = EvaluationData.read(some or settings.evaluation, rows, None)
        if left := [one for one in every if finished_result(runs[one.seed], one, data) is None]:
            n = len(data.prompts)  # what was trained for the first is there for the others
            operations += [_answers(runs[all_[0]], n)] * len(left) if i else _operations(methods, runs, left, n)
    seconds = _seconds(operations, runs[all_[0]]) if operations else 0.0
    for run in runs.values():
        run.unload()
        run.run.leave()
    return seconds


def _seconds(operations: list[float], run: SeedRun) -> float:
    return sum(operations) / (matrix_rate(run.model.device, run.model.precision) * ACHIEVED)


def _runs(
    methods: dict[str, Method], settings: Settings, seeds: tuple[int, ...], curve_seeds: tuple[int, ...], out: Path
) -> tuple[dict[int | None, SeedRun], list[Configuration]]:
    """The run of each seed (None: the stock model's), and all configurations. Raises UserError as ``require_seeds``."""
    require_seeds(seeds)
    first = seed_run(settings, out, seeds[0])
    runs: dict[int | None, SeedRun] = {None: SeedRun(first.settings, out / "stock", 0, first.run.path), seeds[0]: first}
    runs |= {seed: SeedRun(first.settings, out / f"seed{seed}", seed, first.run.path) for seed in seeds[1:]}
    return runs, configurations(methods, first.settings, seeds, curve_seeds)


def seed_run(settings: Settings, out: Path, seed: int) -> SeedRun:
    """The run of a comparison's first seed, with the settings that the comparison has found, or finds now: once, since
    further seeds may come first later."""
    settings = resolved(settings)
    if settings.stage1 == "no":
        raise UserError("--stage1 no: what stage 1 is worth is compared here; without it, DCR is the method dial_alone")
    if settings.backend == "unsloth":  # which takes no cache, so that answers cannot be steered on it
        settings = replace(settings, backend="transformers")
    run = SeedRun(settings, out / f"seed{seed}", seed, out / "stock")
    run.find_settings()
    return run


def _operations(
    methods: dict[str, Method], runs: dict[int | None, SeedRun], left: list[Configuration], prompts: int
) -> list[float]:
    """About how many floating-point operations each of ``left`` takes. What several methods of a seed build on is
    counted with the first of them. The rows of the first seed stand for those of all."""
    seed_run = next(run for seed, run in runs.items() if seed is not None)
    answers = _answers(seed_run, prompts)
    found: list[float] = []
    counted: set[tuple[int | None, str]] = set()
    for one in left:
        shared = shared_parts(seed_run, one.method, one.strength)
        new = {part for part in shared if (one.seed, part) not in counted and not runs[one.seed].run.finished(part)}
        counted |= {(one.seed, part) for part in shared}
        own = methods[one.method].operations(seed_run, one.strength)
        found.append(answers + own + sum(shared[part] for part in new))
    return found


def _answers(run: SeedRun, prompts: int) -> float:
    """Operations of a model's answers to so many prompts."""
    return run.operations["answers"] * prompts / len(run.data.held_out) / len(models_of(run.settings.compare_with))


def _measure_all(
    methods: dict[str, Method], runs: dict[int | None, SeedRun], left: list[Configuration], data: EvaluationData,
    stock: Path, operations: list[float], keep: Callable[[], object], failed: dict[Configuration, str] | None,
) -> None:  # fmt: skip
    """Measure the configurations, printing each result with about the time that is left after it at the speed so far.
    stock: the file of the stock model's answers. operations: of each configuration. keep, failed: as ``measured``."""
    started = time.monotonic()
    for i, one in enumerate(left, start=1):
        for seed, other in runs.items():
            if seed != one.seed:
                other.unload()  # every seed loads a model of its own, and one is enough for a computer's memory
        try:
            measure_configuration(runs[one.seed], methods[one.method], one, data, stock)
        except Exception as error:
            why = _of_this_alone(error)
            if failed is None or why is None or one.method == STOCK:  # all others are measured beside the stock model
                raise
            failed[one] = why
            runs[one.seed].unload()
            console.print(f"{i}/{len(left)} {one.named(methods[one.method].title)} is left out: {why}", soft_wrap=True)
        keep()
        seconds = sum(operations[i:]) * (time.monotonic() - started) / sum(operations[:i])
        if result := finished_result(runs[one.seed], one, data):
            time_left = f"; about {_minutes(seconds)} min left" if i < len(left) else ""
            console.print(f"{i}/{len(left)} {_line(methods[one.method].title, result)}{time_left}", soft_wrap=True)
    for run in runs.values():
        run.unload()


def _of_this_alone(error: Exception) -> str | None:
    """What an error says that another method need not meet; None for any other."""
    return sentence(error, "run the command again") if isinstance(error, MethodError) or out_of_memory(error) else None


def _line(title: str, result: Result) -> str:
    keys = ("compliance", "kept_seemingly_toxic", "safety", "auroc")
    numbers = ", ".join(
        f"{key.partition('_')[0]} {result['numbers'][key]:.2f}" for key in keys if key in result["numbers"]
    )
    return f"{Configuration.of(result).named(title)}: {numbers}"


def _minutes(seconds: float) -> int:
    return max(1, round(seconds / 60))
