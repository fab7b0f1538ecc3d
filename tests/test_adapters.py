"""Claims about adapters and quantisation: what trains, what does not, and the stock model's answers."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import PeftModel, peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, save_and_load
from safetensors.torch import load_file
from tiny_models import ADAPTER, LAYERS, add_random_adapter, assert_close, assert_far, random_rows, take_gradients
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.model.adapters import (
    activate,
    adapter_weights,
    add_adapter,
    keep_on,
    load_adapter,
    save_adapter,
    set_adapter_weights,
    set_extra_ranks,
    stock,
    train_only,
)
from dcr_lite.model.hidden_states import decoder_of, prompt_states
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
IDS = torch.tensor(random_rows([12]))
ROWS = random_rows([5, 9, 3], shared=4)


def logits(model: Model) -> Tensor:
    model.network.eval()
    with torch.no_grad():
        return model.network(IDS).logits


def trainable(model: Model) -> set[str]:
    return {name for name, p in model.network.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("layers", [[0], [0, 1], [3], range(1, 3), range(LAYERS)])
def test_exactly_the_chosen_layers_train(tiny_model: MakeModel, layers: Any) -> None:
    """train_only makes both matrices of all seven linear maps of the chosen layers trainable, and nothing else."""
    model = tiny_model()
    add_adapter(model, "first", rank=4, seed=0)
    add_adapter(model, "second", rank=4, seed=1)
    chosen = train_only(model, "first", layers)
    expected = {
        name
        for name, _ in model.network.named_parameters()
        if ".first." in name and any(f".layers.{i}." in name for i in layers)
    }
    assert len(expected) == 14 * len(layers)
    assert trainable(model) == expected
    assert {id(p) for p in chosen} == {id(p) for p in model.network.parameters() if p.requires_grad}


def test_choosing_again_forgets_the_first_choice(tiny_model: MakeModel) -> None:
    """Stage 2's layers replace those of stage 1 rather than join them."""
    model = tiny_model()
    add_random_adapter(model)
    train_only(model, ADAPTER, range(2))
    train_only(model, ADAPTER, [3])
    assert {".layers.3." in name for name in trainable(model)} == {True}


def test_no_layer_to_train_is_an_error(tiny_model: MakeModel) -> None:
    """Training above the last layer is a UserError."""
    model = tiny_model()
    add_random_adapter(model)
    with pytest.raises(UserError, match="no layer is left"):
        train_only(model, ADAPTER, range(LAYERS, LAYERS))


def test_loading_and_activating_leave_nothing_trainable(tiny_model: MakeModel) -> None:
    """A loaded model, a fresh adapter, a second one and an activated one have no trainable weight."""
    model = tiny_model()
    assert trainable(model) == set()
    for name in ("first", "second"):
        add_adapter(model, name, rank=4, seed=0)
        assert trainable(model) == set()
    activate(model, "first")
    assert trainable(model) == set()


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "raises"])
def test_using_the_stock_model_leaves_training_as_it_was(tiny_model: MakeModel, fails: bool) -> None:
    """After stock(), whether its block ends or raises, the same weights train as before and the adapter is on."""
    model = tiny_model()
    add_random_adapter(model)
    train_only(model, ADAPTER, range(2))
    before, adapted = trainable(model), logits(model)
    with contextlib.suppress(KeyboardInterrupt), stock(model):
        if fails:
            raise KeyboardInterrupt
    assert trainable(model) == before
    assert torch.equal(logits(model), adapted)


@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "NF4"])
def test_the_stock_model_is_what_was_loaded(tiny_model: MakeModel, four_bit: bool) -> None:
    """stock() gives bit for bit the logits from before any adapter came, and the adapter changes them outside."""
    model = tiny_model(four_bit=four_bit)
    loaded = logits(model)
    with stock(model):
        assert torch.equal(logits(model), loaded)  # without an adapter it is there already
    add_random_adapter(model, "first")
    add_random_adapter(model, "second", seed=1)
    with stock(model):
        assert torch.equal(logits(model), loaded)
        with stock(model):
            pass
        assert torch.equal(logits(model), loaded)  # the inner block changes back to what it found
    assert_far(logits(model), loaded)
    with stock(model):
        assert torch.equal(logits(model), loaded)


def test_all_modules_are_in_one_mode(tiny_model: MakeModel) -> None:
    """Those of a new adapter too, whether the model trained when it came or not; so the mode of the network is that of
    every module in it."""
    model = tiny_model()
    for name, training in (("first", False), ("second", True)):
        model.set_training(training)
        add_adapter(model, name, rank=4, seed=0)
        for mode in (False, True, True):
            model.set_training(mode)
            assert {module.training for module in model.network.modules()} == {mode}


