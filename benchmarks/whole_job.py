"""Where each second of a whole run goes: the recipe itself, watched from outside.

    python benchmarks/whole_job.py                               # a fresh run in a temporary folder
    python benchmarks/whole_job.py --settings.seed 1

Timers are put around functions of the kit from here; the kit knows nothing of them. A line stands below the part that
called it, with its seconds in all and those that no line below it explains; times below a part add up to it.
"""

import functools
import importlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()  # before the heavy imports: they are part of what a user waits for

import tyro  # noqa: E402

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(ROOT)]  # recipes/ is no package

from dcr_lite.settings import Settings  # noqa: E402
from recipes import smollm2_135m as recipe  # noqa: E402

BAR = 24  # characters of the whole

# module, function -> the part that it is. Wherever a module has imported the function, the timer goes along.
PARTS = {
    ("job", "load_data"): "reading data",
    ("job", "load_model"): "loading the model",
    ("plan", "plan"): "the plan",
    ("job", "refine"): "stage 1",
    ("job", "teach_refusals"): "stage 2",
    ("job", "teach_refusals_alone"): "safety SFT alone",
    ("job", "evaluate"): "evaluation",
    ("job", "write_up"): "report",
    ("chat", "encode_prompts"): "tokenising",
    ("chat", "encode_conversations"): "tokenising",
    ("contrastive", "stock_geometry"): "geometry of the stock model",
    ("contrastive", "layer_states"): "states without gradient",
    ("job", "stage1_states"): "states for map and readings",
    ("job", "fit_discernments"): "readings of the three models",
    ("gradcache", "backward"): "forward and backward",
    ("safety_sft", "_StoredStates.__init__"): "stored states",
    ("safety_sft", "_backward_through_vocabulary"): "logits and backward",
    ("safety_sft", "states_above"): "forward above L",
    ("safety_sft", "final_states"): "forward",
    ("generation", "answer"): "decoding",
    ("generation", "_refusal_log_odds"): "refusal log-odds",
    ("judge", "is_refusal"): "judging",
    ("judge", "verdict_is_final"): "judging",
    ("training", "save_whole"): "checkpoints",
    ("job", "save_adapter"): "saving adapters",
    ("pictures", "draw_refusal_rates"): "drawing",
    ("pictures", "draw_refusal_scores"): "drawing",
    ("pictures", "draw_refusal_during_sft"): "drawing",
    ("pictures", "draw_state_map"): "drawing",
}


@dataclass
class WholeJob:
    """What to run."""

    settings: Settings = field(default_factory=lambda: recipe.SETTINGS)
    """The recipe's own; its run folder is replaced by a temporary one."""
    json: Path | None = None
    """Where to keep the results for machines."""
    markdown: Path | None = None
    """Where to keep them as a table for people."""


Place = tuple[str, ...]  # a part's name behind those of the parts that called it


class Clock:
    """Seconds and calls of every part, by who called it."""

    def __init__(self, device: str):
        self.seconds: dict[Place, float] = {}
        self.calls: dict[Place, int] = {}
        self.stack: list[str] = []
        self.device = device

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function with a timer around it; a part inside itself counts once."""

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
        """Seconds of a part that no part below it explains."""
        return self.seconds[place] - sum(s for p, s in self.seconds.items() if p[:-1] == place)

    def table(self, total: float) -> str:
        """A flame on its side: a part's bar is its share of the whole, and parts below it stand under it."""
        lines = ["| part | seconds | of these its own | share | calls | |", "|---|---|---|---|---|---|"]

        def show(place: Place) -> None:
            seconds = self.seconds[place]
            bar = "█" * max(1, round(BAR * seconds / total)) if seconds >= total / BAR / 2 else ""
            name = "&nbsp;" * 4 * (len(place) - 1) + place[-1]
            cells = [name, f"{seconds:.1f}", f"{self.own(place):.1f}", f"{seconds / total:.1%}"]
            lines.append("| " + " | ".join([*cells, str(self.calls[place]), bar]) + " |")
            for below in sorted((p for p in self.seconds if p[:-1] == place), key=lambda p: -self.seconds[p]):
                show(below)

        for top in (p for p in self.seconds if len(p) == 1):
            show(top)
        explained = sum(s for p, s in self.seconds.items() if len(p) == 1)
        lines.append(f"| not in any part | {total - explained:.1f} | | {1 - explained / total:.1%} | | |")
        return "\n".join(lines)


@contextmanager
def timers(clock: Clock) -> Iterator[None]:
    """Within the block every function of PARTS is timed, in every room that has imported it."""
    modules = {name: importlib.import_module(f"dcr_lite.{name}") for name, _ in PARTS}
    rooms = [m for name, m in sys.modules.items() if name.startswith("dcr_lite.")]
    changed: list[tuple[Any, str, Any]] = []
    for (module, function), part in PARTS.items():
        owner: Any = modules[module]
        *classes, name = function.split(".")
        for cls in classes:
            owner = getattr(owner, cls)
        original = getattr(owner, name)
        wrapped = clock.timed(part, original)
        for place in [owner] if classes else rooms:
            for key, value in list(vars(place).items()):
                if value is original:
                    changed.append((place, key, original))
                    setattr(place, key, wrapped)
    try:
        yield
    finally:
        for place, key, original in changed:
            setattr(place, key, original)


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
        recipe.main(replace(case.settings, run=Path(folder) / "run", resume=False))
    total = before + time.perf_counter() - started
    # Parts of the same name in all places, without a part's own repeats above it: they add up to the whole.
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
