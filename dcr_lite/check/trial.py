"""Three steps of every stage on a model of the real shape with random weights: peak memory, seconds, the whole run.

The stages, their loop and their passes are the package's own, the rows as long as those of the run's heaviest batch.
What would take too long or does not fit is tried with fewer layers or rows (sizes.py), and the page says so.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

import torch

from dcr_lite.check import duration, sizes
from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.random_model import answer_of, prompts_of, random_model
from dcr_lite.check.sizes import STEPS, Size
from dcr_lite.data.rows import Conversation, Pair, Prompt
from dcr_lite.measure.answers import measure
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop, Stage
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import RESERVE, TITLES, Fit, Need, needs
from dcr_lite.model.packing import Batch
from dcr_lite.names import BASELINE, DCR
from dcr_lite.run.found_settings import assumed
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.run.opening import Machine

MORE = 1.1  # times the estimated memory: what is worth a note


@dataclass
class Tried:
    """What a part has shown. tokens: of its largest pass with gradients; of the evaluation the prompts answered
    together. peak: bytes. seconds: of a step; of the evaluation in all."""

    tokens: int
    peak: int
    seconds: float
    losses: list[float] = field(default_factory=list)


def look(task: Task) -> Finding:
    """Tries each part, telling what is found after each."""
    on: Machine | None = task.given_by("machine")
    lengths, estimate = task.given_by("rows"), task.given_by("memory")
    if on is None or lengths is None or estimate is None:
        return Finding(["not tried: see above"])
    shape, fitting = estimate
    found = Finding(values={"parts": {}, "whole_run_seconds": {}})
    settings = assumed(task.settings, shape.layers, shape.width)
    largest = sizes.whole(shape, settings, lengths, fitting, on)
    size = sizes.choose(largest, fitting, on)
    tried = {"layers": size.shape.layers, "prompts": 2 * len(size.pairs), "rows": len(size.rows)}
    found.values |= {"layers": shape.layers, "tried": tried}
    if (size.shape, size.pairs, size.rows) != (largest.shape, largest.pairs, largest.rows):
        found.notes.append(
            f"tried with {tried['layers']} of {shape.layers} layers, and {tried['prompts']} prompts and "
            f"{tried['rows']} rows a step: all of it would take too long or does not fit. Times of the whole run are "
            "scaled up from that"
        )
    if settings.backend == "unsloth":
        found.notes.append("tried with transformers: unsloth needs the model itself")
    task.tell(found)
    model = random_model(size.shape, on.device, on.precision, on.four_bit)
    for name in (DCR, *settings.compare_with):
        adapters.add_adapter(model, name, settings.rank, settings.seed)
    model.tokens_in, model.prompts_at_once = fitting.units, len(size.held_out)
    size = replace(size, prefix=size.prefix if model.packs else 0)

    whole = duration.operations(shape, task.settings, lengths, size.prefix, size.at_once)
    of_step = size.operations()
    if "stage1" not in of_step:  # without its steps prompts are only read
        whole["evaluation"] += whole.pop("stage1")
    found.values["of"] = list(whole)
    rates: dict[str, float] = {}
    tried_needs = {need.name: need for need in needs(size.shape, size.settings, on.four_bit, on.precision.itemsize)}
    for name in whole:
        model.plan_passes(name)
        shown = PARTS[name](model, size)
        rates[name] = of_step[name] / shown.seconds
        found.values["parts"][name] = _values(shown, tried_needs[name], on)
        found.values["whole_run_seconds"] = duration.seconds(whole, rates)
        found.notes += _surprises(name, found.values["parts"][name], model, fitting)
        task.tell(found)
    return found


def _surprises(name: str, values: dict[str, Any], model: Model, fitting: Fit) -> list[str]:
    """What the estimate did not foresee."""
    notes = []
    if values["peak_bytes"] > MORE * values["estimated_bytes"]:
        more = values["peak_bytes"] / values["estimated_bytes"] - 1
        notes.append(f"{TITLES[name]} took {more:.0%} more memory than estimated")
    if name != "evaluation" and model.tokens_per_pass < fitting.units[name]:
        notes.append(f"{TITLES[name]} ran out of memory with {fitting.units[name]:,} tokens at once, and took fewer")
    return notes


def _values(tried: Tried, need: Need, on: Machine) -> dict[str, Any]:
    # On a card the peak is what torch has allocated, without CUDA's own memory; on a CPU it is the whole process.
    reserve = RESERVE if on.device == "cuda" else 0
    return {
        "at_once": tried.tokens,
        "peak_bytes": tried.peak,
        "estimated_bytes": round(need.total(tried.tokens)) - reserve,
        "seconds": tried.seconds,
        "losses": tried.losses,
    }


# --- the parts of a run -----------------------------------------------------------------------------------------------


def stage1(model: Model, size: Size) -> Tried:
    """Steps of contrastive refinement."""
    prompts = prompts_of([tokens for pair in size.pairs for tokens in pair], size.prefix)
    pairs = [Pair(a, b) for a, b in zip(prompts[::2], prompts[1::2], strict=True)]
    config = replace(ContrastiveConfig.of(size.settings), steps=STEPS, batch_size=len(prompts))
    geometry = stock_geometry(model, encode_pairs(model, pairs), config)
    return _train(ContrastiveRefinement(model, DCR, pairs, pairs[:2], config, geometry, size.settings.seed))


def stage2(model: Model, size: Size) -> Tried:
    """Steps of DCR's safety SFT."""
    return _train(_sft("stage2", model, DCR, size, duration.first_trained(size.settings)))