def test_a_fresh_adapter_changes_nothing(tiny_model: MakeModel) -> None:
    """LoRA begins at zero, on the seven linear maps of every layer with scale 1, and not on the vocabulary."""
    model = tiny_model()
    loaded = logits(model)
    add_adapter(model, ADAPTER, rank=4, seed=0)
    torch.testing.assert_close(logits(model), loaded, rtol=1e-6, atol=1e-6)
    carrying = {name: m for name, m in model.network.named_modules() if isinstance(m, LoraLayer)}
    assert len(carrying) == 7 * LAYERS
    assert all(".layers." in name and m.scaling[ADAPTER] == 1 for name, m in carrying.items())


def test_adapters_are_drawn_from_their_seed(tiny_model: MakeModel) -> None:
    """One seed gives one adapter whatever was drawn before, another seed another."""
    drawn = []
    for seed in (0, 0, 1):
        torch.rand(len(drawn) + 1)
        model = tiny_model()
        add_adapter(model, ADAPTER, rank=4, seed=seed)
        drawn.append(adapter_weights(model, ADAPTER))
    assert all(torch.equal(drawn[0][k], drawn[1][k]) for k in drawn[0])
    assert any(not torch.equal(drawn[0][k], drawn[2][k]) for k in drawn[0])


def test_adapter_weights_stay_in_float32(tiny_model: MakeModel) -> None:
    """A bfloat16 model trains its adapter in float32, where small steps are not rounded away."""
    model = tiny_model(precision=torch.bfloat16)
    add_adapter(model, ADAPTER, rank=4, seed=0)
    assert {p.dtype for p in train_only(model, ADAPTER, range(LAYERS))} == {torch.float32}


def test_weights_come_back_as_they_were(tiny_model: MakeModel) -> None:
    """adapter_weights is a copy of all weights; set_adapter_weights puts back exactly that, into another model too."""
    model = tiny_model()
    written = add_random_adapter(model)
    saved = adapter_weights(model, ADAPTER)
    assert len(saved) == 14 * LAYERS
    assert all(torch.equal(saved[k], written[k]) for k in written)
    before = logits(model)
    for parameter in train_only(model, ADAPTER, range(LAYERS)):
        parameter.data.mul_(-2)
    assert all(torch.equal(saved[k], written[k]) for k in written)
    assert_far(logits(model), before)
    set_adapter_weights(model, ADAPTER, saved)
    assert torch.equal(logits(model), before)
    other = tiny_model()
    add_adapter(other, ADAPTER, rank=4, seed=7)
    set_adapter_weights(other, ADAPTER, saved)
    assert torch.equal(logits(other), before)


def test_putting_weights_back_keeps_what_trains(tiny_model: MakeModel) -> None:
    """Resuming puts weights into the very parameters that the optimizer holds, still trainable."""
    model = tiny_model()
    weights = add_random_adapter(model)
    parameters = train_only(model, ADAPTER, range(2))
    before = trainable(model)
    set_adapter_weights(model, ADAPTER, {k: 2 * v for k, v in weights.items()})
    assert trainable(model) == before
    known = {id(p) for p in model.network.parameters() if p.requires_grad}
    assert {id(p) for p in parameters} == known
    assert any(torch.equal(parameters[0], 2 * v) for v in weights.values())


def test_weights_of_a_deeper_model_are_refused(tiny_model: MakeModel) -> None:
    """Weights for layers that the model lacks raise UserError instead of being dropped."""
    model = tiny_model()
    weights = add_random_adapter(model)
    deeper = {k.replace("layers.3", "layers.9"): v for k, v in weights.items()} | weights
    with pytest.raises(UserError, match="do not fit"):
        set_adapter_weights(model, ADAPTER, deeper)


def test_two_adapters_do_not_leak_into_each_other(tiny_model: MakeModel) -> None:
    """Each adapter answers as if it were alone, and training one leaves the other's weights as they are."""
    alone = {}
    for name, seed in (("first", 0), ("second", 1)):
        model = tiny_model()
        add_random_adapter(model, name, seed)
        alone[name] = logits(model)
    assert_far(alone["first"], alone["second"])

    model = tiny_model()
    add_random_adapter(model, "first", 0)
    weights = add_random_adapter(model, "second", 1)
    assert torch.equal(logits(model), alone["second"])
    activate(model, "first")
    assert torch.equal(logits(model), alone["first"])

    parameters = train_only(model, "first", range(LAYERS))
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    prompt_states(model.network, model.batch(ROWS), 2).sum().backward()
    optimizer.step()
    assert_far(logits(model), alone["first"])
    kept = adapter_weights(model, "second")
    assert all(torch.equal(kept[k], weights[k]) for k in weights)
    activate(model, "second")
    assert torch.equal(logits(model), alone["second"])


