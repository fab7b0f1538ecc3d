"""What the benchmarks share: two sides taken in turns in one process, medians and spread, the peak memory of each side
in a fresh process, the check of equal work, and one form of results.

A side is a function ``build(case, precision)`` that loads what it needs and returns ``step``; ``step(i)`` does the
i-th piece of work and returns what it computed as named tensors or numbers, for the check of equal work. Sides are
defined at the top level of their script, since a fresh process finds them by name.
"""

import gc
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from dcr_lite.data.sources import SMOLLM2
from dcr_lite.files import write_json, write_text
from dcr_lite.run.machine import forget_peak_memory, hardware, peak_memory_bytes
from dcr_lite.run.opening import Machine, machine
from dcr_lite.run.report import markdown_table
from dcr_lite.settings import Device, ModelSettings, Precision

EQUAL = 1e-4  # largest relative difference of losses and gradients in float32 that counts as the same work
# Imported once by the process that the memory measurements are forked from.
PRELOADED = ["torch", "transformers", "peft", "dcr_lite.run.steps"]
Outcome = dict[str, Any]  # named tensors and numbers
Step = Callable[[int], Outcome]
Build = Callable[[Any, torch.dtype], Step]


@dataclass
class Case:
    """The settings of every benchmark."""

    model: str = SMOLLM2
    """A folder, or a name on the Hugging Face Hub."""
    device: Device = "auto"
    """auto: CUDA where there is a GPU, else the CPU. mps: the GPU of a Mac."""
    precision: Precision = "auto"
    """For the timings; equal work is always checked in float32."""
    repetitions: int = 5
    """Turns of each side; medians are taken over them."""
    seed: int = 0
    """Of the adapter's weights and of which rows are drawn."""
    json: Path | None = None
    """File for the results as JSON."""
    markdown: Path | None = None
    """File for the results as a Markdown table."""

    @property
    def machine(self) -> Machine:
        return machine(ModelSettings(model=self.model, device=self.device, precision=self.precision))

    @property
    def where(self) -> str:
        return self.machine.device

    @property
    def timed_precision(self) -> torch.dtype:
        return self.machine.precision


@dataclass(frozen=True)
class Result:
    """One comparison. ours, theirs: medians, in ``unit``. ratio: ours / theirs, with the smallest and the largest of
    the single turns. equal_to: the largest relative difference between what both sides computed, in float32."""

    name: str
    ours: float
    theirs: float
    unit: str
    ratio: float
    ratio_min: float
    ratio_max: float
    equal_to: float

    @classmethod
    def of(cls, name: str, ours: list[float], theirs: list[float], unit: str, equal_to: float) -> "Result":
        """From as many turns of ours as of theirs, taken alternately."""
        ratios = [_ratio(a, b) for a, b in zip(ours, theirs, strict=True)]
        a, b = median(ours), median(theirs)
        return cls(name, a, b, unit, _ratio(a, b), min(ratios), max(ratios), equal_to)


def _ratio(a: float, b: float) -> float:
    return a / b if b else float(a == b)  # nothing against nothing is the same


# --- time -------------------------------------------------------------------------------------------------------------


def seconds_of(work: Callable[[], Any], device: str) -> float:
    """Wall time of one piece of work, finished on the device as well."""
    if device != "cpu":
        torch.accelerator.synchronize()
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - started


