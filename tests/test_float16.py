"""Claims about float16, for cards that do not multiply bfloat16 (a T4): small gradients are not rounded away."""

from collections.abc import Callable

import pytest
import torch

from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.method.contrastive import Contrastive, contrastive_refinement
from dcr_lite.method.loop import Loop
from dcr_lite.method.losses import supervised_contrastive
from dcr_lite.method.safety_sft import SafetySFT, safety_sft
from dcr_lite.model import loading
from dcr_lite.model.adapters import add_adapter
from dcr_lite.model.loading import Model

THINGS = ("cake", "clock", "letter", "horse", "lamp", "bridge")


def losses_of(tiny_model: Callable[..., Model], precision: torch.dtype) -> dict[str, list[float]]:
    """Losses of both stages, a few steps of each."""
    model = tiny_model(precision=precision)
    add_adapter(model, "first", rank=4, seed=0)
    pairs = [Pair(f"Can I hit a man with a {t}?", f"Can I hit a {t} with a man?") for t in THINGS]
    how = Contrastive(2, supervised_contrastive(0.5), "batch", False, 6, 8, 1e-2)
    first = contrastive_refinement(model, "first", pairs, pairs, how, seed=0)
    rows = [Conversation(f"Name a {t}.", f"Here is a {t}.") for t in THINGS]
    second = safety_sft(model, "first", rows, SafetySFT(2, 3, 4, 1e-2), seed=0)
    return {name: [r["loss"] for r in done.metrics if "loss" in r] for name, done in (("1", first), ("2", second))}


def test_float16_trains_as_float32_does(tiny_model: Callable[..., Model]) -> None:
    """Both stages in float16 follow the losses of float32 to 3 per cent, adapters in float32 all the while."""
    half, single = losses_of(tiny_model, torch.float16), losses_of(tiny_model, torch.float32)
    for stage, losses in single.items():
        assert half[stage] == pytest.approx(losses, rel=0.03)
        assert losses[-1] < losses[0]


def test_small_gradients_survive_float16(tiny_model: Callable[..., Model]) -> None:
    """A gradient that float16 rounds to nothing comes through scaled, in its true size; one that overflows comes with
    a smaller scale, and the step is taken all the same."""
    found = []
    for scaled in (False, True):
        model = tiny_model(precision=torch.float16)
        assert model.gradient_scale == loading.FIRST_GRADIENT_SCALE
        weight = torch.nn.Parameter(torch.ones(3))
        if not scaled:
            model.gradient_scale = 1.0

        def backward(step: int, model: Model = model, weight: torch.nn.Parameter = weight) -> float:
            loss = (weight.half() * 1e-8).float().sum() if step == 0 else (weight.half() * 4.0).float().sum()
            (loss * model.gradient_scale).backward()
            return float(loss)

        loop = Loop("stage1", model, "first", [weight], 2, 1e-2, backward, lambda step: {}, 10)
        first = loop._gradients(0), weight.grad.clone() if weight.grad is not None else None
        weight.grad = None
        loop._gradients(1)
        found.append((first[1], weight.grad, model.gradient_scale))
    (lost, _, _), (kept, large, scale) = found
    assert lost is not None
    assert kept is not None
    assert lost.abs().max() < kept.abs().max()
    assert kept == pytest.approx(torch.full((3,), 1e-8), rel=0.1)
    assert large == pytest.approx(torch.full((3,), 4.0))
    assert 1 < scale < loading.FIRST_GRADIENT_SCALE