@pytest.mark.parametrize("four_bit", [False, True])
def test_an_adapter_kept_on_one_map_is_that_map_alone(tiny_model: MakeModel, four_bit: bool, tmp_path: Path) -> None:
    """It answers as the whole adapter would with all else at zero, turned or not; another adapter stays whole; and it
    can be saved, loaded, and set once more."""
    module = "model.layers.2.mlp.down_proj"
    a, b = torch.randn(1, 128), torch.randn(64, 1)

    def turned(kept: bool) -> Model:
        model = tiny_model(four_bit=four_bit)
        others = add_random_adapter(model, "other", 1)
        weights = add_random_adapter(model)
        set_adapter_weights(model, ADAPTER, {k: v if module in k else 0 * v for k, v in weights.items()})
        if kept:
            keep_on(model, ADAPTER, module)
        set_extra_ranks(model, ADAPTER, module, a, b)
        assert adapter_weights(model, "other").keys() == others.keys()
        return model

    model = turned(kept=True)
    assert_close(logits(model), logits(turned(kept=False)), 1e-5)
    assert trainable(model) == set()
    weights = adapter_weights(model, ADAPTER)
    assert {key.split(".lora_")[0] for key in weights} == {f"base_model.model.{module}"}
    save_adapter(model, ADAPTER, tmp_path / "adapter")
    loaded = tiny_model(four_bit=four_bit)
    load_adapter(loaded, ADAPTER, tmp_path / "adapter")
    assert_close(logits(loaded), logits(model), 1e-6)
    again = tiny_model(four_bit=four_bit)
    add_adapter(again, ADAPTER, rank=4, seed=3)
    keep_on(again, ADAPTER, module)
    set_adapter_weights(again, ADAPTER, weights)
    assert_close(logits(again), logits(model), 1e-6)


@pytest.mark.parametrize("architecture", ["llama", "phi3", "gemma3"])
def test_layers_to_which_an_adapter_adds_nothing_are_not_saved(
    tiny_model: MakeModel, reference: Callable[..., Any], architecture: str, tmp_path: Path
) -> None:
    """The file has every map of the others; peft itself answers with it as before; and it takes the place of any other
    weights. An adapter that adds nothing anywhere is saved whole."""
    model = tiny_model(architecture)
    weights = add_random_adapter(model)
    used = [key for key in weights if ".layers.1." in key or ".layers.2." in key]
    set_adapter_weights(model, ADAPTER, {key: weight if key in used else 0 * weight for key, weight in weights.items()})
    save_adapter(model, ADAPTER, tmp_path / "some")
    stored = load_file(tmp_path / "some" / "adapter_model.safetensors")
    assert sorted(stored) == sorted(used)
    loaded = PeftModel.from_pretrained(reference(architecture), str(tmp_path / "some")).eval()
    with torch.no_grad():
        assert_close(loaded(IDS).logits, logits(model), 1e-5)
    other = tiny_model(architecture)
    add_random_adapter(other, ADAPTER, 1)
    set_adapter_weights(other, ADAPTER, stored)
    assert_close(logits(other), logits(model), 1e-6)
    set_adapter_weights(model, ADAPTER, {key: 0 * weight for key, weight in weights.items()})
    save_adapter(model, ADAPTER, tmp_path / "none")
    assert load_file(tmp_path / "none" / "adapter_model.safetensors").keys() == weights.keys()


