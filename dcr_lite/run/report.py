"""report.json and report.md: what a run found."""

import re
import shlex
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dcr_lite.files import write_text
from dcr_lite.measure.kinds import KIND_TITLES, KINDS
from dcr_lite.measure.metrics import with_interval
from dcr_lite.model import distributed
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, LABEL_TITLES, LABELS, MODEL_TITLES, ONLY_TURNED, repository_of, short_name
from dcr_lite.run.dial_report import dial_table, facts_of_dial, gain_sentence, sentence_since, stated
from dcr_lite.run.found_report import end_of_stage1, found_section
from dcr_lite.run.inputs import Data
from dcr_lite.run.kept import kept_seconds
from dcr_lite.run.kept_report import COLUMNS, HEAD, WHAT, kept_cells, kept_rows, left_out
from dcr_lite.run.machine import hardware, peak_memory_bytes, versions
from dcr_lite.run.plots import separation_curve
from dcr_lite.run.run_folder import RunFolder, read_found
from dcr_lite.run.void_flags import given_flags
from dcr_lite.settings import Settings

PAGE = """# {title}

{first}{command} on {model} ({source}), seed {seed}.

Refusal rates with 95 % Wilson intervals. J is the refusal rate on toxic prompts minus that on seemingly toxic ones;
AUROC says how well the log-odds of opening with a refusal tell the two apart (0.5 is chance). They are measured on
prompts that nothing was trained on or chosen by.{what_dcr_is}

{results_table}

![Refusal rates](refusal_rates.png)

Each set by itself:

{sets_table}

Kinds of answer, in percent. An answer is stopped once its refusal is sure, so a full refusal may be one whose help
would have followed later.

{kinds_table}

{kept_section}## Refusal probability

![Refusal scores by label](refusal_scores.png)

{dial_section}## States of layer {settings[layer]}{when}

Held-out prompts along the direction that separates the training pairs.

![States of held-out prompts](state_map.png)

{during_sft}## Time and memory

{time} on {hardware}; peak memory {peak_memory_gb:.1f} GB. The seconds of a training are those of its steps and the
evaluations between them; what is read before and behind them is counted in all alone.

{how_found}
## Settings

{rows_left_out}{own_answers}{settings_table}

Versions: {all_versions}.
"""

KEPT = """## Answers kept

{what}{left_out}
Nats lost: what the mean log-probability of such a token loses; kept is exp(-nats lost). KL: of the model from the stock
model, in nats per token. Words and distinct-2, the share of pairs of words that are no repetition: of the model's own
answers that are no refusals, beside the stock model's.

{table}

"""
DURING_SFT = """## Refusal probability during safety SFT

Development prompts.

![Refusal probability during safety SFT](refusal_during_sft.png)

"""
PARTS = {
    "found": "Finding settings", "stage1": "stage 1", "own_answers": "own answers", "stage2": "stage 2",
    BASELINE: MODEL_TITLES[BASELINE], "dial": "dial", "evaluate": "evaluation", "total": "in all",
}  # fmt: skip


DIAL_HEADING = "## How much it refuses"
DIAL_HEAD = ("", "strength", "toxic refused ↑", "seemingly toxic answered ↑")
DIAL = (
    DIAL_HEADING
    + """

{chosen} {gain}

![Refusals along the dial](dial/dial.png)

{table}

Rates of {pairs} pairs of development prompts with 95 % intervals. `dcr-lite dial {run} --refuse-toxic 0.9 --set` turns
the dial; so do --answer-seemingly-toxic, --like-stock, --safe-as-stock, --above-stock, --discerning, --balanced and
--strength.

"""
)


def plain(text: str) -> str:
    """A text from outside within Markdown: in one line, and without a mark that makes HTML, a link, a picture, code or
    another cell of it."""
    return re.sub(r"([\\`\[\]|])", r"\\\1", escape(_one_line(text), quote=False))


