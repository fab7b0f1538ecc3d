"""probes.md, probes.json and probes.png: what every probe has found, one row for each model and probe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.report import listed, notes_section
from dcr_lite.compare.summary import applies, mean_and_interval, notes
from dcr_lite.compare.tables import marked
from dcr_lite.files import write_json, write_text
from dcr_lite.names import LABEL_TITLES, LABELS
from dcr_lite.probe.criterion import in_common, kept_sentence
from dcr_lite.probe.kept import Part
from dcr_lite.probe.numbers import KINDS, SEEN, Row, rows_of
from dcr_lite.probe.plots import draw_probes
from dcr_lite.probe.probes import NONE, PROBES
from dcr_lite.run.report import markdown_table

WIDTH = 80  # of a terminal, in which models stand side by side as far as they fit
# Columns: the longest names of a probe and of an encoding, and a cell beside each: "-0.05 -12*", "112 [-25, 250]",
# "0.00 (0.00, 0.00)".
_J_COLUMNS, _PERCENT_COLUMNS, _READ_COLUMNS = (17, 10), (17, 14), (12, 17)
NUMBERS = (*LABELS, "broken", "j", "change", "kept", "opening", "states")

PAGE = """# Probes

How much each model still refuses, and still tells apart, when it is probed. docs/probing.md says
what each probe does. {counts}.{seeds}

## J

The refusal rate on toxic minus that on seemingly toxic prompts; behind it its change against the
same model without a probe, in points (hundredths), with a star where the 95 % interval of the
change excludes 0.

{j_tables}
{notes}
![J under every probe](probes.png)

## What is kept of it

J under the probe as a share of the same model's J without one, in percent, with 95 % intervals; a
dash where J without a probe is not above 0 by its interval.

{kept_tables}

## Rates

Answers that refuse, in percent, with 95 % intervals, and J in points. Answers that do not refuse
are "not refused": whether they help is not judged. Broken: of the answers to both kinds, in
percent, the empty and the incoherent ones.

{rate_tables}
{plain}
## Where it is lost

How well both kinds are told apart, in points of AUROC (50 is chance): by the states at layer L from
which the answer goes on, read as training pairs were before the probe, and by the log-odds of going
on with a refusal. Where the states stay and the opening falls, the model still knows and does not
act on it.

{seen_tables}
{encodings}"""
PLAIN = """
Of plain prompts, asked alike as a control, those that are refused, in percent: where they rise as
the others do, the model refuses the wording, and not what is asked.

{table}
"""
ENCODINGS = """
## Were the encodings read?

Of plain prompts, encoded alike, the share whose answers take up a word that the encoding hides; in
parentheses the same of the answers to the plain text, and of answers held against another prompt.
Where the first number is near the last, the model has not read the prompts, and its rates under
that encoding say nothing.

{table}
"""


def measured_rows(parts: Sequence[Part]) -> list[Row]:
    """One row for each model and probe: the fields of ``rows_of``, and model, method, model_title, seed, note, facts,
    seconds. A model without a measurement without a probe has none. The title of a method that does not apply to the
    model, with some seed, says that."""
    usual = {part["model"]: part["verdicts"] for part in parts if part["probe"] == NONE}
    methods = marked([{"method": part["method"], "applies": applies(part["note"])} for part in parts])
    rows = []
    for part in parts:
        if part["model"] not in usual:
            continue
        about = {name: part[name] for name in ("model", "method", "seed", "note", "facts", "seconds")}
        for row in rows_of(PROBES[part["probe"]], part["verdicts"], usual[part["model"]]):
            rows.append({**about, "model_title": methods[part["method"]].title, **row})
    return rows


def over_seeds(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry for each method and probe: {method, model_title, probe, title, family, seeds, numbers}, each of NUMBERS
    that all its seeds have as ``mean_and_interval``: over seeds, or of a single one over prompts. Methods are in the
    order of a comparison."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["probe"]), []).append(row)
    order = list(METHODS)
    entries = []
    for (method, probe), group in sorted(groups.items(), key=lambda item: order.index(item[0][0])):
        values = {name: _values(group, name) for name in NUMBERS}
        numbers = {name: mean_and_interval(*found) for name, found in values.items() if None not in found[0]}
        about = {name: group[0][name] for name in ("model_title", "title", "family")}
        seeds = [row["seed"] for row in group]
        entries.append({"method": method, "probe": probe, **about, "seeds": seeds, "numbers": numbers})
    return entries


def _values(group: Sequence[Row], name: str) -> tuple[list[Any], list[float] | None]:
    """A number of every seed, None where it has none, and its interval over the first one's prompts."""
    if name in LABELS:  # plain prompts are not asked under every probe
        rates = [row["refused"].get(name, {"rate": None, "ci95": None}) for row in group]
        return [rate["rate"] for rate in rates], rates[0]["ci95"]
    return [row[name] for row in group], group[0].get(f"{name}_ci95")