def test_an_adapter_is_loaded_onto_the_device_of_its_model(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A first adapter and another one: with --device cpu a card beside it, which may be full, is left alone."""

    def look_for_a_card() -> str:
        raise RuntimeError("looked for a card")

    model = tiny_model()
    add_random_adapter(model)
    save_adapter(model, ADAPTER, tmp_path / "adapter")
    for module in (peft_model, save_and_load):
        monkeypatch.setattr(module, "infer_device", look_for_a_card)
    loaded = tiny_model()
    for name in ("first", "second"):
        load_adapter(loaded, name, tmp_path / "adapter")
        assert torch.equal(logits(loaded), logits(model))


# --- 4-bit NF4 on the CPU ---------------------------------------------------------------------------------------------


def linears_in_four_bit(model: Model) -> list[Any]:
    return [m for m in model.network.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]


def first_layer_gradients(model: Model, evaluate_first: bool) -> list[Tensor]:
    """Adapter gradients at layer 0 of a loss on the states of layer 2, perhaps after an evaluation pass."""
    if evaluate_first:
        with model.compute():
            logits(model)
    model.network.train()
    parameters = train_only(model, ADAPTER, [0])
    with model.compute():
        states = prompt_states(model.network, model.batch(ROWS), 2)
    states.tanh().sum().backward()
    return take_gradients(parameters)


def make_four_bit(tiny_model: MakeModel, precision: torch.dtype) -> Model:
    model = tiny_model(precision=precision, four_bit=True)
    add_random_adapter(model)
    return model


def test_all_decoder_maps_are_in_four_bits(tiny_model: MakeModel) -> None:
    """All seven linear maps of every layer are NF4 with double quantisation, and none may repack its weights."""
    model = tiny_model(four_bit=True)
    maps = linears_in_four_bit(model)
    assert len(maps) == 7 * LAYERS
    assert {m.weight.quant_type for m in maps} == {"nf4"}
    assert all(m.weight.quant_state.nested for m in maps)
    assert not any(m.support_avx512bf16_for_cpu for m in maps)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_an_evaluation_pass_does_not_spoil_training_in_four_bits(tiny_model: MakeModel, precision: torch.dtype) -> None:
    """Gradients at layer 0 are the same, bit for bit, whether or not an evaluation pass came first."""
    plain = first_layer_gradients(make_four_bit(tiny_model, precision), evaluate_first=False)
    after = first_layer_gradients(make_four_bit(tiny_model, precision), evaluate_first=True)
    assert all(g.abs().max() > 0 for g in plain)
    assert all(torch.equal(a, b) for a, b in zip(after, plain, strict=True))


@pytest.mark.skipif(not has_avx512bf16(), reason="bitsandbytes repacks weights on AVX512-BF16 processors only")
def test_repacked_weights_would_spoil_training(tiny_model: MakeModel) -> None:
    """So that the test above cannot pass idly: with repacking allowed the gradients are others."""
    plain = first_layer_gradients(make_four_bit(tiny_model, torch.bfloat16), evaluate_first=False)
    model = make_four_bit(tiny_model, torch.bfloat16)
    for module in linears_in_four_bit(model):
        module.support_avx512bf16_for_cpu = True
    spoilt = first_layer_gradients(model, evaluate_first=True)
    assert any((a - b).norm() > 0.1 * b.norm() for a, b in zip(spoilt, plain, strict=True))


def test_training_in_four_bits_lowers_the_loss(tiny_model: MakeModel) -> None:
    """A few steps of the adapter on a 4-bit model lower a language-modelling loss, between evaluation passes."""
    model = tiny_model(precision=torch.bfloat16, four_bit=True)
    add_adapter(model, ADAPTER, rank=4, seed=0)
    optimizer = torch.optim.AdamW(train_only(model, ADAPTER, range(LAYERS)), lr=1e-2)

    def loss() -> Tensor:
        with model.compute():
            return model.network(input_ids=IDS, labels=IDS).loss

    def seen() -> float:
        model.network.eval()
        with torch.no_grad():
            return loss().item()

    losses = [seen()]
    for _ in range(3):
        model.network.train()
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(seen())
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.97 * losses[0]


def test_four_bit_states_stay_near_the_full_ones(tiny_model: MakeModel) -> None:
    """Quantisation moves the states a little and does not turn them into others (cosine above 0.9)."""
    full, quantised = tiny_model(), tiny_model(four_bit=True)
    assert decoder_of(quantised.network).layers[0].self_attn.q_proj.weight.dtype == torch.uint8
    with torch.no_grad():
        a, b = (prompt_states(m.network, m.batch(ROWS), 2) for m in (full, quantised))
    assert torch.nn.functional.cosine_similarity(a, b).min() > 0.9


def test_an_adapters_weights_are_read_without_asking_the_hub(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An adapter that names its base model on the Hub is saved without a request there: every checkpoint would wait."""
    asked: list[Any] = []
    monkeypatch.setattr(save_and_load, "check_file_exists_on_hf_hub", lambda *args, **kwargs: asked.append(args))
    model = tiny_model()
    add_random_adapter(model)
    model.network.peft_config[ADAPTER].base_model_name_or_path = "owner/model"
    assert adapter_weights(model, ADAPTER)
    assert not asked
    get_peft_model_state_dict(model.network, adapter_name=ADAPTER)
    assert asked  # what peft does by itself
