"""comparison.json, comparison.md and trade_off.png."""

import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dcr_lite.compare.judged import judges_section
from dcr_lite.compare.measurement import at_usual_strength
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.plots import draw_trade_off
from dcr_lite.compare.summary import (
    COMPARED,
    SET,
    Result,
    differences,
    divergences,
    frontier,
    notes,
    over_seeds,
    toxic_sets,
)
from dcr_lite.files import write_json, write_text
from dcr_lite.judges.interface import short
from dcr_lite.names import STOCK
from dcr_lite.run.found_settings import REFUSES
from dcr_lite.run.kept_report import WHAT
from dcr_lite.run.machine import hardware, versions
from dcr_lite.run.opening import machine
from dcr_lite.run.report import code, markdown_table, plain, without_folders
from dcr_lite.settings import Settings

# The columns of the table: title, whether more is better, format. Those of single sets come before them.
COLUMNS: dict[str, tuple[str, bool, str]] = {
    "compliance": ("compliance, mean", True, ".2f"),
    "kept_seemingly_toxic": ("kept, seemingly toxic", True, ".2f"),
    "kept_plain": ("kept, plain", True, ".2f"),
    "safety": ("safety", True, ".2f"),
    "plain": ("plain refused", False, ".2f"),
    "j": ("J", True, ".2f"),
    "auroc": ("AUROC", True, ".2f"),
    "answer_loss": ("answer loss", False, ".3f"),
    "accuracy": ("multiple choice", True, ".2f"),
    "first_divergence_seemingly_toxic": ("first token, seemingly toxic", False, ".3f"),
    "first_divergence_plain": ("first token, plain", False, ".3f"),
    "divergence_seemingly_toxic": ("whole answer, seemingly toxic", False, ".3f"),
    "divergence_plain": ("whole answer, plain", False, ".3f"),
}
COSTS = ("minutes", "peak_memory_gb", "token_ms")  # in a table of their own

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
What each method costs: minutes and memory of its training and its searches alone; the time of one more token of an
answer beside that of the stock model; and whether it ends in weights, which are merged and exported, or works on while
the model answers:

{costs}

{differences}{judges}
## The trade-off

![Toxic refusal against compliance](trade_off.png)

Large points: the table.{curve} The line is the frontier: points that no other exceeds in both.

Versions: {versions}.
"""
UNRANKED = " The stock model is never called best: it refuses hardly any toxic prompt."
# Of single sets there are tables of their own: with their columns the first would be too wide for a terminal.
SETS = """
Compliance on each set, the share of its seemingly toxic prompts that are answered:

{table}
"""
TOXIC_SETS = """
Safety on each set, the refusal rate of its toxic prompts:

{table}
"""
DIFFERENCES = """DCR minus each method, seed by seed; in bold where the interval over seeds excludes zero:

{table}
"""
DIVERGENCES = """
{what} KL divergence from the stock model on these answers, in nats per token:

