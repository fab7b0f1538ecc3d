"""The run folder, the data and the model of one seed, which all compared methods share.

Stage 1 and safety SFT alone, which several methods build on, are trained once a seed and kept in the run folder.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from dcr_lite.compare.anchors import Anchors, Meaning, anchors_of, meaning_of
from dcr_lite.compare.begun import as_begun, require_same
from dcr_lite.data.rows import Conversation, read_conversations
from dcr_lite.data.splits import evenly_drawn, safety_mixture
from dcr_lite.files import load_tensors, save_tensors, write_state
from dcr_lite.measure.answers import Measured
from dcr_lite.measure.kept import StockAnswers, read_stock_answers, worth_keeping
from dcr_lite.measure.trade_off import Goal
from dcr_lite.method.contrastive import encode_pairs
from dcr_lite.method.dial import Dial, turned
from dcr_lite.method.dial_fitting import find_gain, fit_dial
from dcr_lite.method.loop import Stage
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, DCR
from dcr_lite.run import dial, inputs, opening, plan, steps
from dcr_lite.run.dial_bench import DIAL
from dcr_lite.run.dial_setting import FOLDER, DialSetting
from dcr_lite.run.found_settings import as_found
from dcr_lite.run.long_rows import without_long_rows
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.run.own_voice import PART as OWN_ANSWERS
from dcr_lite.run.own_voice import in_own_voice
from dcr_lite.run.run_folder import FOUND_FILE, RunFolder, read_found
from dcr_lite.run.same_numbers import require_same_numbers, take_numbers
from dcr_lite.settings import Settings

KEPT = 64  # answers of the stock model of each label that every method reads: a fifth of the time of its own answers
Fitted = TypeVar("Fitted")  # a dataclass of tensors, of dictionaries of tensors, and of numbers and lists of them


@dataclass(frozen=True)
class Cost:
    """Time and memory of training or fitting a method; answering is not included. note: what a reader of the tables has
    to know of it, if anything; NOT_APPLICABLE in it where the method does not apply to the model. parts: those of the
    run folder that it is the cost of, by their names."""

    seconds: float
    peak_memory_bytes: int
    note: str = ""
    parts: tuple[str, ...] = ()

    def __add__(self, other: "Cost") -> "Cost":
        memory = max(self.peak_memory_bytes, other.peak_memory_bytes)
        note = "; ".join(filter(None, (self.note, other.note)))
        return Cost(self.seconds + other.seconds, memory, note, tuple(dict.fromkeys(self.parts + other.parts)))

    @property
    def spent(self) -> dict[str, float]:
        """Time and memory alone."""
        return {"seconds": self.seconds, "peak_memory_bytes": self.peak_memory_bytes}


class SeedRun:
    """The run folder of a seed, with its data and its model, which are loaded when they are first used."""

    def __init__(self, settings: Settings, folder: Path, seed: int, found: Path | None = None):
        """found: the run folder of another seed, whose settings it takes where that has found some."""
        self.settings = replace(settings, seed=seed, run=folder, resume=True, compare_with=(BASELINE,))
        self.run = RunFolder(as_begun(self.settings))
        self._stock_answers: StockAnswers | None = None
        if found and (there := read_found(found)):
            require_same(settings, there, folder.parent)
            write_state(there, folder / FOUND_FILE)
            take_numbers(self.run, found)

    def find_settings(self) -> None:
        """Find what the settings leave open, once."""
        found = read_found(self.run.path)
        if found is None:
            self.settings = steps.find_settings(self.run, self.model, self.data, self.settings)
        else:
            self.settings = as_found(self.settings, found)

    @cached_property
    def data(self) -> inputs.Data:
        return without_long_rows(self.run, self.model, inputs.load_data(self.settings), self.settings)

    @cached_property
    def sft_data(self) -> inputs.Data:
        """The data with the general instructions of safety SFT answered as the settings say."""
        return in_own_voice(self.run, self.model, self.data, self.settings)

    @cached_property
    def _loaded(self) -> tuple[Model, dict[str, Tensor]]:
        model, _ = opening.load_model(self.settings)
        require_same_numbers(self.run, model)
        return model, adapters.adapter_weights(model, DCR)

    @property
    def model(self) -> Model:
        return self._loaded[0]

    @property
    def first_weights(self) -> dict[str, Tensor]:
        """The adapter's first weights, from which every training starts."""
        return self._loaded[1]

    def unload(self) -> None:
        """Free the memory of the model."""
        for loaded in ("_loaded", "anchors"):
            self.__dict__.pop(loaded, None)
        self._stock_answers = None

    def stock_answers(self, answers: list[Measured]) -> StockAnswers:
        """Those of the stock model's answers that methods are measured by, read once by the stock model. To be called
        outside of a method's context, whatever adapter is active."""
        if self._stock_answers is None:
            self._stock_answers = read_stock_answers(self.model, worth_keeping(answers, KEPT))
        return self._stock_answers

    @cached_property
    def operations(self) -> dict[str, float]:
        """``plan.operations`` with a stage 2, whose own answers others take too, and those of a pass over a prompt."""
        parts = plan.operations(self.model, self.data, replace(self.settings, stage2="yes"))
        return parts | {"prompt": parts["answers"] / len(self.data.held_out) / 4}

    @cached_property
    def anchors(self) -> Anchors:
        """``anchors_of`` this seed."""
        return anchors_of(self.model, self.data)

    def judged_anchors(self, begun: str) -> tuple[Cost, Anchors]:
        """The same with what log-odds mean for the model ``begun`` that a method begins with, which is the active one,
        found once; before them what that cost."""
        part, (training, development) = f"judged_{begun}", self.anchors
        found = self.fit_once(part, Meaning, lambda: meaning_of(self.model, self.data, self.settings.answer_tokens))
        return self.cost(part), (training, replace(development, meaning=(found.intercept, found.slope)))

    def refine(self) -> dict[str, Tensor]:
        """Stage 1 of DCR, once; the weights of its adapter, which is the active one."""
        adapters.set_adapter_weights(self.model, DCR, self.first_weights)
        self.timed("stage1", lambda: steps.refine(self.run, self.model, self.data, self.settings))
        adapters.activate(self.model, DCR)
        return adapters.adapter_weights(self.model, DCR)

    def train_dcr(self) -> Cost:
        """DCR with its dial at 0, trained once: stage 1, and stage 2 where the settings have one."""
        refined = self.refine()
        cost = self.cost_of_finding + self.cost("stage1")
        if self.settings.stage2 == "no":
            return cost
        rows = steps.rows_of_stage2(self.run, self.model, self.sft_data, self.settings)
        above = steps.stage2_above(self.settings)
        return cost + self.train("stage2", "DCR stage 2", DCR, rows, above, refined)

    def set_dial(self) -> tuple[Dial, DialSetting]:
        """The dial of DCR as it is trained, and how the recipe sets it; found once."""
        steps.set_dial(self.run, self.model, self.data, self.settings)
        folder = self.run.path / FOLDER
        return Dial.load(folder / DIAL), DialSetting.load(folder)

    def set_dial_alone(self) -> tuple[Dial, DialSetting]:
        """The dial of the stock model, and the setting that the same goal as DCR's gives it; found once. The adapter is
        as before any training, the active one."""
        adapters.set_adapter_weights(self.model, DCR, self.first_weights)
        adapters.activate(self.model, DCR)
        part, asked = "dial_alone", self.settings.dial
        folder = self.run.path / part
        if not (self.run.finished(part) and dial.is_there(folder)):
            forget_peak_memory()
            started = time.monotonic()
            goal = Goal("discerning" if asked == "none" else asked)  # type: ignore[arg-type]  # what was found is never auto
            dial.record(folder, dial.find_setting(folder, self.model, self.data, self.settings, goal))
            self.run.finish(part, Cost(time.monotonic() - started, peak_memory_bytes()).spent)
        return Dial.load(folder / FOLDER / DIAL), DialSetting.load(folder / FOLDER)

    def fit_dial(self, name: str = "fitted_dial") -> Dial:
        """The dial of the adapter as it is trained now, fitted once and kept as the part ``name``."""
        data = self.data

        def fit() -> Dial:
            fitted = fit_dial(self.model, DCR, self.settings.layer, data.training, data.instructions)
            return find_gain(self.model, DCR, fitted, encode_pairs(self.model, data.development))[0]

        return self.fit_once(name, Dial, fit)

    def turned(self, turning: Dial, strength: float) -> AbstractContextManager[None]:
        """Within the block DCR's dial stands at a strength."""
        return turned(self.model, DCR, turning, strength)

    def mixture(self, refusals: int, augmentations: int = 0) -> list[Conversation]:
        """Rows for safety SFT."""
        seed, extra = self.settings.seed, read_conversations(self.settings.augmentation_rows)
        return safety_mixture(
            self.sft_data.instructions,
            self.data.refusals,
            min(self.settings.sizes["instructions"], len(self.sft_data.instructions)),
            refusals,
            seed,
            evenly_drawn("augmentations", extra, augmentations, seed),
        )

    def train(
        self, name: str, title: str, adapter: str, rows: list[Conversation], above: int, start: dict[str, Tensor]
    ) -> Cost:
        """Safety SFT of ``adapter`` above layer ``above`` from the weights ``start``, once: a finished one is read from
        the run folder."""
        adapters.set_adapter_weights(self.model, adapter, start)
        planned, like = self.model.tokens_in, "stage2" if adapter == DCR else BASELINE
        if like in planned:  # the tokens per pass that this part of a run has memory for
            planned[name] = planned[like]
        run, model, data, settings = self.run, self.model, self.data, self.settings
        self.timed(name, lambda: steps.train_safety_sft(run, model, name, adapter, title, rows, above, data, settings))
        adapters.activate(self.model, adapter)
        return self.cost(name) + (self.cost(OWN_ANSWERS) if settings.answers == "own" else Cost(0.0, 0))

    def train_stage(self, name: str, title: str, start: dict[str, Tensor], stage: Callable[[], Stage]) -> None:
        """Train the stage that ``stage`` makes, of the baseline's adapter from the weights ``start``, once: a finished
        one is read from the run folder."""
        adapters.set_adapter_weights(self.model, BASELINE, start)
        self.model.plan_passes(BASELINE)  # what there is memory for where all layers train
        if self.run.finished(name):
            steps.restore(self.run, self.model, name, BASELINE)
        else:
            adapters.activate(self.model, BASELINE)
            self.timed(name, lambda: steps.train(self.run, stage(), title))
        adapters.activate(self.model, BASELINE)

    def timed(self, name: str, work: Callable[[], object]) -> None:
        """Do ``work``, which trains the part ``name`` of the run unless it is done, and note the seconds of all of it,
        with the states that are computed before and after its steps. Those of the steps, of all processes where it was
        stopped, stay where they are more."""
        if self.run.finished(name):
            work()
            return
        forget_peak_memory()
        started = time.monotonic()
        work()
        facts = self.run.finished(name) or {}
        seconds = max(facts["seconds"], time.monotonic() - started)
        self.run.finish(name, facts | {"seconds": seconds, "peak_memory_bytes": peak_memory_bytes()})

    def fit_once(self, name: str, kind: type[Fitted], fit: Callable[[], Fitted]) -> Fitted:
        """What ``fit`` returns, a dataclass of type ``kind``, kept in the run folder as the part ``name``."""
        path = self.run.path / f"{name}.safetensors"
        if not self.run.finished(name):
            forget_peak_memory()
            started = time.monotonic()
            found = vars(fit())
            numbers = {key: value for key, value in found.items() if not isinstance(value, Tensor | dict)}
            save_tensors(_flat(found), path)
            cost = Cost(time.monotonic() - started, peak_memory_bytes())
            self.run.finish(name, {"numbers": numbers, **cost.spent})
        cure = f"Delete {self.run.note(name)} to have it fitted again."
        return kind(**_fields(load_tensors(path, cure)), **(self.run.finished(name) or {})["numbers"])

    @property
    def cost_of_finding(self) -> Cost:
        """The cost of what was found for the settings, L above all."""
        found = read_found(self.run.path) or {"evidence": {}}
        return Cost(found["evidence"].get("seconds", 0.0), 0)

    def cost(self, name: str) -> Cost:
        """The cost of a part; none of one that was not needed."""
        if (done := self.run.finished(name)) is None:
            return Cost(0.0, 0)
        return Cost(done["seconds"], done.get("peak_memory_bytes", 0), parts=(name,))


def _flat(found: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a dataclass by its fields' names; those of a dictionary as FIELD/KEY."""
    tensors = {key: value for key, value in found.items() if isinstance(value, Tensor)}
    for field, of_field in found.items():
        if isinstance(of_field, dict):
            tensors |= {f"{field}/{key}": value for key, value in of_field.items()}
    return {key: value.cpu().contiguous() for key, value in tensors.items()}


def _fields(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields that ``_flat`` has made one dictionary of."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        field, _, key = name.partition("/")
        if key:
            found.setdefault(field, {})[key] = value
        else:
            found[field] = value
    return found
