"""The settings that a run finds for itself, by training and development pairs: the layer L, learning rates, and what
follows from what the model does already. What is given is never searched.

- L: the stock model's states at every layer between 0.5 and 0.7 of the depth, read as stage 1 reads them, each pair by
  pairs of other focus words; the lowest layer within one standard error of the best. A few steps of stage 1 at some of
  them say no more (docs/ablations.md).
- Learning rates: from the model's width, between those that are known at other widths.
- Stage 2 and its refusals, what stays of stage 1, answers, dial: by how often the stock model refuses training prompts
  in its own chat format.
"""

import random
import sys
import time
from dataclasses import replace
from itertools import pairwise
from math import log
from typing import Any

import torch

from dcr_lite.data.rows import prompts_of
from dcr_lite.data.splits import folds_by_focus
from dcr_lite.files import write_state
from dcr_lite.measure.answers import Measured, measure, overall_rate
from dcr_lite.measure.openings import own_openings
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, ContrastiveConfig, encode_pairs
from dcr_lite.method.layers import auroc_error, crossed_separation, suggested_layer
from dcr_lite.model import adapters, distributed
from dcr_lite.model.hidden_states import depth, width_of
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states
from dcr_lite.run.found_report import draw_found, unused_sentence
from dcr_lite.run.inputs import AnySettings, Data
from dcr_lite.run.run_folder import FOUND_FILE, FOUND_NAMES, RunFolder, read_found
from dcr_lite.run.terminal import progress_bar, show_line
from dcr_lite.run.void_flags import flags_of, given_flags, of_stage2
from dcr_lite.settings import FOUND, Settings, layers_between

STOCK_PAIRS = 64  # training pairs that the stock model answers: its refusal rates to about 0.1
FOLDS = 5  # of the pairs by which L is chosen
REFUSES = 0.2  # of toxic prompts, from which on a chat model refuses by itself: its makers taught it to
FEW = 24  # refusals that a stage 2 teaches a model which refuses by itself (docs/ablations.md)
HALF = 0.5  # of stage 1's change stays in a model that is not trained any further (docs/ablations.md)
# Learning rates by width: at those of SmolLM2 (576) and of Qwen2.5 0.5B and 1.5B (896, 1536) as tried there, at 8
# billion weights' (4096) QLoRA's (Dettmers et al., 2023).
LEARNING_RATES = {
    "contrastive_learning_rate": {576: 1e-3, 896: 5e-4, 1536: 5e-4, 4096: 2e-4},
    "sft_learning_rate": {576: 2e-3, 4096: 2e-4},
}

Evidence = dict[str, Any]


def found(run: RunFolder, model: Model, data: Data, settings: Settings) -> dict[str, Any]:
    """What RUN/found.json holds: every setting that can be found, as given or found, with ``openings``, how the model
    begins its refusals, and ``evidence``. Searched for unless it is there."""
    there = distributed.on_main(lambda: read_found(run.path))
    if there is not None:
        return there
    started = time.monotonic()
    answers = _stock_answers(run, model, data, settings) if asks_for_answers(settings) else None
    layers = _layers(model, data, settings) if settings.layer == FOUND else None
    chosen = choose(settings, width_of(model.network), answers, layers)
    chosen["evidence"]["seconds"] = time.monotonic() - started
    chosen["evidence"]["unused"] = unused = _unused(settings, chosen["stage2"])

    def keep() -> None:
        if unused:
            show_line(unused_sentence(unused))
        draw_found(chosen, run.path / "found.png")
        write_state(chosen, run.path / FOUND_FILE)

    distributed.on_main(keep)
    return chosen


def asks_for_answers(settings: Settings) -> bool:
    """Whether it has to be known how the stock model answers: a base model does not in any format."""
    counts = settings.stage2 == "yes" and settings.refusals is None  # how many refusals that learns
    return settings.chat_format == "own" and (settings.stage2 == "auto" or counts or settings.dial != "none")