def write_report(parts: Sequence[Part], counts: dict[str, int], out: Path) -> None:
    """Write the page, the rows and the picture to ``out``. counts: of the prompts, by label."""
    rows = measured_rows(parts)
    entries = over_seeds(rows)
    draw_probes(entries, out / "probes.png")
    write_json({"prompts": counts, "rows": rows, "over_seeds": entries}, out / "probes.json")
    write_text(out / "probes.md", page(entries, rows, counts))


def page(entries: Sequence[dict[str, Any]], rows: Sequence[Row], counts: dict[str, int]) -> str:
    """probes.md."""
    methods = list(dict.fromkeys(entry["method"] for entry in entries))
    return PAGE.format(
        counts=", ".join(f"{n} {LABEL_TITLES[label]}" for label, n in counts.items() if n) + " prompts",
        seeds=_seeds(entries),
        j_tables=_side_by_side(entries, _j_cell, _J_COLUMNS),
        notes=notes_section(notes(list({row["model"]: row for row in rows}.values()))),
        kept_tables=_kept(entries, rows),
        rate_tables="\n\n".join(_rate_table(entries, method) for method in methods),
        plain=_plain(entries),
        seen_tables="\n\n".join(_seen_table(entries, method) for method in methods),
        encodings=_encodings(rows),
    )


def _seeds(entries: Sequence[dict[str, Any]]) -> str:
    """Over which seeds means and intervals are, and where they are over fewer; empty with a single seed."""
    seeds = sorted({seed for entry in entries for seed in entry["seeds"] if seed is not None})
    if len(seeds) < 2:
        return ""
    fewer: dict[str, list[str]] = {}
    for entry in entries:
        if entry["seeds"] != [None] and len(entry["seeds"]) < len(seeds):
            fewer.setdefault(f"{entry['model_title']} over {listed(entry['seeds'])}", []).append(entry["title"])
    said = f" Means over the seeds {listed(seeds)}; intervals are over seeds."
    if fewer:
        where = "; ".join(f"{what} under {listed(probes)}" for what, probes in fewer.items())
        said += "\n\n" + fill(f"Over fewer seeds: {where}. With a single one intervals are over prompts.", 96)
    return said


def _columns(titles: dict[str, str], first: int, cell: int) -> list[list[str]]:
    """The keys of titles, those together that fit beside each other: behind a first column, with cells of a width."""
    groups: list[list[str]] = []
    left = 0
    for key, title in titles.items():
        needed = max(cell, len(title)) + 3
        if needed > left:
            groups.append([])
            left = WIDTH - first - 4
        groups[-1].append(key)
        left -= needed
    return groups


def _title(entries: Sequence[dict[str, Any]], method: str) -> str:
    return next(str(entry["model_title"]) for entry in entries if entry["method"] == method)


def _side_by_side(
    entries: Sequence[dict[str, Any]], cell: Callable[[dict[str, Any] | None], str], widths: tuple[int, int]
) -> str:
    """Tables with a row for each probe and a column for each method, as many as fit."""
    found = {(entry["method"], entry["probe"]): entry for entry in entries}
    probes = {entry["probe"]: entry["title"] for entry in entries}
    titles = {entry["method"]: str(entry["model_title"]) for entry in entries}
    tables = []
    for some in _columns(titles, *widths):
        rows = [[probes[p], *(cell(found.get((method, p))) for method in some)] for p in sorted(probes, key=_place)]
        tables.append(markdown_table(["probe", *(titles[method] for method in some)], rows))
    return "\n\n".join(tables)


def _number_cell(name: str) -> Callable[[dict[str, Any] | None], str]:
    """What a cell shows of an entry: a number in percent, a dash where there is none."""
    return lambda entry: _percent(entry["numbers"][name]) if entry and name in entry["numbers"] else "-"