def in_turns(steps: dict[str, Callable[[int], Any]], repetitions: int, device: str) -> dict[str, list[float]]:
    """Seconds of every turn of every side. Step 0 warms up; then the sides take turns at steps 1, 2, ..., in an order
    that is reversed each time, so that a machine that slows down does so for all of them."""
    for step in steps.values():
        step(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(1, repetitions + 1):
        for name in list(steps) if i % 2 else list(steps)[::-1]:
            gc.collect()
            seconds[name].append(seconds_of(lambda step=steps[name], i=i: step(i), device))
    return seconds


def time_sides(builds: dict[str, Build], case: Case) -> dict[str, list[float]]:
    """Seconds of every turn of every side, all of them loaded at once in the timed precision."""
    steps = {name: build(case, case.timed_precision) for name, build in builds.items()}
    return in_turns(steps, case.repetitions, case.where)


def rates(work: float, seconds: list[float]) -> list[float]:
    """Work (prompts, tokens, operations) a second of every turn."""
    return [work / s for s in seconds]


# --- memory -----------------------------------------------------------------------------------------------------------


def _reset_peak() -> int:
    """Starts the measurement of the peak; returns the bytes in use now."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    forget_peak_memory()
    return peak_memory_bytes()


def _measure_memory(build: Build, case: Any, steps: int, threads: int, out: Any) -> None:
    gc.freeze()  # a collection would write to all objects of the fork server, and so copy them
    torch.set_num_threads(threads)
    step = build(case, case.timed_precision)
    before = _reset_peak()
    for i in range(steps):
        step(i)
    out.send((peak_memory_bytes(), before))


def peak_memory(build: Build, case: Case, steps: int = 3) -> tuple[float, float]:
    """(peak, what up to ``steps`` steps add to the loaded model) of one side in a process of its own, in GB."""
    steps = min(steps, case.repetitions + 1)  # the sides prepare so many batches
    # The fork server imports the libraries once and gives every measurement a process that has done nothing else. CUDA,
    # once initialized, does not survive a fork.
    context = multiprocessing.get_context("forkserver" if case.where == "cpu" else "spawn")
    if case.where == "cpu":
        context.set_forkserver_preload(PRELOADED)
    # The fork server imports from where this process does (before Python 3.13 it is not told).
    searched = os.pathsep.join(path for path in sys.path if path)
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_measure_memory, args=(build, case, steps, torch.get_num_threads(), send))
    with patch.dict(os.environ, PYTHONPATH=searched):
        child.start()
    send.close()  # so that a child that fails ends the wait
    try:
        peak, before = receive.recv()
    except EOFError:
        raise RuntimeError(f"{build.__name__} failed in its own process; see above") from None
    finally:
        child.join()
    return peak / 1e9, (peak - before) / 1e9


def memory_results(what: str, ours: Build, theirs: Build, case: Case, equal_to: float, steps: int = 3) -> list[Result]:
    """Peak memory of both sides, in turns, from three fresh processes of each at most, since it hardly varies.
    steps: in each process; one where a step is a whole training or a whole evaluation."""
    turns = range(min(3, case.repetitions))
    peaks = [(peak_memory(ours, case, steps), peak_memory(theirs, case, steps)) for _ in turns]
    return memory_rows(what, *zip(*peaks, strict=True), equal_to)


def memory_rows(what: str, ours: Any, theirs: Any, equal_to: float) -> list[Result]:
    """Results of two sides, each the ``peak_memory`` of every turn."""
    return [
        Result.of(f"{what}: {name}", [turn[k] for turn in ours], [turn[k] for turn in theirs], "GB", equal_to)
        for k, name in enumerate(("peak memory", "memory beyond the loaded model"))
    ]


# --- equal work -------------------------------------------------------------------------------------------------------


def difference(ours: Outcome, theirs: Outcome) -> float:
    """The largest difference of what both sides computed, relative to each quantity's norm."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"the sides do not compute the same: {sorted(ours.keys() ^ theirs.keys())[:4]}")
    differences = [0.0]
    for name, value in ours.items():
        a, b = (torch.as_tensor(x, dtype=torch.float64).cpu() for x in (value, theirs[name]))
        differences.append(((a - b).norm() / b.norm().clamp_min(1e-12)).item())
    return torch.tensor(differences, dtype=torch.float64).max().item()  # NaN stays NaN, as in Python's max it does not


def require_equal(ours: Build, theirs: Build, case: Case) -> float:
    """Step 0 of both sides in float32: how far they differ. Raises RuntimeError beyond EQUAL."""
    found = difference(ours(case, torch.float32)(0), theirs(case, torch.float32)(0))
    if not found <= EQUAL:
        raise RuntimeError(f"{ours.__name__} and {theirs.__name__} differ by {found:.1e}: this is not the same work")
    return found


# --- out --------------------------------------------------------------------------------------------------------------


def table(results: list[Result], ours: str, theirs: str) -> str:
    """Results as a Markdown table."""
    rows = []
    for r in results:
        spread = f"{r.ratio_min:.2f}-{r.ratio_max:.2f}"
        rows.append([r.name, f"{r.ours:.4g}", f"{r.theirs:.4g}", r.unit, f"{r.ratio:.2f}", spread, f"{r.equal_to:.0e}"])
    return markdown_table(["", ours, theirs, "unit", "ratio", "smallest-largest", "equal to"], rows)


def finish(
    case: Case, results: list[Result], ours: str = "ours", theirs: str = "theirs", more: str = ""
) -> list[Result]:
    """Prints the table, writes the files that were asked for, and returns the results."""
    versions = f"{str(case.timed_precision).removeprefix('torch.')}, torch {torch.__version__}"
    parts = (table(results, ours, theirs), more, f"{hardware(case.where)}, {versions}.")
    text = "\n\n".join(part for part in parts if part)
    print(f"\n{text}", flush=True)
    if case.json:
        write_json([asdict(r) for r in results], case.json)
    if case.markdown:
        write_text(case.markdown, text + "\n")
    return results
