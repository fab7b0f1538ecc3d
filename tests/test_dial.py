"""Claims about the dial: one number in the adapter that shifts the states of layer L and comes off again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finished_runs import logits
from tiny_models import ADAPTER, assert_close, assert_far, random_rows
from tiny_models import add_random_adapter as add_random
from torch import Tensor

from dcr_lite.data.rows import Conversation, Pair, read_conversations, read_pairs
from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun
from dcr_lite.files import SHIPPED, save_tensors
from dcr_lite.method.contrastive import encode_pairs
from dcr_lite.method.dial import RIDGE, Dial, fit_dial, ridge, set_strength
from dcr_lite.model.adapters import activate, adapter_weights, stock
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states

MakeModel = Callable[..., Model]
LAYER = 2
PAIRS: list[Pair] = read_pairs(SHIPPED / "pairs.jsonl")
TEXTS: list[Conversation] = read_conversations(SHIPPED / "instructions.jsonl")
ROW = random_rows([30])[0]


def make(tiny_model: MakeModel, architecture: str = "llama", four_bit: bool = False) -> tuple[Model, Dial]:
    """A tiny model with an adapter and a dial. Its states get what those of real models have: a common component."""
    model = tiny_model(architecture, four_bit=four_bit)
    decoder_of(model.network).embed_tokens.weight.data += torch.linspace(-1, 1, 64)
    add_random(model)
    return model, fit_dial(model, ADAPTER, LAYER, PAIRS[:40], TEXTS[:20])


def shifts(model: Model, dial: Dial, strength: float, rows: list[list[int]]) -> Tensor:
    """How the dial moves the states of L at every token of the rows: (tokens, d_model)."""
    states = []
    for value in (0.0, strength):
        set_strength(model, ADAPTER, dial, value)
        with torch.no_grad(), model.compute():
            batch = model.batch(rows, 0)
            states.append(states_at_layer(model.network, batch, dial.layer)[torch.cat(batch.index)].float())
    set_strength(model, ADAPTER, dial, 0)
    return states[1] - states[0]


def unseen_rows(model: Model) -> list[list[int]]:
    """Prompts, and instructions with their answers, that the dial was not fitted on."""
    some = TEXTS[100:106]
    answered = encode_conversations(model.tokenizer, [c.prompt for c in some], [c.response for c in some], model.window)
    return encode_pairs(model, PAIRS[200:206]) + [prompt + answer for prompt, answer in answered]


def test_every_token_of_a_real_model_is_shifted_alike(smollm2: tuple[FinishedRun, Model]) -> None:
    """At every token of texts that it was not fitted on, the dial adds its strength times the shift and nothing across
    it: 1 +- 0.15 times, but at the very first token, whose state is unlike all others."""
    _, model = smollm2
    activate(model, ADAPTER)
    dial = fit_dial(model, ADAPTER, 15, PAIRS[:64], TEXTS[:32])
    rows = unseen_rows(model)
    starts = torch.tensor([0, *map(len, rows[:-1])]).cumsum(0)
    for strength in (1.0, -0.5):
        moved = shifts(model, dial, strength, rows)
        along = moved @ dial.shift / dial.shift.square().sum() / strength
        assert (moved - strength * along[:, None] * dial.shift).norm() < 1e-3 * moved.norm()
        along[starts] = 1
        assert along.mean().item() == pytest.approx(1, abs=0.03)
        assert along.std() < 0.15
        assert along.min() > 0.4


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "NF4"])
def test_every_architecture_is_shifted(tiny_model: MakeModel, architecture: str, four_bit: bool) -> None:
    """The dial of each architecture, on a 4-bit base too, adds the shift, near its size on texts that were not seen."""
    model, dial = make(tiny_model, architecture, four_bit)
    moved = shifts(model, dial, 2.0, unseen_rows(model))
    along = moved @ dial.shift / dial.shift.square().sum() / 2.0
    assert along.mean().item() == pytest.approx(1, abs=0.1)
    assert along.std() < 0.4
    assert_close(moved, 2.0 * along[:, None] * dial.shift, 1e-3)


def test_the_shift_is_what_lies_between_the_two_kinds(tiny_model: MakeModel) -> None:
    """``shift`` is the mean state of seemingly toxic minus that of toxic training prompts at L, under the adapter."""
    model, dial = make(tiny_model)
    states = layer_states(model, encode_pairs(model, PAIRS[:40]), LAYER)
    assert_close(dial.shift, states[40:].mean(0) - states[:40].mean(0), 1e-4)
    with stock(model):
        states = layer_states(model, encode_pairs(model, PAIRS[:40]), LAYER)
    assert_far(dial.shift, states[40:].mean(0) - states[:40].mean(0))


def test_the_key_solves_ridge_regression() -> None:
    """The dual solution is that of the normal equations, with more tokens than inputs and with fewer."""
    generator = torch.Generator().manual_seed(0)
    for tokens in (12, 60):
        x, y = torch.randn(tokens, 24, generator=generator) + 1, torch.randn(tokens, generator=generator)
        penalty = RIDGE * x.square().mean() * tokens
        expected = torch.linalg.solve(x.T @ x + penalty * torch.eye(24), x.T @ y)
        assert_close(ridge(x, y), expected, 1e-4)


def test_strength_0_is_the_adapter_as_trained(tiny_model: MakeModel) -> None:
    """After any strengths, 0 gives bit for bit the weights and the logits from before, and other layers, the other
    ranks and other adapters never change."""
    model, dial = make(tiny_model)
    add_random(model, "second", seed=1)
    activate(model, ADAPTER)
    weights, before = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    second = adapter_weights(model, "second")
    for strength in (10.0, -30.0):
        set_strength(model, ADAPTER, dial, strength)
        assert_far(logits(model.network, ROW), before)
        turned = adapter_weights(model, ADAPTER)
        changed = {key for key in weights if weights[key].shape != turned[key].shape}
        assert {key.split("lora_")[0] for key in changed} == {f"base_model.model.model.layers.{LAYER}.mlp.down_proj."}
        for key, value in weights.items():
            kept = turned[key][:4] if "lora_A" in key else turned[key][:, :4]
            assert torch.equal(kept if key in changed else turned[key], value)
    set_strength(model, ADAPTER, dial, 0)
    assert torch.equal(logits(model.network, ROW), before)
    assert all(torch.equal(value, weights[key]) for key, value in adapter_weights(model, ADAPTER).items())
    assert all(torch.equal(value, second[key]) for key, value in adapter_weights(model, "second").items())


def test_turning_again_replaces_what_was_set(tiny_model: MakeModel) -> None:
    """The logits of a strength do not depend on the strengths before it."""
    model, dial = make(tiny_model)
    set_strength(model, ADAPTER, dial, 1.5)
    once = logits(model.network, ROW)
    for strength in (-2.0, 0.0, 0.3, 1.5):
        set_strength(model, ADAPTER, dial, strength)
    assert torch.equal(logits(model.network, ROW), once)


def test_a_dial_comes_back_from_its_file(tiny_model: MakeModel, tmp_path: Path) -> None:
    """save and load keep every bit; a damaged or missing file, other shapes and numbers that are not finite are
    UserErrors that name the file."""
    _, dial = make(tiny_model)
    file = tmp_path / "dial" / "dial.safetensors"
    dial.save(file)
    back = Dial.load(file)
    assert back.layer == dial.layer
    assert torch.equal(back.shift, dial.shift)
    assert torch.equal(back.key, dial.key)
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
        Dial.load(file)
    for wrong in ({"key": dial.key[None]}, {"key": dial.key * torch.inf}, {"layer": torch.zeros(2)}):
        save_tensors({"layer": torch.tensor(2), "shift": dial.shift, "key": dial.key} | wrong, file)
        with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
            Dial.load(file)
    save_tensors({"shift": dial.shift}, file)
    with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
        Dial.load(file)


def test_a_dial_of_another_model_is_refused(tiny_model: MakeModel) -> None:
    """Another width, and layers without the map that carries a dial, are said in a sentence."""
    _, dial = make(tiny_model)
    other = tiny_model(intermediate_size=160)
    add_random(other)
    with pytest.raises(UserError, match="belongs to another model"):
        set_strength(other, ADAPTER, dial, 1)
    without = tiny_model("lfm2")
    add_random(without)
    with pytest.raises(UserError, match="lfm2 cannot carry a dial"):
        fit_dial(without, ADAPTER, LAYER, PAIRS[:4], TEXTS[:4])
