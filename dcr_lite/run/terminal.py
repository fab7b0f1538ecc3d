"""The terminal during a run: the plan, a progress bar for each stage, the result, and what to do next. Where it is a
file, lines that say how far a stage is, which ``progress_in`` reads back, as ``estimate_in`` does the plan's time."""

import re
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import list2cmdline
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

from dcr_lite.names import LABEL_TITLES, LABELS, MODEL_TITLES, ONLY_TURNED

console = Console(highlight=False)
LOGGED_PARTS = 10  # lines of a stage where the output is a file and a bar cannot move
LOGGED = re.compile(r"^(.+): (\d+)/(\d+) (?:.*  left (\d+) s$)?", re.MULTILINE)
ESTIMATE = "estimated time"  # the part of a plan that says it
PLANNED = re.compile(rf"^{ESTIMATE} +about (\d+) min", re.MULTILINE)


def show_plan(rows: dict[str, str]) -> None:
    """Print the plan of a run, a line for each part."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(f"[bold]{name}[/bold]", escape(value))
    console.print(table)
    console.print()


class ProgressBar:
    """The progress of a stage: steps done, and the latest facts behind the bar."""

    def __init__(self, title: str, total: int, bar: Progress | None):
        self.title, self.total, self.bar = title, total, bar
        self.done = self._begun_at = 0
        self._began = time.monotonic()
        self.facts: dict[str, str] = {}
        self.task = bar.add_task(title, total=total, facts="") if bar else None

    def advance(self, steps: int) -> None:
        """Count further steps as done."""
        before = self.done * LOGGED_PARTS // self.total
        self.done += steps
        if self.bar and self.task is not None:
            self.bar.update(self.task, completed=self.done, facts=self._facts())
        elif self.done * LOGGED_PARTS // self.total > before:
            print(f"{self.title}: {self.done}/{self.total}  {self._facts()}{self._left()}", flush=True)

    def start_at(self, steps: int) -> None:
        """Count ``steps`` as done before: the stage continues from a checkpoint."""
        self.done = self._begun_at = steps
        self._began = time.monotonic()

    def skip(self, steps: int) -> None:
        """Count further ``steps`` as done before: they say nothing of the rate."""
        if steps:
            self.start_at(self.done + steps)

    def row(self, row: dict[str, Any]) -> None:
        """Show a row of metrics, as the training loop reports it."""
        if "loss" in row:
            if row["step"] > self.done + 1:
                self.start_at(row["step"] - 1)
            self.facts["loss"] = f"{row['loss']:.3f}"
            self.advance(1)
        if "development_auroc" in row:
            self.facts["unseen pairs AUROC"] = f"{row['development_auroc']:.3f}"
        if "apart" in row:
            self.facts["unseen pairs apart"] = f"{row['apart']:.2f}"
        for label in ("toxic", "seemingly_toxic"):
            if label in row:
                self.facts[f"refuses {label.replace('_', ' ')}"] = f"{row[label]:.2f}"

    def _facts(self) -> str:
        return "  ".join(f"{name} {value}" for name, value in self.facts.items())

    def _left(self) -> str:
        """The time left, at the rate so far."""
        a_step = (time.monotonic() - self._began) / (self.done - self._begun_at)
        return f"  left {a_step * (self.total - self.done):.0f} s" if self.done < self.total else ""


@dataclass(frozen=True)
class StageProgress:
    """How far a stage is, by the last line on it. left: seconds, as they were then; 0 where it is done."""

    title: str
    done: int
    total: int
    left: int


def progress_in(log: str) -> list[StageProgress]:
    """What the output of a run says of its stages so far, in their order."""
    stages: list[StageProgress] = []
    for title, done, total, left in LOGGED.findall(log):
        now = StageProgress(title, int(done), int(total), int(left or 0))
        if stages and stages[-1].title == title and stages[-1].done <= now.done:
            stages.pop()
        stages.append(now)
    return stages


def estimate_in(log: str) -> int | None:
    """Minutes that the whole run takes by the plan in its output; None as long as there is no plan."""
    found = PLANNED.search(log)
    return int(found[1]) if found else None


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[ProgressBar]:
    """A progress bar with time spent and time left; a few plain lines where the output is no terminal."""
    if not console.is_terminal:
        yield ProgressBar(title, total, None)
        return
    # In a narrow terminal the facts are cut, never the time that is left.
    narrow = Column(no_wrap=True, overflow="ellipsis")
    columns = (
        TextColumn("[bold]{task.description}", table_column=Column(min_width=21)),
        BarColumn(12),
        MofNCompleteColumn(table_column=Column(min_width=len(f"{total}/{total}"))),
        TimeElapsedColumn(table_column=Column(min_width=7)),
        TextColumn("left", table_column=Column(min_width=4)),
        TimeRemainingColumn(table_column=Column(min_width=7)),
        TextColumn("{task.fields[facts]}", table_column=narrow),
    )
    with Progress(*columns, console=console) as bar:
        yield ProgressBar(title, total, bar)


def quoted(word: object) -> str:
    """A word of a command to type: cmd.exe knows double quotes alone, and no backslash needs any."""
    return list2cmdline([str(word)]) if sys.platform == "win32" else shlex.quote(str(word))


def show_line(text: str) -> None:
    """Print a sentence and an empty line."""
    console.print(f"{text}\n", markup=False)


def show_file(path: Path, what: str) -> None:
    """Print a path, and what is there. Never wrapped and never read as markup: a path is there to be copied."""
    console.print(f"  {path!s:<36} {what}", markup=False, soft_wrap=True)


def show_page(page: Path) -> None:
    """Print a page of Markdown and its path; in place of each picture the path of its file."""
    text = re.sub(r"!\[.*?\]\((.*?)\)", lambda shown: f"`{page.parent / shown[1]}`", page.read_text(encoding="utf-8"))
    console.print(Markdown(text))
    console.print(f"\n  {page}", markup=False, soft_wrap=True)


def show_end(report: dict[str, Any], folder: Path) -> None:
    """Print the results and the files of a run, and what to do next."""
    show_results(report, folder)
    console.print("\nNext: look at report.md; try --seed 1 --run another/folder; --help lists every setting.")


def show_results(report: dict[str, Any], folder: Path) -> None:
    """Print the results, one row a model, and the files of the run."""
    table = Table(title="Refusals on held-out prompts (95 % interval)", title_justify="left", title_style="bold")
    table.add_column("")
    for column in ("toxic \N{UPWARDS ARROW}", "seemingly toxic \N{DOWNWARDS ARROW}", "plain \N{DOWNWARDS ARROW}",
                   "kept \N{UPWARDS ARROW}", "J \N{UPWARDS ARROW}", "AUROC \N{UPWARDS ARROW}"):  # fmt: skip
        table.add_column(column, justify="right")
    for method, result in report["methods"].items():
        rates = [result["overall"].get(label) for label in LABEL_TITLES]
        kept = result.get("kept", {}).get(LABELS[1], {}).get("kept")
        numbers = [kept, *(result["discernment"][key] for key in ("j", "auroc"))]
        table.add_row(MODEL_TITLES[method], *map(_rate, rates), *("-" if x is None else f"{x:.2f}" for x in numbers))
    console.print()
    console.print(table)
    if report["only_turned"]:
        console.print(ONLY_TURNED)
    console.print("kept: of the probability of the stock model's own answers to seemingly toxic prompts")
    seconds, memory = report["seconds"], report["peak_memory_bytes"]
    console.print(f"{seconds['total'] / 60:.1f} min in all, peak memory {memory / 1e9:.1f} GB\n")
    for name, what in (
        ("report.md", "the numbers with pictures"),
        ("adapter", "the DCR adapter with tokenizer and model card"),
        ("answers", "the answers of each model (private: contains answers to toxic prompts)"),
        ("report.json", "the same numbers for programs"),
    ):
        show_file(folder / name, what)


def _rate(rate: dict[str, Any] | None) -> str:
    if rate is None:
        return "-"
    low, high = rate["ci95"]
    return f"{rate['refusal_rate']:.2f} [dim]{low:.2f}-{high:.2f}[/dim]"