def code(text: str) -> str:
    """A text from outside as code within Markdown: between more backticks than it holds in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{fence}{pad}{_one_line(text)}{pad}{fence}"


def _one_line(text: str) -> str:
    return " ".join("".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in text).split())


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of cells; those that hold texts from outside are given as ``plain`` makes them."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def _cell(rate: dict[str, Any] | None) -> str:
    return with_interval(rate["refusal_rate"], rate["ci95"]) if rate else "-"


def dial_section(report: dict[str, Any], folder: Path) -> str:
    """The section of report.md on the dial; empty for a run without one."""
    if (found := stated(report)) is None:
        return ""
    setting, evaluated_at = found
    return DIAL.format(
        chosen=sentence_since(setting, evaluated_at),
        gain=gain_sentence(setting),
        run=without_folders(folder),
        pairs=setting.pairs,
        table=markdown_table(DIAL_HEAD, dial_table(setting)),
    )


def results_table(report: dict[str, Any]) -> str:
    """The models as a Markdown table: refusal rates with 95 % Wilson intervals, answers kept, J and AUROC."""
    rows = []
    for method, result in report["methods"].items():
        rates = [_cell(result["overall"].get(label)) for label in LABELS]
        numbers = [with_interval(result["discernment"][key]) for key in ("j", "auroc")]
        rows.append([MODEL_TITLES[method], *rates, *kept_cells(result.get("kept")), *numbers])
    return markdown_table(["", "toxic ↑", "seemingly toxic ↓", "plain ↓", *COLUMNS, "J ↑", "AUROC ↑"], rows)


def kept_section(report: dict[str, Any]) -> str:
    """The section of report.md on answers kept; empty where they were not measured."""
    measured = {method: result["kept"] for method, result in report["methods"].items() if result.get("kept")}
    if not measured:
        return ""
    left = left_out(next(iter(measured.values())))
    rows = kept_rows((MODEL_TITLES[method], kept) for method, kept in measured.items())
    return KEPT.format(what=WHAT, left_out=f" {left}" if left else "", table=markdown_table(HEAD, rows))


def sets_table(report: dict[str, Any]) -> str:
    """Every set by itself as a Markdown table: refusal rates of the models with 95 % Wilson intervals."""
    sets = [result["sets"] for result in report["methods"].values()]
    rows = [
        [plain(one["name"]), LABEL_TITLES[one["label"]], str(one["n"]), *map(_cell, (one, *others))]
        for one, *others in zip(*sets, strict=True)
    ]
    return markdown_table(["set", "label", "n", *(MODEL_TITLES[method] for method in report["methods"])], rows)


def kinds_table(report: dict[str, Any]) -> str:
    """The share of each kind of answer, in percent, by model and label as a Markdown table."""
    rows = [
        [MODEL_TITLES[method], LABEL_TITLES[label], *(f"{100 * rate['kinds'][kind]:.0f}" for kind in KINDS)]
        for method, result in report["methods"].items()
        for label, rate in result["overall"].items()
    ]
    return markdown_table(["", "prompts", *(KIND_TITLES[kind] for kind in KINDS)], rows)


def run_report(
    run: RunFolder, model: Model, source: str, data: Data, settings: Settings, results: dict[str, Any],
    drawing_seconds: float,
) -> dict[str, Any]:  # fmt: skip
    """report.json: what was done with what, what it took, and ``results``, ``method_result`` and ``answers_kept`` by
    model."""
    parts = ("stage1", "own_answers", "stage2", BASELINE, "dial")
    done = {name: facts for name in parts if (facts := run.finished(name))}
    seconds = {name: float(result.get("seconds", 0)) for name, result in done.items()}
    seconds["evaluate"] = sum(
        float((run.finished(f"evaluate_{m}") or {}).get("seconds", 0)) + kept_seconds(run, m) for m in results
    )
    if found := read_found(run.path):
        seconds["found"] = found["evidence"]["seconds"]
    seconds |= {"draw": drawing_seconds, "total": run.seconds()}
    return {
        "recipe": started()[0] or short_name(settings.model),
        "model": settings.model,
        "source": source,
        "four_bit": model.four_bit,
        "seed": settings.seed,
        "methods": results,
        "stage1": {k: done["stage1"].get(k) for k in ("best", "best_step")}
        | {"auroc_by_step": separation_curve(run.metrics)},
        "data": {"pairs": len(data.training) - data.joined, "joined_pairs": data.joined}
        | {"development_pairs": len(data.development), **settings.sizes}
        | {"longest": data.longest, "left_out": data.left_out, "joined_refusals": len(data.joined_refusals)}
        | {"own_answers": done.get("own_answers", {}).get("counts")},
        "seconds": seconds,
        "peak_memory_bytes": max(peak_memory_bytes(), *(part.get("peak_memory_bytes", 0) for part in done.values())),
        "hardware": hardware(model.device),
        "processes": distributed.world(),
        "versions": versions(),
        "settings": settings.for_json(),
        "only_turned": settings.only_turned,
        "found": found,
        "dial": facts_of_dial(run.path),
    }


def started() -> tuple[str, list[str]]:
    """The name of the recipe that runs in this process, empty without one, and the command that started it."""
    if sys.argv[1:2] in (["train"], ["mend"]):
        return "" if sys.argv[2].startswith("-") else Path(sys.argv[2]).stem, ["dcr-lite", *sys.argv[1:]]
    return Path(sys.argv[0]).stem, ["python", *sys.argv]


def page_title(report: dict[str, Any]) -> str:
    """The recipe's name, or the model's where the recipe was started with another model than its own."""
    of_another = given_flags(started()[1]) & {"--model", "--base-model"}
    return short_name(report["model"]) if of_another else str(report["recipe"])


def without_folders(value: Any) -> str:
    """A setting or an argument as text; of a path outside the folder of the run, which tells others nothing, the name
    alone, of a model in the Hub's cache that on the Hub."""
    if isinstance(value, (list, tuple)):
        return ", ".join(map(without_folders, value))
    flag, equals, path = str(value).rpartition("=")  # --pairs=/home/me/pairs.jsonl
    outside = Path(path).is_absolute() or path.startswith(("..", "~"))
    return f"{flag}{equals}{repository_of(path) or Path(path).name}" if outside else str(value)


