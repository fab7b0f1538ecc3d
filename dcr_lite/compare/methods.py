"""The compared methods, trained or fitted for one seed of a recipe: each a context in which the model is that method's.

What several methods share is done once a seed and kept in its run folder: stage 1, and safety SFT alone, on which
Surgical and SCANS act.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dcr_lite.compare import scans, surgical
from dcr_lite.compare.directions import Kinds
from dcr_lite.compare.scans import Scans
from dcr_lite.data.rows import Conversation, Pair, read_conversations
from dcr_lite.data.splits import evenly_drawn, safety_mixture
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run import inputs, opening, steps, stored_states
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.terminal import console, stage
from dcr_lite.settings import Settings

ANCHORS = 128  # prompts of each kind that give directions, as in the paper of Surgical
FACTORS = (0.5, 2.0)  # of a recipe's share of refusals: further points of a trained method's curve
ORTHOGONALITIES = (0.5, 0.0)  # of Surgical, beside 1
SCANS_FACTORS = (0.5, 2.0)  # of the strength that SCANS chooses, beside 1


@dataclass(frozen=True)
class Cost:
    """What it takes to have a model ready: training, or the choice of directions. Answering is not in it."""

    seconds: float
    peak_memory_bytes: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, max(self.peak_memory_bytes, other.peak_memory_bytes))


class Seed:
    """A seed's run folder, and what its methods work with: loaded when something is left to do."""

    def __init__(self, settings: Settings, folder: Path, seed: int):
        self.settings = replace(settings, seed=seed, run=folder, resume=True)
        self.run = RunFolder(self.settings)

    @cached_property
    def data(self) -> inputs.Data:
        return inputs.load_data(self.settings)

    @cached_property
    def _loaded(self) -> tuple[Model, dict[str, torch.Tensor]]:
        model = opening.load_model(self.settings)[0]
        return model, adapters.adapter_weights(model, DCR)

    @property
    def model(self) -> Model:
        return self._loaded[0]

    @property
    def fresh(self) -> dict[str, torch.Tensor]:
        """The adapter's first weights, from which every training starts."""
        return self._loaded[1]

    def unload(self) -> None:
        """Give the memory back."""
        for loaded in ("_loaded", "anchors"):
            self.__dict__.pop(loaded, None)

    @cached_property
    def anchors(self) -> tuple[Kinds, Kinds]:
        """Prompts of the three kinds to take directions from, and others to choose by: training and development pairs,
        instructions that safety SFT trains on and instructions that it does not."""
        trained = [row for row in self.data.baseline_mixture if not row.refuses]
        used = {row.prompt for row in trained}
        unused = [row for row in self.data.instructions if row.prompt not in used]

        def kinds(pairs: list[Pair], plain: list[Conversation]) -> Kinds:
            prompts = [p.toxic for p in pairs], [p.seemingly_toxic for p in pairs], [row.prompt for row in plain]
            return Kinds(*(encode_prompts(self.model.tokenizer, some, self.model.window) for some in prompts))

        return (
            kinds(self.data.training[:ANCHORS], trained[:ANCHORS]),
            kinds(self.data.development, (unused or trained)[:ANCHORS]),
        )

    def rows(self, refusals: int, augmentations: int = 0) -> list[Conversation]:
        """A mixture for safety SFT."""
        settings = self.settings
        return safety_mixture(
            self.data.instructions,
            self.data.refusals,
            settings.instructions,
            refusals,
            settings.seed,
            evenly_drawn("augmentations", read_conversations(settings.augmentation_rows), augmentations, settings.seed),
        )

    def train(
        self, name: str, adapter: str, rows: list[Conversation], above: int, start: dict[str, torch.Tensor], title: str
    ) -> Cost:
        """Safety SFT of an adapter from weights ``start``, or what it gave when it was done."""
        adapters.set_adapter_weights(self.model, adapter, start)
        planned, like = self.model.tokens_in, "stage2" if adapter == DCR else BASELINE
        if like in planned:  # the memory that this part of a run was found to have
            planned[name] = planned[like]
        forget_peak_memory()
        steps.train_safety_sft(self.run, self.model, name, adapter, title, rows, above, self.data, self.settings)
        adapters.activate(self.model, adapter)
        return self.cost(name)

    def cost(self, name: str) -> Cost:
        """Of a part that is done."""
        done = self.run.finished(name) or {}
        return Cost(done["seconds"], done["peak_memory_bytes"])

    def once(self, name: str, fit: Callable[[], tuple[dict[str, torch.Tensor], dict[str, Any]]]) -> dict[str, Any]:
        """Tensors and facts that ``fit`` gives, kept in the run folder as the part ``name``."""
        path = self.run.path / f"{name}.safetensors"
        if not self.run.finished(name):
            forget_peak_memory()
            started = time.monotonic()
            tensors, facts = fit()
            save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, path)
            spent = {"seconds": time.monotonic() - started, "peak_memory_bytes": peak_memory_bytes()}
            self.run.finish(name, facts | spent)
        return load_file(path) | (self.run.finished(name) or {})