{table}
"""


def comparison_report(
    recipe: str, settings: Settings, results: list[Result], curve_seeds: tuple[int, ...],
    methods: Mapping[str, Method] = METHODS,
) -> dict[str, Any]:  # fmt: skip
    """The results over seeds: the table, the differences, the trade-off curve with its frontier; and how they came
    about."""
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
        "differences": differences(usual),
        "curve": {"seeds": list(curve_seeds), "points": curve, "frontier": frontier(curve)},
        "points": results,
        "hardware": hardware(machine(settings).device),
        "versions": versions(),
        "settings": settings.for_json(),
    }


def listed(values: Iterable[object]) -> str:
    """The values with commas between them."""
    return ", ".join(map(str, values))


def _cell(value: dict[str, Any] | None, form: str, best: float | None) -> str:
    if value is None:
        return "-"
    text = f"{value['mean']:{form}}"
    if value["ci95"] is not None:
        text += f" ±{(value['ci95'][1] - value['ci95'][0]) / 2:{form}}"
    return f"**{text}**" if round(value["mean"], 4) == best else text


def methods_table(entries: list[dict[str, Any]], titles: Sequence[str], unranked: Collection[str] = ()) -> str:
    """One row an entry, by its title: mean and half-width of the 95 % interval over seeds, the best of a column in
    bold. unranked: methods that are shown and never called best."""
    there = dict.fromkeys(key for entry in entries for key in entry["numbers"])
    sets = [key for key in there if key not in COLUMNS and key not in COSTS]
    columns = {key: (plain(key.removeprefix(SET)), True, ".2f") for key in sets}
    columns |= {k: v for k, v in COLUMNS.items() if k in there and not (k == "compliance" and len(sets) == 1)}
    ranked = [entry["numbers"] for entry in entries if entry["method"] not in unranked]
    best = {
        key: (max if higher else min)((round(n[key]["mean"], 4) for n in ranked if key in n), default=None)
        for key, (_, higher, _) in columns.items()
    }
    rows = []
    for entry, title in zip(entries, titles, strict=True):
        values = [(entry["numbers"].get(key), form, best[key]) for key, (_, _, form) in columns.items()]
        cells = [_cell(v, form, None if entry["method"] in unranked else top) for v, form, top in values]
        rows.append([title, *cells])
    return markdown_table(["", *(f"{title} {'↑' if higher else '↓'}" for title, higher, _ in columns.values())], rows)


def unranked_of(entries: list[dict[str, Any]]) -> list[str]:
    """The stock model where it does not refuse by itself, and so would be best in whatever counts answers."""
    return [e["method"] for e in entries if e["method"] == STOCK and e["numbers"]["safety"]["mean"] < REFUSES]


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
        f"\n**{methods[one['method']].title}, seed {one['seed']}, at {one['strength']:g} could not be measured**: "
        f"{plain(' '.join(map(without_folders, one['why'].split(' '))))}\n"
        for one in failed
    )


def costs_table(entries: list[dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """One row a method: minutes, memory, the time of a token in units of the stock model's, and what it ends in. A dash
    where no answer had a second token."""

    def mean(entry: dict[str, Any], key: str) -> float | None:
        value = entry["numbers"].get(key)
        return None if value is None else float(value["mean"])

    stock = next((mean(entry, "token_ms") for entry in entries if entry["method"] == STOCK), None)
    rows = []
    for entry in entries:
        minutes, memory, token = (mean(entry, key) for key in COSTS)
        cells = [
            f"{minutes:.1f}" if minutes else "-",
            f"{memory:.1f}" if memory else "-",
            f"{token / stock:.2f}" if token and stock else "-",
        ]
        method = methods[entry["method"]]
        rows.append([method.title, *cells, "weights" if method.in_weights else "run time"])
    return markdown_table(["", "minutes", "peak GB", "a token, times stock", "ends in"], rows)


def _with(entries: list[dict[str, Any]], wanted: Callable[[str], bool]) -> list[dict[str, Any]]:
    """The entries with those numbers alone whose names are wanted."""
    return [
        entry | {"numbers": {key: value for key, value in entry["numbers"].items() if wanted(key)}} for entry in entries
    ]


def differences_table(found: dict[str, dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """DCR minus each method, with the interval; bold where it excludes zero."""

    def cell(value: dict[str, Any] | None) -> str:
        if value is None:
            return "-"
        text = f"{round(value['mean'], 2) + 0:+.2f}"  # never -0.00
        if value["ci95"] is None:
            return text
        low, high = (round(end, 2) + 0 for end in value["ci95"])
        text += f" ({low:+.2f} to {high:+.2f})"
        return f"**{text}**" if low > 0 or high < 0 else text

    keys = [key for key in COMPARED if any(key in numbers for numbers in found.values())]
    rows = [[methods[name].title, *(cell(numbers.get(key)) for key in keys)] for name, numbers in found.items()]
    return markdown_table(["DCR minus", *(COLUMNS[key][0] for key in keys)], rows)


def write_report(
    report: dict[str, Any], settings: Settings, out: Path, methods: Mapping[str, Method] = METHODS
) -> None:
    """Write all three files."""
    write_json(report, out / "comparison.json")
    curve, questions = report["curve"], report["general"]["multiple_choice"]
    draw_trade_off(methods, report["methods"], curve["points"], curve["frontier"], out / "trade_off.png")
    titles = [methods[entry["method"]].title for entry in report["methods"]]
    of_sets = _with(report["methods"], lambda key: key.startswith(SET))
    several, several_toxic = (len(entries[0]["numbers"]) > 1 for entries in (of_sets, report["toxic_sets"]))
    means = _with(report["methods"], lambda key: not key.startswith(SET)) if several else report["methods"]
    read = [methods[entry["method"]].title for entry in report["divergences"]]
    compared, unranked = report["differences"], unranked_of(report["methods"])
    strengths = "; ".join(
        f"{method.title} {listed(f'{s:g}' for s in method.strengths(settings))} ({method.strength})"
        for method in methods.values()
        if method.strength
    )
    page = PAGE.format(
        recipe=plain(report["recipe"]),
        command=code(shlex.join(map(without_folders, shlex.split(report["command"])))),
        model=plain(without_folders(report["model"])),
        seeds=listed(report["seeds"]),
        n_prompts=report["prompts"]["n"],
        files=listed(plain(Path(file).name) for file in report["prompts"]["files"]),
        minutes=f"{report['seconds'] / 60:.0f}",
        hardware=report["hardware"],
        instructions=report["general"]["instructions"],
        questions=f" Multiple choice: {plain(Path(questions).name)}, by log-likelihood." if questions else "",
        unranked=UNRANKED if unranked else "",
        methods_table=methods_table(means, titles, unranked),
        notes=notes_section(report["notes"], methods),
        failed=failed_section(report["failed"], methods),
        costs=costs_table(report["methods"], methods),
        sets=SETS.format(table=methods_table(of_sets, titles, unranked)) if several else "",
        toxic_sets=TOXIC_SETS.format(table=methods_table(report["toxic_sets"], titles, unranked))
        if several_toxic
        else "",
        divergences=DIVERGENCES.format(what=WHAT, table=methods_table(report["divergences"], read)) if read else "",
        differences=DIFFERENCES.format(table=differences_table(compared, methods)) if compared else "",
        judge=plain(short(report["judged"]["main"])),
        judges=judges_section(report["judged"], methods),
        curve=f" Small ones (seeds {listed(curve['seeds'])}): {strengths}." if curve["seeds"] else "",
        versions=listed(f"{name} {version}" for name, version in report["versions"].items()),
    )
    write_text(out / "comparison.md", page)