def safety_sft(model: Model, size: Size) -> Tried:
    """Steps of safety SFT alone, on all layers."""
    return _train(_sft("safety_sft", model, BASELINE, size, 0))


def _sft(name: str, model: Model, adapter: str, size: Size, below: int) -> SafetySFT:
    prompts = prompts_of([prompt for prompt, _ in size.rows], size.prefix)
    answers = [answer_of(answer, i) for i, (_, answer) in enumerate(size.rows)]
    rows = [Conversation(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    config = SafetySFTConfig(below - 1, STEPS, len(rows), size.settings.sft_learning_rate)
    return SafetySFT(name, model, adapter, rows, config, size.settings.seed)


def evaluation(model: Model, size: Size) -> Tried:
    """Answers to as many prompts as are answered together."""
    prompts = [Prompt(text, "plain", "check") for text in prompts_of(size.held_out, size.prefix)]
    forget_peak_memory()
    started = time.perf_counter()
    measure(model, prompts, size.settings.answer_tokens)
    return Tried(len(prompts), peak_memory_bytes(), time.perf_counter() - started)


PARTS: dict[str, Callable[[Model, Size], Tried]] = {
    "stage1": stage1,
    "stage2": stage2,
    "safety_sft": safety_sft,
    "evaluation": evaluation,
}


def _train(stage: Stage) -> Tried:
    """Takes the stage's steps in the loop of a run. Seconds are the mean of all but the first."""
    ends: list[float] = []
    losses: list[float] = []
    seconds: list[float] = []

    def report(row: dict[str, Any]) -> None:
        if stage.model.device != "cpu":
            torch.accelerator.synchronize()
        ends.append(time.perf_counter())
        if "loss" in row:
            losses.append(row["loss"])
            seconds.append(ends[-1] - ends[-2])

    forget_peak_memory()
    with _widest(stage.model) as passes:
        Loop(stage, report=report).run()
    return Tried(max(passes), peak_memory_bytes(), fmean(seconds[1:]), losses)


@contextmanager
def _widest(model: Model) -> Iterator[list[int]]:
    """Within the block the tokens of every pass with gradients are noted."""
    passes: list[int] = []
    lay_out = model.batch

    def noted(rows: list[list[int]], prefix: int | None = None) -> Batch:
        batch = lay_out(rows, prefix)
        if torch.is_grad_enabled():
            passes.append(batch.inputs["input_ids"].numel())
        return batch

    model.batch = noted  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        del model.batch