# --- within each block the seed's model is that of the method, at a strength ------------------------------------------


@contextmanager
def _stock(at: Seed, strength: float) -> Iterator[Cost]:
    with adapters.stock(at.model):
        yield Cost(0.0, 0)


@contextmanager
def _safety_sft(at: Seed, refusals: float) -> Iterator[Cost]:
    n = int(refusals)
    yield at.train(f"safety_sft_{n}", BASELINE, at.rows(n), -1, at.fresh, f"Safety SFT, {n}")


@contextmanager
def _augmented(at: Seed, refusals: float) -> Iterator[Cost]:
    n, extra = int(refusals), at.settings.augmentations
    rows = at.rows(n, extra)
    yield at.train(f"augmented_{n}_{extra}", BASELINE, rows, -1, at.fresh, f"Augmented, {n}")


@contextmanager
def _surgical(at: Seed, orthogonality: float) -> Iterator[Cost]:
    with _safety_sft(at, at.settings.baseline_refusals) as trained:
        name = f"surgical_{orthogonality:g}"

        def fit() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            total = int(depth(at.model.network) * (1 - surgical.DISCARDED))
            with stage("Surgical: directions", total) as shown:

                def heard(done: int, candidates: int) -> None:
                    shown.advance(done * total // candidates - shown.done)

                found = surgical.fit(at.model, *at.anchors, orthogonality, heard)
            facts = {k: v for k, v in vars(found).items() if k != "direction"}
            return {"direction": found.direction}, facts

        kept = at.once(name, fit)
        with surgical.ablated(at.model, kept["direction"]):
            yield trained + at.cost(name)


@contextmanager
def _scans(at: Seed, factor: float) -> Iterator[Cost]:
    with _safety_sft(at, at.settings.baseline_refusals) as trained:

        def fit() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
            console.print("SCANS: vectors, threshold, strength")
            found = scans.fit(at.model, *at.anchors)
            tensors = {"vectors": found.vectors, "reference": found.reference}
            return tensors, {"threshold": found.threshold, "strength": found.strength}

        kept = at.once("scans", fit)
        found = Scans(kept["vectors"], kept["reference"], kept["threshold"], kept["strength"] * factor)
        with found.steering(at.model):
            yield trained + at.cost("scans")


@contextmanager
def _dcr(at: Seed, refusals: float) -> Iterator[Cost]:
    n = int(refusals)
    adapters.set_adapter_weights(at.model, DCR, at.fresh)
    forget_peak_memory()
    steps.refine(at.run, at.model, at.data, at.settings)
    refined = adapters.adapter_weights(at.model, DCR)
    above = stored_states.stage2_above(at.settings)
    rows = stored_states.stage2_rows(at.data, replace(at.settings, refusals=n), load_file(at.run.layer_states))
    trained = at.train(f"stage2_{n}", DCR, rows, above, refined, f"DCR stage 2, {n}")
    yield at.cost("stage1") + trained


@dataclass(frozen=True)
class Method:
    """model: a context in which the model is this method's. strength: what turns its trade-off, in words. usual: the
    strength that the table shows. further: those that the curve adds."""

    model: Callable[[Seed, float], AbstractContextManager[Cost]]
    strength: str
    usual: float
    further: tuple[float, ...]


def methods_of(settings: Settings) -> dict[str, Method]:
    """The compared methods by their names in ``pictures.COMPARED``, with the strengths of a recipe."""
    most = len(read_conversations(settings.refusal_rows))

    def shares(usual: int) -> tuple[float, ...]:
        return tuple(sorted({min(most, max(1, round(usual * f))) for f in FACTORS} - {usual}))

    alone, ours = settings.baseline_refusals, settings.refusals
    return {
        STOCK: Method(_stock, "", 0, ()),
        BASELINE: Method(_safety_sft, "refusals", alone, shares(alone)),
        "augmented": Method(_augmented, "refusals", alone, shares(alone)),
        "surgical": Method(_surgical, "orthogonality", 1.0, ORTHOGONALITIES),
        "scans": Method(_scans, "of the strength chosen", 1.0, SCANS_FACTORS),
        DCR: Method(_dcr, "refusals", ours, shares(ours)),
    }
