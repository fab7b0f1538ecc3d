"""What the benchmarks share: two sides taken in turns in one run, medians and spread, peak memory of each side in a
fresh process, proof of equal work, and one form for the results.

A side is a function ``build(case, precision)`` that loads what it needs and returns ``step``; ``step(i)`` does the
i-th piece of work and returns what came of it as named tensors or numbers, for the check of equal work. It stands at
the top of its script, since a fresh process finds it by its name.
"""

import contextlib
import ctypes
import gc
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from transformers.utils import logging

from dcr_lite.data.sources import SMOLLM2, locate
from dcr_lite.method.loop import Loop, Progress
from dcr_lite.model import adapters, fused_layers, loading
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model
from dcr_lite.run.machine import hardware

EQUAL = 1e-4  # largest relative difference of losses and gradients that passes for the same work, in float32
ADAPTER, RANK = "benchmark", 16  # as in the recipes
Outcome = dict[str, Any]  # named tensors and numbers
Step = Callable[[int], Outcome]
Build = Callable[[Any, torch.dtype], Step]


@dataclass
class Case:
    """What every benchmark asks."""

    model: str = SMOLLM2
    """A folder, or a name on the Hugging Face Hub."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA where there is a GPU, else the CPU."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """In which to time; equal work is always checked in float32."""
    repetitions: int = 5
    """Turns of each side; medians are taken over them."""
    seed: int = 0
    """Of the adapter's weights and of which rows are drawn."""
    json: Path | None = None
    """Where to keep the results for machines."""
    markdown: Path | None = None
    """Where to keep them as a table for people."""

    @property
    def where(self) -> str:
        return ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device

    @property
    def timed_precision(self) -> torch.dtype:
        return loading.best_precision(self.where) if self.precision == "auto" else getattr(torch, self.precision)


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
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def in_turns(steps: dict[str, Callable[[int], Any]], repetitions: int, device: str) -> dict[str, list[float]]:
    """Seconds of every turn of every side. Step 0 warms up; then the sides take turns at steps 1, 2, ..., each time in
    the opposite order, so that a machine that slows down does so for all of them."""
    for step in steps.values():
        step(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for i in range(1, repetitions + 1):
        for name in list(steps) if i % 2 else list(steps)[::-1]:
            gc.collect()
            seconds[name].append(seconds_of(lambda step=steps[name], i=i: step(i), device))
    return seconds


# --- memory -----------------------------------------------------------------------------------------------------------


def _status(field: str) -> int:
    """Bytes that Linux reports for this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def _reset_peak() -> int:
    """Begin to look for the peak afresh; returns the bytes in use now."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):  # some containers forbid it: then the peak counts from the process's start
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _status("VmHWM")  # not ru_maxrss, which a child process inherits from the one that started it


def _measure_memory(build: Build, case: Any, steps: int, threads: int, out: Any) -> None:
    torch.set_num_threads(threads)
    step = build(case, case.timed_precision)
    before = _reset_peak()
    for i in range(steps):
        step(i)
    out.send((_peak(), before))


def peak_memory(build: Build, case: Case, steps: int = 3) -> tuple[float, float]:
    """(peak, what up to ``steps`` steps add to the loaded model) of one side in a process of its own, in GB."""
    steps = min(steps, case.repetitions + 1)  # the sides have made as many batches ready
    # The fork server imports torch once and gives every measurement a process that has done nothing else. CUDA, once
    # looked for, does not survive a fork.
    context = multiprocessing.get_context("spawn" if case.where == "cuda" else "forkserver")
    if case.where == "cpu":
        context.set_forkserver_preload(["torch", "transformers", "peft"])  # ours comes from where the caller has it
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_measure_memory, args=(build, case, steps, torch.get_num_threads(), send))
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
    """Peak memory of both sides, in turns; it hardly varies, so three fresh processes of each will do.
    steps: in each process; one is enough where it is a whole training or a whole evaluation."""
    turns = range(min(3, case.repetitions))
    peaks = [(peak_memory(ours, case, steps), peak_memory(theirs, case, steps)) for _ in turns]
    names = (f"{what}: peak memory", f"{what}: memory beyond the loaded model")
    return [
        Result.of(name, [a[k] for a, _ in peaks], [b[k] for _, b in peaks], "GB", equal_to)
        for k, name in enumerate(names)
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


def gradients(network: torch.nn.Module) -> dict[str, Tensor]:
    """A copy of every gradient by its parameter's name; the gradients are cleared."""
    taken = {}
    for name, parameter in network.named_parameters():
        if parameter.grad is not None:
            taken[name] = parameter.grad.detach().float().cpu()
            parameter.grad = None
    return taken


# --- what both sides begin with ---------------------------------------------------------------------------------------


def load(case: Case, precision: torch.dtype, stock_layers: bool = False, fresh: bool = False) -> Model:
    """The model with an adapter whose every weight has a gradient; a ``fresh`` one changes nothing, and half of its
    weights have none.

    stock_layers: the library's own layers and scaled-dot-product attention, nothing of the kit's."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    model = loading.load(locate(case.model)[0], case.where, precision, four_bit=False)
    if stock_layers and model.packs:
        model.network.set_attn_implementation("sdpa")
    adapters.add_adapter(model, ADAPTER, RANK, case.seed)
    if stock_layers:
        fused_layers.unfuse(decoder_of(model.network))
    if fresh:
        return model
    generator = torch.Generator().manual_seed(case.seed)
    weights = adapters.adapter_weights(model, ADAPTER)
    for key, value in weights.items():
        if "lora_B" in key:
            weights[key] = torch.randn(value.shape, generator=generator) * 0.01
    adapters.set_adapter_weights(model, ADAPTER, weights)
    return model


def loop_of(stage: Callable[[], Progress]) -> Loop:
    """The loop that a training stage has made ready, without running it: its ``backward(i)`` is the very step that the
    kit takes, and nothing of it is written here again."""
    with patch.object(Loop, "run", lambda loop: loop):
        loop: Any = stage()
    return loop


# --- out --------------------------------------------------------------------------------------------------------------


def table(results: list[Result], ours: str, theirs: str) -> str:
    """Results as a Markdown table."""
    lines = [f"| | {ours} | {theirs} | unit | ratio | smallest-largest | equal to |", "|---|---|---|---|---|---|---|"]
    for r in results:
        spread = f"{r.ratio_min:.2f}-{r.ratio_max:.2f}"
        cells = [r.name, f"{r.ours:.4g}", f"{r.theirs:.4g}", r.unit, f"{r.ratio:.2f}", spread, f"{r.equal_to:.0e}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def finish(
    case: Case, results: list[Result], ours: str = "ours", theirs: str = "theirs", more: str = ""
) -> list[Result]:
    """Print the table, keep what was asked for, and hand the results back."""
    machine = f"{hardware(case.where)}, {str(case.timed_precision).removeprefix('torch.')}, torch {torch.__version__}"
    text = "\n\n".join(part for part in (table(results, ours, theirs), more, f"{machine}.") if part)
    emit(text, results, case.json, case.markdown)
    return results


def emit(text: str, results: list[Result], as_json: Path | None, as_markdown: Path | None) -> None:
    """Show the text, and keep it and the results where asked."""
    print(f"\n{text}", flush=True)
    if as_json:
        as_json.write_text(json.dumps([asdict(r) for r in results], indent=1) + "\n", encoding="utf-8")
    if as_markdown:
        as_markdown.write_text(text + "\n", encoding="utf-8")
