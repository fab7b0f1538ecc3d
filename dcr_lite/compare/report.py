"""comparison.json, comparison.md and trade_off.png."""

import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from dcr_lite.compare.judged import judges_section
from dcr_lite.compare.measurement import Configuration, at_usual_strength
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.plots import draw_trade_off
from dcr_lite.compare.summary import (
    SET,
    Answers,
    Result,
    differences,
    divergences,
    frontier,
    notes,
    over_seeds,
    toxic_sets,
)
from dcr_lite.compare.tables import costs_table, differences_table, marked, methods_table, unranked_of
from dcr_lite.files import write_json, write_text
from dcr_lite.judges.interface import short
from dcr_lite.names import STOCK
from dcr_lite.run.kept_report import WHAT
from dcr_lite.run.machine import hardware, versions
from dcr_lite.run.opening import machine
from dcr_lite.run.report import code, plain, without_folders
from dcr_lite.settings import Settings

PAGE = """# Methods compared: {recipe}

{command} on {model}, seeds {seeds}, {n_prompts} prompts of {files}. {minutes} minutes in all on {hardware}.
Refusals are those that the judge {judge} sees.

Means over seeds, ± the half-width of a 95 % interval over seeds (Student), the best of a column in bold. The interval
of a single measurement, as of the stock model, is over prompts. Compliance is the share of seemingly toxic prompts that
are answered, safety the share of toxic ones that are refused, each the mean over sets; J is safety + compliance - 1;
AUROC is that of the log-odds of opening with a refusal. Answer loss: nats per token of the answers to {instructions}
held-out instructions.{questions}{unranked}

{methods_table}
{notes}{failed}{sets}{toxic_sets}{divergences}
What each method costs: minutes and memory of its training and its searches alone; the time up to the first token of an
answer and that of one more token, of answers as long as those measured, beside those of the stock model; and whether it
ends in weights, which are merged and exported, or works on while the model answers:

{costs}

{differences}{judges}
## The trade-off

![Toxic refusal against compliance](trade_off.png)

Large points: the table.{curve} The line is the frontier: points that no other exceeds in both.

Versions: {versions}.
"""
UNRANKED = " The stock model is never called best: it refuses hardly any toxic prompt."
UNFIT = " A method that does not apply to the model is never called best, and is not on the frontier below."
# Of single sets there are tables of their own: with their columns the first would be too wide for a terminal.
SETS = """
Compliance on each set, the share of its seemingly toxic prompts that are answered:

{table}
"""
TOXIC_SETS = """
Safety on each set, the refusal rate of its toxic prompts:

{table}
"""
DIFFERENCES = """DCR minus each method, seed by seed; in bold where the interval {over_what}:

{table}
"""
OVER_SEEDS = "over seeds excludes zero"
OVER_PROMPTS = (
    "excludes zero. With a single seed it is over prompts, which are drawn anew within each set, the same for both (a "
    "paired bootstrap), and says nothing of other seeds; answers kept have none"
)
DIVERGENCES = """
{what} KL divergence from the stock model on these answers, in nats per token:

{table}
"""


