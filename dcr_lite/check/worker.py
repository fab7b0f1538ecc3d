"""Runs the parts of the check in a process of their own, each within its time: one that hangs, is killed for memory or
crashes in a driver becomes a finding, and the next part goes on in a fresh process. This one imports nothing heavy."""

import importlib
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from dcr_lite.check.finding import Finding, Task
from dcr_lite.errors import MORE_MEMORY, UserError, first_line, out_of_memory
from dcr_lite.settings import Settings

Parts = dict[str, tuple[str, float]]
Findings = dict[str, Finding]

# The parts in their order: the module of each, and the seconds after which it is ended. Most take a moment; the first
# has the imports in it, and the trial chooses its size so as to take less.
PARTS: Parts = {
    "machine": ("dcr_lite.check.machine", 60.0),
    "four_bit": ("dcr_lite.check.four_bit", 20.0),
    "hub": ("dcr_lite.check.reach", 20.0),
    "memory": ("dcr_lite.check.memory", 20.0),
    "disk": ("dcr_lite.check.disk", 10.0),
    "rows": ("dcr_lite.check.rows", 30.0),
    "trial": ("dcr_lite.check.trial", 100.0),
}
SECONDS = 120.0  # for all parts together; each has half a minute at least
LEAST = 30.0
KILLED = -9  # exit status of a process that the system has ended, where there are signals
MAY_BE_LATE = ("hub", "memory", "trial")  # of which what was found so far is enough


def look(settings: Settings, begin: Callable[[str], None] = lambda part: None, parts: Parts = PARTS) -> Findings:
    """What every part finds, by its name; ``begin`` is called with each name as its part begins."""
    found: Findings = {}
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        while todo := [part for part in parts if part not in found]:
            output = Path(scratch) / "output"
            worker, receive = _start(settings, found, {part: module for part, (module, _) in parts.items()}, output)
            try:
                for part in todo:
                    begin(part)
                    left = max(LEAST, SECONDS - (time.monotonic() - started))
                    found[part] = _one(part, worker, receive, min(parts[part][1], left), output)
                    if found[part].cut_short:
                        break
            finally:
                worker.kill()
                worker.join()
    return found


def _start(settings: Settings, found: Findings, modules: dict[str, str], output: Path) -> tuple[Any, Connection]:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    receive, send = context.Pipe(duplex=False)
    worker = context.Process(target=_work, args=(settings, found, modules, send, output), daemon=True)
    worker.start()
    send.close()  # so that the worker's death ends the wait
    return worker, receive


def _one(part: str, worker: Any, receive: Connection, seconds: float, output: Path) -> Finding:
    """The finding of the part that the worker is at. Where it takes longer or dies, the last that it told, and why."""
    latest, started = Finding(), time.monotonic()
    try:
        while receive.poll(max(0.0, started + seconds - time.monotonic())):
            latest, done = receive.recv()
            if done:
                return latest
    except EOFError:
        worker.join()
        latest.problems.append(_death(part, worker.exitcode, output))
    else:
        late = f"ended after {seconds:.0f} seconds; what it had found by then is shown"
        (latest.notes if part in MAY_BE_LATE else latest.problems).append(late)
    latest.seconds, latest.cut_short = time.monotonic() - started, True
    return latest


def _death(part: str, status: int, output: Path) -> str:
    """Why a worker ended by itself."""
    if status == KILLED:
        return (
            "the system ended it, as it does when memory runs out. Close other programs, or take the recipe of a "
            "smaller model."
        )
    said = output.read_text(encoding="utf-8", errors="replace").strip().splitlines() if output.exists() else []
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    last = f": {said[-1]}" if said else ""
    return f"it crashed ({how}{last}). Reinstall the packages of constraints.txt; a report of this is welcome."


def _work(settings: Settings, found: Findings, modules: dict[str, str], send: Connection, output: Path) -> None:
    """In the worker: the parts one after the other. What libraries print goes to a file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends this process
    with output.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    before: Findings = {}
    for part, module in modules.items():
        if part not in found:
            before[part] = _attempt(module, settings, before, lambda finding: send.send((_shown(finding), False)))
            send.send((_shown(before[part]), True))
        elif found[part].given and not found[part].cut_short:  # in a process that has died since
            before[part] = _attempt(module, settings, before, lambda finding: None)


def _attempt(module: str, settings: Settings, before: Findings, told_parent: Callable[[Finding], None]) -> Finding:
    """The finding of a part, whatever happens in it."""
    told = [Finding()]

    def tell(finding: Finding) -> None:
        told[0] = finding
        told_parent(finding)

    started = time.monotonic()
    try:
        finding: Finding = importlib.import_module(module).look(Task(settings, before, tell))
    except UserError as error:
        finding = told[0]
        finding.problems.append(str(error))
    except Exception as error:  # of a library or of ours: a fact like any other
        finding = told[0]
        said = f"memory runs out. {MORE_MEMORY}" if out_of_memory(error) else first_line(error)
        finding.problems.append(f"{type(error).__name__}: {said}")
    finding.seconds = time.monotonic() - started
    return finding


def _shown(finding: Finding) -> Finding:
    """Without what later parts are given, which the parent would have to import torch to hold."""
    return replace(finding, given=finding.given is not None)
