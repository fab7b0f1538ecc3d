"""Where the seconds of a whole run go: the recipe itself, with timers around functions of the package.

    python benchmarks/whole_job.py                               # a fresh run in a temporary folder
    python benchmarks/whole_job.py --settings.seed 1

Each part is listed below the part that called it, with its seconds in total and those that no part below it accounts
for.
"""

import functools
import pkgutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import Any

STARTED = time.perf_counter()  # before the heavy imports: they are part of what a user waits for

import tyro  # noqa: E402

from dcr_lite.run.recipes import find_recipe, load_recipe  # noqa: E402
from dcr_lite.settings import Settings  # noqa: E402

RECIPE = load_recipe(find_recipe("smollm2_135m"))

BAR = 24  # characters of the whole

# Function, as module:name -> the part that it is. The timer is put wherever a module has imported the function.
PARTS = {
    "run.inputs:load_data": "reading data",
    "run.opening:load_model": "loading the model",
    "run.plan:plan": "the plan",
    "run.steps:refine": "stage 1",
    "run.steps:teach_refusals": "stage 2",
    "run.steps:teach_refusals_alone": "safety SFT alone",
    "run.steps:evaluate": "evaluation",
    "run.steps:write_up": "report",
    "model.chat:encode_prompts": "tokenising",
    "model.chat:encode_conversations": "tokenising",
    "method.contrastive:stock_geometry": "geometry of the stock model",
    "model.states:layer_states": "states without gradient",
    "run.stored_states:compute_states": "states for map and readings",
    "run.stored_states:fit_discernments": "readings of the three models",
    "method.contrastive:ContrastiveRefinement.step": "forward and backward",
    "model.states_below:StoredStates.__init__": "stored states",
    "method.answer_tokens:backward_through_vocabulary": "logits and backward",
    "model.hidden_states:states_above": "forward above L",
    "model.hidden_states:final_states": "forward",
    "model.generation:answer": "decoding",
    "model.generation:refusal_log_odds": "refusal log-odds",
    "measure.judge:is_refusal": "judging",
    "measure.judge:verdict_is_final": "judging",
    "method.checkpoint:save_checkpoint": "checkpoints",
    "model.adapters:save_adapter": "saving adapters",
    "run.plots:draw_refusal_rates": "drawing",
    "run.plots:draw_refusal_scores": "drawing",
    "run.plots:draw_refusal_during_sft": "drawing",
    "run.plots:draw_state_map": "drawing",
}


@dataclass
class WholeJob:
    """What to run."""

    settings: Settings = field(default_factory=lambda: RECIPE.SETTINGS)
    """Those of the recipe; the run folder is replaced by a temporary one."""
    json: Path | None = None
    """File for the results as JSON."""
    markdown: Path | None = None
    """File for the results as a Markdown table."""


Place = tuple[str, ...]  # a part's name behind those of the parts that called it


class Clock:
    """Seconds and calls of every part, by who called it."""

    def __init__(self, device: str):
        self.seconds: dict[Place, float] = {}
        self.calls: dict[Place, int] = {}
        self.stack: list[str] = []
        self.device = device

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a timer; a part that calls itself counts once."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.stack and self.stack[-1] == name:
                return function(*args, **kwargs)
            with self.part(name):
                return function(*args, **kwargs)

        return wrapper

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self.stack.append(name)
        place = tuple(self.stack)
        self.seconds.setdefault(place, 0.0)  # in the order of first use
        started = self._now()
        try:
            yield
        finally:
            self.seconds[place] += self._now() - started
            self.calls[place] = self.calls.get(place, 0) + 1
            self.stack.pop()

    def _now(self) -> float:
        if self.device == "cuda":
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def own(self, place: Place) -> float:
        """Seconds of a part that no part below it accounts for."""
        return self.seconds[place] - sum(s for p, s in self.seconds.items() if p[:-1] == place)

    def table(self, total: float) -> str:
        """A table with each part below the one that called it; its bar is its share of the whole."""
        from dcr_lite.run.report import markdown_table

        rows: list[list[str]] = []

        def add(place: Place) -> None:
            seconds = self.seconds[place]
            bar = "█" * max(1, round(BAR * seconds / total)) if seconds >= total / BAR / 2 else ""
            name = "&nbsp;" * 4 * (len(place) - 1) + place[-1]
            shares = [f"{seconds:.1f}", f"{self.own(place):.1f}", f"{seconds / total:.1%}"]
            rows.append([name, *shares, str(self.calls[place]), bar])
            for below in sorted((p for p in self.seconds if p[:-1] == place), key=lambda p: -self.seconds[p]):
                add(below)

        for top in (p for p in self.seconds if len(p) == 1):
            add(top)
        rest = total - sum(s for p, s in self.seconds.items() if len(p) == 1)
        rows.append(["not in any part", f"{rest:.1f}", "", f"{rest / total:.1%}", "", ""])
        return markdown_table(["part", "seconds", "of these its own", "share", "calls", ""], rows)


def owner_of(path: str) -> tuple[Any, str]:
    """The module or class that holds a function of PARTS, and its name there."""
    module, _, name = path.partition(":")
    classes, _, name = name.rpartition(".")
    return pkgutil.resolve_name(f"dcr_lite.{module}:{classes}"), name


def _exchange(functions: dict[Any, Any], classes: list[Any]) -> None:
    """Puts the values of ``functions`` in place of its keys, in the classes and in every module of the package."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("dcr_lite.")]
    for place in [*classes, *modules]:
        for name, value in list(vars(place).items()):
            if isinstance(value, FunctionType) and value in functions:
                setattr(place, name, functions[value])


@contextmanager
def timers(clock: Clock) -> Iterator[None]:
    """Within the block every function of PARTS is timed. Raises AttributeError for one that is not there."""
    owners = [(*owner_of(path), part) for path, part in PARTS.items()]
    timed = {getattr(owner, name): clock.timed(part, getattr(owner, name)) for owner, name, part in owners}
    classes = [owner for owner, _, _ in owners if isinstance(owner, type)]
    _exchange(timed, classes)
    try:
        yield
    finally:
        _exchange({after: before for before, after in timed.items()}, classes)


def main(case: WholeJob) -> list[Any]:
    clock = Clock("cpu")
    with clock.part("imports"):
        import torch
        from _measure import Result, emit

    before = time.perf_counter() - STARTED if __name__ == "__main__" else sum(clock.seconds.values())
    clock.seconds["imports",] = before  # with those at the top of this file
    if case.settings.device != "cpu" and torch.cuda.is_available():
        clock.device = "cuda"
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, timers(clock):
        RECIPE.main(replace(case.settings, run=Path(folder) / "run", resume=False))
    total = before + time.perf_counter() - started
    # Summed over all places of a part, its own seconds add up to the whole.
    own: dict[str, float] = {}
    for place in clock.seconds:
        own[place[-1]] = own.get(place[-1], 0.0) + clock.own(place)
    own["not in any part"] = total - sum(own.values())
    missed = abs(total - sum(own.values())) / total
    results = [
        Result(name, seconds, total, "s", seconds / total, seconds / total, seconds / total, missed)
        for name, seconds in sorted(own.items(), key=lambda item: -item[1])
    ]
    emit(clock.table(total), results, case.json, case.markdown)
    return results


if __name__ == "__main__":
    main(tyro.cli(WholeJob, description=__doc__))