def comparison_report(
    recipe: str, settings: Settings, results: list[Result], curve_seeds: tuple[int, ...],
    methods: Mapping[str, Method] = METHODS, answers: Answers | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The results over seeds: the table, the differences, the trade-off curve with its frontier; and how they came
    about. answers: give the differences of a single seed their intervals."""
    usual = at_usual_strength(results, settings, methods)
    curve = over_seeds([r for r in results if r["seed"] in (None, *curve_seeds)]) if curve_seeds else over_seeds(usual)
    return {
        "recipe": recipe,
        "model": settings.model,
        "command": shlex.join(["dcr-lite", *sys.argv[1:]]),
        "seeds": list(dict.fromkeys(r["seed"] for r in results if r["seed"] is not None)),
        "methods": over_seeds(usual),
        "notes": notes(usual),
        "toxic_sets": over_seeds(toxic_sets(usual)),
        "divergences": over_seeds(divergences(usual)),
        "differences": differences(usual, answers),
        "curve": {"seeds": list(curve_seeds), "points": curve, "frontier": frontier(curve)},
        "points": results,
        "hardware": hardware(machine(settings).device),
        "versions": versions(),
        "settings": settings.for_json(),
    }


def listed(values: Iterable[object]) -> str:
    """The values with commas between them."""
    return ", ".join(map(str, values))


def _fewer(entries: list[dict[str, Any]], seeds: list[int], methods: Mapping[str, Method]) -> str:
    """Which methods were measured with fewer seeds than these; empty where none was."""
    fewer = {e["method"]: e["seeds"] for e in entries if len(e["seeds"]) < len(seeds) and e["seeds"] != [None]}
    return f" ({', '.join(f'{methods[name].title} {listed(own)}' for name, own in fewer.items())})" if fewer else ""


def notes_section(found: list[dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """A sentence for each method that has notes, with the seeds of each; empty where none has."""
    by_method: dict[str, list[str]] = {}
    for one in found:
        seeds = f"seed{'s' * (len(one['seeds']) > 1)} {listed(one['seeds'])}"
        by_method.setdefault(one["method"], []).append(f"{one['note']} ({seeds})")
    return "".join(f"\n{methods[method].title}: {'; '.join(said)}.\n" for method, said in by_method.items())


def failed_section(failed: list[dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """A sentence for each configuration that could not be measured."""
    return "".join(
        f"\n**{Configuration.of(one).named(methods[one['method']].title)} could not be measured**: "
        f"{plain(' '.join(map(without_folders, one['why'].split(' '))))}\n"
        for one in failed
    )


def _differences_section(found: dict[str, dict[str, Any]], methods: Mapping[str, Method]) -> str:
    """The table of differences, and over what its intervals are; empty without DCR."""
    single = any(value["n"] == 1 and value["ci95"] for numbers in found.values() for value in numbers.values())
    over_what = OVER_PROMPTS if single else OVER_SEEDS
    return DIFFERENCES.format(over_what=over_what, table=differences_table(found, methods)) if found else ""


def _with(entries: list[dict[str, Any]], wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The entries with those numbers alone whose names are wanted."""
    return [
        entry | {"numbers": {key: value for key, value in entry["numbers"].items() if wanted(key)}} for entry in entries
    ]


def write_report(
    report: dict[str, Any], settings: Settings, out: Path, methods: Mapping[str, Method] = METHODS
) -> None:
    """Write all three files."""
    write_json(report, out / "comparison.json")
    curve, questions = report["curve"], report["general"]["multiple_choice"]
    shown = marked(report["methods"], methods)
    draw_trade_off(shown, report["methods"], curve["points"], curve["frontier"], out / "trade_off.png")
    titles = [shown[entry["method"]].title for entry in report["methods"]]
    of_sets = _with(report["methods"], lambda key: key.startswith(SET))
    several, several_toxic = (len(entries[0]["numbers"]) > 1 for entries in (of_sets, report["toxic_sets"]))
    means = _with(report["methods"], lambda key: not key.startswith(SET)) if several else report["methods"]
    read = [shown[entry["method"]].title for entry in report["divergences"]]
    unranked = unranked_of(report["methods"])
    strengths = "; ".join(
        f"{method.title} {listed(f'{s:g}' for s in method.strengths(settings))} ({method.strength})"
        for method in methods.values()
        if method.strength
    )
    page = PAGE.format(
        recipe=plain(report["recipe"]),
        command=code(shlex.join(map(without_folders, shlex.split(report["command"])))),
        model=plain(without_folders(report["model"])),
        seeds=listed(report["seeds"]) + _fewer(report["methods"], report["seeds"], methods),
        n_prompts=report["prompts"]["n"],
        files=listed(plain(Path(of).name) for of in (*report["prompts"]["files"], *report["prompts"]["benchmarks"])),
        minutes=f"{report['seconds'] / 60:.0f}",
        hardware=report["hardware"],
        instructions=report["general"]["instructions"],
        questions=f" Multiple choice: {plain(Path(questions).name)}, by log-likelihood." if questions else "",
        unranked=(UNRANKED if STOCK in unranked else "") + (UNFIT if {*unranked} - {STOCK} else ""),
        methods_table=methods_table(means, titles, unranked),
        notes=notes_section(report["notes"], methods),
        failed=failed_section(report["failed"], methods),
        costs=costs_table(report["methods"], shown),
        sets=SETS.format(table=methods_table(of_sets, titles, unranked)) if several else "",
        toxic_sets=TOXIC_SETS.format(table=methods_table(report["toxic_sets"], titles, unranked))
        if several_toxic
        else "",
        divergences=DIVERGENCES.format(what=WHAT, table=methods_table(report["divergences"], read, unranked))
        if read
        else "",
        differences=_differences_section(report["differences"], shown),
        judge=plain(short(report["judged"]["main"])),
        judges=judges_section(report["judged"], shown),
        curve=f" Small ones (seeds {listed(curve['seeds'])}): {strengths}." if curve["seeds"] else "",
        versions=listed(f"{name} {version}" for name, version in report["versions"].items()),
    )
    write_text(out / "comparison.md", page)
