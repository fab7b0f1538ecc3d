"""The tables of a comparison: what each method reaches, what it costs, and DCR minus each."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.summary import COMPARED, SET
from dcr_lite.names import STOCK
from dcr_lite.run.found_settings import REFUSES
from dcr_lite.run.report import markdown_table, plain

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
COSTS = ("minutes", "peak_memory_gb", "first_token_ms", "token_ms")  # in a table of their own


def cell(value: dict[str, Any] | None, form: str = ".2f", best: float | None = None) -> str:
    """A mean over seeds with the half-width of its interval, in bold where it is ``best``."""
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
        cells = [cell(v, form, None if entry["method"] in unranked else top) for v, form, top in values]
        rows.append([title, *cells])
    return markdown_table(["", *(f"{title} {'↑' if higher else '↓'}" for title, higher, _ in columns.values())], rows)


def unranked_of(entries: list[dict[str, Any]]) -> list[str]:
    """The stock model where it does not refuse by itself, and so would be best in whatever counts answers; and the
    methods that do not apply to it."""
    stock = [e["method"] for e in entries if e["method"] == STOCK and e["numbers"]["safety"]["mean"] < REFUSES]
    return stock + _unfit(entries)


def _unfit(entries: list[dict[str, Any]]) -> list[str]:
    return [e["method"] for e in entries if not e["applies"]]


def marked(entries: list[dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> dict[str, Method]:
    """The methods; in the title of one that does not apply to the model stands that."""
    unfit = _unfit(entries)
    return {
        name: replace(method, title=f"{method.title} (does not apply)") if name in unfit else method
        for name, method in methods.items()
    }


def costs_table(entries: list[dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """One row a method: minutes, memory, the times of the first token and of one more in units of the stock model's,
    and what it ends in. A dash where no answer had such a token."""

    def mean(entry: dict[str, Any], key: str) -> float | None:
        value = entry["numbers"].get(key)
        return None if value is None else float(value["mean"])

    stock = {key: mean(entry, key) for entry in entries if entry["method"] == STOCK for key in COSTS}
    rows = []
    for entry in entries:
        method, own = methods[entry["method"]], {key: mean(entry, key) for key in COSTS}
        spent = [f"{value:.1f}" if (value := own[key]) else "-" for key in COSTS[:2]]
        times = [f"{value / of:.2f}" if (value := own[key]) and (of := stock.get(key)) else "-" for key in COSTS[2:]]
        rows.append([method.title, *spent, *times, "weights" if method.in_weights else "run time"])
    titles = ["", "minutes", "peak GB", "first token, times stock", "a token, times stock", "ends in"]
    return markdown_table(titles, rows)


def differences_table(found: dict[str, dict[str, Any]], methods: Mapping[str, Method] = METHODS) -> str:
    """DCR minus each method, with the interval; bold where it excludes zero."""

    def difference(value: dict[str, Any] | None) -> str:
        if value is None:
            return "-"
        text = f"{round(value['mean'], 2) + 0:+.2f}"  # never -0.00
        if value["ci95"] is None:
            return text
        low, high = (round(end, 2) + 0 for end in value["ci95"])
        text += f" ({low:+.2f} to {high:+.2f})"
        return f"**{text}**" if low > 0 or high < 0 else text

    keys = [key for key in COMPARED if any(key in numbers for numbers in found.values())]
    rows = [[methods[name].title, *(difference(numbers.get(key)) for key in keys)] for name, numbers in found.items()]
    return markdown_table(["DCR minus", *(COLUMNS[key][0] for key in keys)], rows)
