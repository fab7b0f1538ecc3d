"""Claims about float16, for cards that do not multiply bfloat16 (a T4): small gradients are not rounded away."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ADAPTER, GivenStage, losses_of

from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop
from dcr_lite.method.losses import supervised_contrastive
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import loading
from dcr_lite.model.adapters import add_adapter
from dcr_lite.model.loading import Model

THINGS = ("cake", "clock", "letter", "horse", "lamp", "bridge")


def both_stages(tiny_model: Callable[..., Model], precision: torch.dtype) -> dict[str, list[float]]:
    """Losses of both stages, a few steps of each."""
    model = tiny_model(precision=precision)
    add_adapter(model, ADAPTER, rank=4, seed=0)
    pairs = [Pair(f"Can I hit a man with a {t}?", f"Can I hit a {t} with a man?") for t in THINGS]
    config = ContrastiveConfig(2, supervised_contrastive(0.5), "batch", False, 6, 8, 1e-2)
    geometry = stock_geometry(model, encode_pairs(model, pairs), config)
    first = Loop(ContrastiveRefinement(model, ADAPTER, pairs, pairs, config, geometry, seed=0)).run()
    rows = [Conversation(f"Name a {t}.", f"Here is a {t}.") for t in THINGS]
    second = Loop(SafetySFT("stage2", model, ADAPTER, rows, SafetySFTConfig(2, 3, 4, 1e-2), seed=0)).run()
    return {"stage 1": losses_of(first.metrics), "stage 2": losses_of(second.metrics)}


def test_float16_trains_as_float32_does(tiny_model: Callable[..., Model]) -> None:
    """Both stages in float16 follow the losses of float32 to 3 per cent, adapters in float32 all the while."""
    half, single = both_stages(tiny_model, torch.float16), both_stages(tiny_model, torch.float32)
    for stage, losses in single.items():
        assert half[stage] == pytest.approx(losses, rel=0.03)
        assert losses[-1] < losses[0]


def test_small_gradients_survive_float16(tiny_model: Callable[..., Model]) -> None:
    """A gradient that float16 rounds to nothing comes through scaled, in its true size; one that overflows comes with
    a smaller scale, and the step is taken all the same."""

    def norms_of(model: Model) -> list[float]:
        weight = torch.nn.Parameter(torch.ones(3))

        def step(number: int) -> float:
            loss = (weight.half() * (1e-8, 4.0)[number]).float().sum()
            (loss * model.gradient_scale).backward()
            return float(loss)

        metrics = Loop(GivenStage(model, [weight], step, steps=2)).run().metrics
        return [row["gradient_norm"] for row in metrics if "loss" in row]

    model, unscaled = tiny_model(precision=torch.float16), tiny_model(precision=torch.float16)
    assert model.gradient_scale == loading.FIRST_GRADIENT_SCALE
    unscaled.gradient_scale = 1.0
    small, large = norms_of(model)
    assert norms_of(unscaled)[0] < small
    assert small == pytest.approx(3**0.5 * 1e-8, rel=0.1)
    assert large == pytest.approx(3**0.5 * 4.0)
    assert 1 < model.gradient_scale < loading.FIRST_GRADIENT_SCALE