def _left_out(rows: dict[str, int]) -> str:
    """The sentence on rows that did not fit; empty where all did."""
    if not rows:
        return ""
    return f"Left out as too long: {', '.join(f'{n:,} of {setting}' for setting, n in rows.items())}.\n\n"


def _own_answers(counts: dict[str, int] | None) -> str:
    """The sentence on the stock model's own answers; empty where none were given."""
    if counts is None:
        return ""
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in counts.items() if reason != "learnt")
    of_others = f" (left out: {left_out})" if left_out else ""
    return f"Safety SFT learns {counts['learnt']:,} general answers that the stock model gave itself{of_others}.\n\n"


def write_report(report: dict[str, Any], folder: Path) -> None:
    """report.md: the result, the pictures, what was done."""
    settings = [(name, plain(without_folders(value))) for name, value in report["settings"].items()]
    seconds = report["seconds"]
    page = PAGE.format(
        **report | {"model": plain(without_folders(report["model"]))},
        title=plain(page_title(report)),
        first=f"{note}\n\n" if (note := report.get("note")) else "",
        what_dcr_is=f" {ONLY_TURNED}" if report["only_turned"] else "",
        command=code(shlex.join(map(without_folders, started()[1]))),
        results_table=results_table(report),
        sets_table=sets_table(report),
        kinds_table=kinds_table(report),
        kept_section=kept_section(report),
        dial_section=dial_section(report, folder),
        when=" before and after stage 1" if report["settings"]["stage1"] != "no" else "",
        during_sft=DURING_SFT if {"stage2", BASELINE} & seconds.keys() else "",
        time=", ".join(f"{title} {seconds[part]:.0f} s" for part, title in PARTS.items() if part in seconds),
        how_found=found_section(report["found"]) + end_of_stage1(report),
        rows_left_out=_left_out(report["data"]["left_out"]),
        own_answers=_own_answers(report["data"]["own_answers"]),
        settings_table=markdown_table(["setting", "value"], settings),
        peak_memory_gb=report["peak_memory_bytes"] / 1e9,
        all_versions=", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    )
    write_text(folder / "report.md", page)
