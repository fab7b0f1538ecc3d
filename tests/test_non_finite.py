"""Numbers that are not finite, wherever they come from, end in the sentence that names precision and learning rate."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import flags, run_here, save_rows
from tiny_models import ADAPTER, LAYERS, PROMPTS, GivenStage, add_random_adapter

from dcr_lite.data.rows import Conversation
from dcr_lite.errors import UserError
from dcr_lite.measure.general_ability import answer_loss
from dcr_lite.method.loop import Loop
from dcr_lite.model.adapters import train_only
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model, not_finite
from dcr_lite.model.states import last_states, layer_states
from dcr_lite.model.streaming import Growing, GrowingTogether

MakeModel = Callable[..., Model]
CURES = {
    torch.float16: "not finite in float16.*--precision bfloat16 or --precision float32 or a lower learning rate",
    torch.bfloat16: "not finite in bfloat16.*--precision float32 or a lower learning rate",
    torch.float32: "not finite in float32.*try a lower learning rate",
}


def overflowing(model: Model, layer: int = 1) -> Model:
    """The model with a layer whose output overflows, as float16's states do in models trained in bfloat16."""
    weight = model.network.get_decoder().layers[layer].mlp.down_proj.weight
    weight.data.fill_(torch.finfo(weight.dtype).max)
    return model


@pytest.mark.parametrize("precision", list(CURES))
def test_states_are_checked_where_they_are_read(tiny_model: MakeModel, precision: torch.dtype) -> None:
    """Geometry, read-outs and directions all rest on these two: no eigenvalues of NaN, no scikit-learn traceback."""
    model = overflowing(tiny_model(precision=precision))
    rows = encode_prompts(model.tokenizer, PROMPTS, model.window)
    with pytest.raises(UserError, match=rf"states of layer 2: {CURES[precision]}"):
        layer_states(model, rows, 2)
    with pytest.raises(UserError, match=f"states: {CURES[precision]}"):
        last_states(model, rows)


@pytest.mark.parametrize(
    ("capability", "cures"), [((7, 5), "try --precision float32 or"), ((8, 0), CURES[torch.float16])]
)
def test_a_card_is_not_told_to_take_what_it_lacks(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cures: str
) -> None:
    """A T4 has no bfloat16."""
    model = replace(tiny_model(precision=torch.float16), device="cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert re.search(cures, not_finite(model, "loss"))


def test_answers_and_losses_are_checked(tiny_model: MakeModel) -> None:
    """Refusal log-odds, of batches and of the stream in the demo, and the loss on held-out answers."""
    model = overflowing(tiny_model())
    rows = encode_prompts(model.tokenizer, PROMPTS, model.window)
    with pytest.raises(UserError, match=f"refusal log-odds: {CURES[torch.float32]}"):
        answer(model, rows, 2)
    with pytest.raises(UserError, match=f"refusal log-odds: {CURES[torch.float32]}"):
        GrowingTogether(model, [Growing(rows[0], 2)])
    with pytest.raises(UserError, match="log-probabilities of answers: not finite"):
        answer_loss(model, [Conversation("Name a cat.", "Tom.")])


@pytest.mark.parametrize("precision", list(CURES))
@pytest.mark.parametrize("what", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_ends_the_stage(
    tiny_model: MakeModel, precision: torch.dtype, what: str, value: float
) -> None:
    """Loss or gradient, in every precision: the stage and the step are named. In float16, where a lower scale is tried
    first, trying ends."""
    model = tiny_model(precision=precision)
    add_random_adapter(model)
    weights = train_only(model, ADAPTER, range(LAYERS))

    def step(number: int) -> float:
        for weight in weights:
            weight.grad = torch.full_like(weight, value if number == 2 and what == "gradient" else 1e-3)
        return value if number == 2 and what == "loss" else 1.0

    said = f"loss {value}" if what == "loss" else f"gradient norm {abs(value)}"
    if (precision, what) == (torch.float16, "gradient"):
        said = "gradients that are not finite at any scale"
    with pytest.raises(UserError, match=rf"stage1 became unstable at step 3, {said}: {CURES[precision]}"):
        Loop(GivenStage(model, weights, step, steps=5)).run()


@pytest.mark.parametrize("layer", [0, 3], ids=["below L", "above L"])
def test_a_run_says_so_in_one_sentence(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: int
) -> None:
    """The whole recipe with a model that overflows below L or above it: exit status 1, no traceback, and what was done
    before is kept."""
    from dcr_lite.run import opening

    load = opening.loading.load
    monkeypatch.setattr(opening.loading, "load", lambda *args: overflowing(load(*args), layer))
    run = tmp_path / "run"
    done = run_here(flags(tiny_folder("llama"), save_rows(tmp_path / "rows"), run, contrastive_steps=3))
    assert done.code == 1
    assert "not finite in float32" in done.err
    assert "a lower learning rate" in done.err
    assert "Traceback" not in done.err
    assert (run / "checkpoints" / "stage1.json").exists() == (layer == 3)


def test_a_learning_rate_that_is_far_too_high_ends_so(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """The real thing: safety SFT at a rate of 1e30."""
    changes: dict[str, Any] = {"sft_learning_rate": 1e30, "contrastive_steps": 2}
    done = run_here(flags(tiny_folder("llama"), save_rows(tmp_path / "rows"), tmp_path / "run", **changes))
    assert done.code == 1
    assert (
        "not finite in float32. Either numbers overflow, or training has gone astray: try a lower learning" in done.err
    )