def choose(settings: Settings, width: int, answers: Evidence | None, layers: Evidence | None) -> dict[str, Any]:
    """Every setting from the evidence: what ``found`` returns. Given ones stay."""
    is_chat = settings.chat_format == "own"
    refuses = answers is not None and answers["toxic"]["refusal_rate"] >= REFUSES
    automatic = {
        "stage2": "no" if refuses else "yes",
        "answers": "own" if is_chat else "given",
        "dial": "above_stock" if refuses else "discerning",
    }
    chosen: dict[str, Any] = {"layer": settings.layer if layers is None else layers["chosen"]}
    for name in LEARNING_RATES:
        chosen[name] = getattr(settings, name) or rate_for(width, name)
    chosen["stage1"] = settings.stage1
    for name, value in automatic.items():
        chosen[name] = value if getattr(settings, name) == "auto" else getattr(settings, name)
    chosen["refusals"] = settings.sizes["refusals"]
    if few := refuses and chosen["stage2"] == "yes" and settings.refusals is None and settings.begun_refusals <= FEW:
        chosen["refusals"] = FEW
    chosen["contrastive_share"] = settings.contrastive_share or (HALF if chosen["stage2"] == "no" else 1.0)
    given = [name for name, value in chosen.items() if getattr(Settings, name) != getattr(settings, name) == value]
    openings = own_openings([], []) if answers is None else answers["openings"]
    evidence = {"given": given, "width": width, "answers": answers, "layers": layers, "few_refusals": few}
    return {**chosen, "openings": list(openings), "evidence": evidence}


def as_found(settings: AnySettings, found: dict[str, Any]) -> AnySettings:
    """The settings with what a run has found of them (``found``)."""
    return replace(settings, **{name: found[name] for name in FOUND_NAMES if name in found})


def _unused(settings: Settings, stage2: str) -> list[str]:
    """The flags of this command that a stage 2 would use, where it is found not to be needed."""
    if settings.stage2 != "auto" or stage2 != "no":
        return []
    return sorted(given_flags(sys.argv) & flags_of(of_stage2(settings)))


def assumed(settings: Settings, depth: int, width: int) -> Settings:
    """The settings as they are reckoned with before anything was looked at: L at half of the depth, both stages."""
    layers = {"chosen": depth // 2} if settings.layer == FOUND else None
    chosen = choose(settings, width, None, layers)
    return as_found(settings, chosen)


def rate_for(width: int, name: str) -> float:
    """The learning rate of that name for a width: between two known ones a power of the width, beyond them the nearest;
    two figures."""
    known = LEARNING_RATES[name]
    width = min(max(width, min(known)), max(known))
    low, high = next(pair for pair in pairwise(sorted(known)) if width <= pair[1])
    slope = log(known[high] / known[low]) / log(high / low)
    return float(f"{known[low] * (width / low) ** slope:.1e}")


# --- what the model does already --------------------------------------------------------------------------------------


def _stock_answers(run: RunFolder, model: Model, data: Data, settings: Settings) -> Evidence:
    """{toxic, seemingly_toxic: {n, refusal_rate, ci95}, openings} of the stock model's judged answers to training
    prompts."""
    if (done := run.finished("found_answers")) is not None:
        return done
    pairs = random.Random(settings.seed).sample(data.training, min(STOCK_PAIRS, len(data.training)))
    own = distributed.share(prompts_of(pairs, "training"))
    with progress_bar("Stock answers", max(1, len(own))) as shown, adapters.stock(model):
        measured: list[Measured] = distributed.gathered(measure(model, own, settings.answer_tokens, shown.advance))
    said = {judged: [row["response"] for row in measured if row["refused"] == judged] for judged in (True, False)}
    facts = {label: overall_rate(measured, label) for label in ("toxic", "seemingly_toxic")}
    evidence = {**facts, "openings": list(own_openings(said[True], said[False]))}
    run.finish("found_answers", evidence)
    return evidence


# --- the layer --------------------------------------------------------------------------------------------------------


def _layers(model: Model, data: Data, settings: Settings) -> Evidence:
    """{auroc: of the stock model by layer, error: of the best one, pairs, chosen}. Layers are strings, as JSON has
    them."""
    between = layers_between(depth(model.network))
    config = ContrastiveConfig.of(settings)
    pairs = data.training[:GEOMETRY_PAIRS] + data.development
    folds = torch.tensor(folds_by_focus(pairs, FOLDS))
    rows = encode_pairs(model, pairs)
    with progress_bar("States by layer", len(rows)) as shown, adapters.stock(model):
        states = last_states(model, rows, layers=between.stop, progress=shown.advance)[between.start :, :, 0]
    stock = {
        layer: crossed_separation(of_layer, folds, config.centre, config.whiten)
        for layer, of_layer in zip(between, states.to(model.device), strict=True)
    }
    stock = distributed.on_main(lambda: stock)  # of several processes, which must not go apart, the first one's
    best = max(stock.values())
    return {
        "auroc": {str(layer): value for layer, value in stock.items()},
        "error": auroc_error(best, len(pairs)),
        "pairs": len(pairs),
        "chosen": suggested_layer(stock, len(pairs)),
    }