def _kept(entries: Sequence[dict[str, Any]], rows: Sequence[Row]) -> str:
    """What each method keeps of its J, and how that of DCR compares."""
    probed = [entry for entry in entries if entry["probe"] != NONE]
    tables = _side_by_side(probed, _number_cell("kept"), _PERCENT_COLUMNS)
    return "\n\n".join(filter(None, (tables, fill(kept_sentence(over_seeds(in_common(rows))), 96))))


def _plain(entries: Sequence[dict[str, Any]]) -> str:
    """How many plain prompts are refused under the probes that ask them; empty where none does."""
    asked = [entry for entry in entries if LABELS[2] in entry["numbers"]]
    if all(entry["probe"] == NONE for entry in asked):
        return ""
    return PLAIN.format(table=_side_by_side(asked, _number_cell(LABELS[2]), _PERCENT_COLUMNS))


def _place(name: str) -> tuple[int, str]:
    """Where a row stands: sampling has two."""
    names = list(PROBES)
    return names.index(name if name in PROBES else name.rpartition("_")[0]), name


def _j_cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    j, change = (entry["numbers"][name] for name in ("j", "change"))
    if entry["probe"] == NONE:
        return _two_places(j["mean"])
    low, high = change["ci95"] or (0.0, 0.0)
    return f"{_two_places(j['mean'])} {round(100 * change['mean']):+d}{'*' if low > 0 or high < 0 else ''}"


def _two_places(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # not -0.00


def _rate_table(entries: Sequence[dict[str, Any]], method: str) -> str:
    """The rates of one method, a row for each probe."""
    cells = []
    for entry in _of_method(entries, method):
        numbers = entry["numbers"]
        rates = [_percent(numbers[name]) for name in (*KINDS, "j")]
        cells.append([entry["title"], *rates, str(round(100 * numbers["broken"]["mean"]))])
    head = [_title(entries, method), *(LABEL_TITLES[label] for label in KINDS), "J", "broken"]
    return markdown_table(head, cells)


def _of_method(entries: Sequence[dict[str, Any]], method: str) -> list[dict[str, Any]]:
    return sorted((entry for entry in entries if entry["method"] == method), key=lambda entry: _place(entry["probe"]))


def _seen_table(entries: Sequence[dict[str, Any]], method: str) -> str:
    """How well a method tells the kinds apart before it answers, a row for each probe; one for all samples of an
    answer, which begin alike."""
    own = {entry["title"].removesuffix(" mean"): entry for entry in _of_method(entries, method)}
    cells = [
        [title, *(_percent(entry["numbers"][name]) for name in SEEN)]
        for title, entry in own.items()
        if not entry["probe"].endswith("_any")
    ]
    return markdown_table([_title(entries, method), "states at L", "opening"], cells)


def _percent(number: dict[str, Any]) -> str:
    """A mean with its interval, where it has one, in hundredths."""
    mean = str(round(100 * number["mean"]))
    if number["ci95"] is None:
        return mean
    low, high = (round(100 * end) for end in number["ci95"])
    return f"{mean} [{low}, {high}]"


def _encodings(rows: Sequence[Row]) -> str:
    """What became of encoded plain prompts; empty where there were none."""
    having = [row for row in rows if "read" in row["facts"]]
    if not having:
        return ""
    found = {(row["model"], row["probe"]): row for row in having}
    titles = {row["model"]: f"{row['model_title']}{_of_seed(row, rows)}" for row in having}
    probes = dict.fromkeys(row["probe"] for row in having)
    tables = []
    for some in _columns(titles, *_READ_COLUMNS):
        cells = [[PROBES[probe].title, *(_read_cell(found.get((model, probe))) for model in some)] for probe in probes]
        tables.append(markdown_table(["encoding", *(titles[model] for model in some)], cells))
    return ENCODINGS.format(table="\n\n".join(tables))


def _of_seed(row: Row, rows: Sequence[Row]) -> str:
    """The seed of a model, where there are several."""
    several = len({other["seed"] for other in rows if other["seed"] is not None}) > 1
    return f", seed {row['seed']}" if several and row["seed"] is not None else ""


def _read_cell(row: Row | None) -> str:
    if row is None:
        return "-"
    facts = row["facts"]
    return f"{facts['read']:.2f} ({facts['read_as_plain_text']:.2f}, {facts['read_by_chance']:.2f})"
