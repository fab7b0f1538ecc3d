"""The page of dcr-lite check in the terminal: a line or two for each part, the table of the trial, the verdict."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from dcr_lite.check.finding import Finding
from dcr_lite.check.worker import Findings
from dcr_lite.model.memory import TITLES

PARTS = {
    "machine": "machine",
    "four_bit": "4-bit product",
    "hub": "models and data",
    "memory": "memory",
    "disk": "disk",
    "rows": "rows",
    "trial": "trial",
}
BEGINNING = {
    "machine": "looking at the machine",
    "four_bit": "computing a 4-bit product",
    "hub": "asking the Hub",
    "memory": "estimating memory",
    "disk": "looking at the disk",
    "rows": "counting tokens",
    "trial": "trying every stage with random weights, a minute or so",
}


class Progress:
    """What the check is at, on standard error and only in a terminal."""

    def __init__(self) -> None:
        self._status = Console(stderr=True).status("beginning ...")

    def __enter__(self) -> "Progress":
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._status.stop()

    def begin(self, part: str) -> None:
        """Show which part begins."""
        self._status.update(f"{BEGINNING[part]} ...")


def show(report: dict[str, Any], findings: Findings) -> None:
    """Print the page."""
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for column in ("bold", None, None):
        table.add_column(style=column, no_wrap=column == "bold")
    for name, finding in findings.items():
        lines = [escape(line) for line in finding.says]
        lines += [f"[yellow]note:[/yellow] {escape(note)}" for note in finding.notes]
        if name == "trial" and not lines:
            lines = ["three steps of each stage, random weights"] if finding.values else []
        table.add_row(PARTS[name], _mark(finding), "\n".join(lines) or "nothing found")
    console.print(table)
    trial = findings["trial"].values if "trial" in findings else {}
    if trial.get("parts"):
        console.print(Padding(_trial(trial), (1, 0)))
    _verdict(console, report, trial)


def _mark(finding: Finding) -> str:
    if finding.problems:
        return "[red]problem[/red]"
    if not finding.values:
        return "-"
    return "[yellow]cut short[/yellow]" if finding.cut_short else "[green]ok[/green]"


def _trial(values: dict[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "at once", "peak", "estimated", "a step", "whole run"):
        table.add_column(column, justify="right" if column else "left")
    whole = values["whole_run_seconds"]
    for name, part in values["parts"].items():
        is_answering = name == "evaluation"
        table.add_row(
            TITLES[name],
            f"{part['at_once']:,} {'prompts' if is_answering else 'tokens'}",
            f"{part['peak_bytes'] / 1e9:.1f} GB",
            f"{part['estimated_bytes'] / 1e9:.1f} GB",
            "" if is_answering else f"{part['seconds']:.2f} s",
            in_words(whole[name]),
        )
    if list(values["parts"]) == values["of"]:
        table.add_row("[bold]all[/bold]", "", "", "", "", f"[bold]{in_words(whole['total'])}[/bold]")
    return table


def in_words(seconds: float) -> str:
    """A time with the figures that matter."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.{1 if seconds < 600 else 0}f} min"
    return f"{seconds / 3600:.{1 if seconds < 36_000 else 0}f} h"


def _verdict(console: Console, report: dict[str, Any], trial: dict[str, Any]) -> None:
    problems = report["problems"]
    parts = trial.get("parts", {})
    total = trial["whole_run_seconds"]["total"] if parts and list(parts) == trial["of"] else None
    takes = f" A run takes about {in_words(total)}." if total else ""
    if not problems:
        console.print(f"[green]Nothing stands in the way.[/green]{takes}")
        return
    many = "One thing stands" if len(problems) == 1 else f"{len(problems)} things stand"
    console.print(f"[red]{many} in the way:[/red]")
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for i, problem in enumerate(problems):
        table.add_row(f"{i + 1}.", escape(problem))
    console.print(table)
