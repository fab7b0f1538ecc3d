"""Claims about the dial: one number in the adapter that shifts the states of layer L and comes off again."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from finished_runs import MakeRun, divergence, logits
from llama_cpp import llama_cpp
from peft import PeftModel
from tiny_models import ADAPTER, OPENINGS, assert_close, assert_far, load_reference, load_tiny, random_rows
from tiny_models import add_random_adapter as add_random
from torch import Tensor

from dcr_lite.data.rows import Conversation, Pair, read_conversations, read_pairs
from dcr_lite.data.sources import SMOLLM2, locate
from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun, export_gguf, export_merged
from dcr_lite.export.merge import Merged
from dcr_lite.files import SHIPPED, save_tensors
from dcr_lite.measure.metrics import auroc
from dcr_lite.method import dial_fitting
from dcr_lite.method.contrastive import encode_pairs, first_pairs
from dcr_lite.method.dial import Dial, set_strength
from dcr_lite.method.dial_fitting import (
    GRADIENT_PAIRS,
    NATS,
    RIDGE,
    RISE,
    _spread,
    find_gain,
    fit_dial,
    fit_readers,
    prompts_read,
    read_inputs,
    ridge,
)
from dcr_lite.model.adapters import activate, adapter_weights, load_adapter, save_adapter, set_adapter_weights
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model
from dcr_lite.model.states_below import RefinedStates

MakeModel = Callable[..., Model]
LAYER = 2
PAIRS: list[Pair] = read_pairs(SHIPPED / "pairs.jsonl")
TEXTS: list[Conversation] = read_conversations(SHIPPED / "instructions.jsonl")
ROW = random_rows([30])[0]


FITTED: dict[tuple[str, bool], Dial] = {}  # the models are always the same, and a dial is only read


def make(tiny_model: MakeModel, architecture: str = "llama", four_bit: bool = False) -> tuple[Model, Dial]:
    """A tiny model with an adapter and a dial. Its states get what those of real models have: a common component, which
    in Gemma 2 may not be as large, or all logits would be at their cap, where nothing changes them."""
    model = tiny_model(architecture, four_bit=four_bit)
    model.openings = OPENINGS
    size = 0.1 if architecture == "gemma2" else 1.0
    decoder_of(model.network).embed_tokens.weight.data += size * torch.linspace(-1, 1, 64)
    add_random(model)
    key = architecture, four_bit
    if key not in FITTED:
        FITTED[key] = fit_dial(model, ADAPTER, LAYER, PAIRS[:40], TEXTS[:20])
    return model, FITTED[key]


def shifts(model: Model, dial: Dial, rows: list[list[int]], *strengths: float) -> list[Tensor]:
    """How the dial moves the states of L at every token of the rows, for each strength: (tokens, d_model)."""
    states = []
    for value in (None, *strengths):
        set_strength(model, ADAPTER, dial, value)
        with torch.no_grad(), model.compute():
            batch = model.batch(rows, 0)
            states.append(states_at_layer(model.network, batch, dial.layer)[torch.cat(batch.index)].float())
    set_strength(model, ADAPTER, dial, None)
    return [moved - states[0] for moved in states[1:]]


def unseen_rows(model: Model) -> list[list[int]]:
    """Prompts, and instructions with their answers, that the dial was not fitted on."""
    some = TEXTS[100:104]
    answered = encode_conversations(model.tokenizer, [c.prompt for c in some], [c.response for c in some], model.window)
    return encode_pairs(model, PAIRS[200:204]) + [prompt + answer for prompt, answer in answered]


@pytest.fixture(scope="module")
def real_dial(smollm2: tuple[FinishedRun, Model]) -> Dial:
    """Of SmolLM2-135M-Instruct with a random adapter; its direction by fewer prompts, which take long to go back
    through: what a real model is asked below holds in any direction."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dial_fitting, "GRADIENT_PAIRS", 3)
        return fit_dial(smollm2[1], ADAPTER, 15, PAIRS[:48], TEXTS[:24])


def test_every_token_of_a_real_model_is_shifted_alike(smollm2: tuple[FinishedRun, Model], real_dial: Dial) -> None:
    """At every token of texts that it was not fitted on, the dial adds its strength times the shift and nothing across
    it: 1 +- 0.15 times, but at the very first token, whose state is unlike all others."""
    (_, model), dial = smollm2, real_dial
    rows = unseen_rows(model)
    starts = torch.tensor([0, *map(len, rows[:-1])]).cumsum(0)
    strengths = (1.0, -0.5)
    for strength, moved in zip(strengths, shifts(model, dial, rows, *strengths), strict=True):
        along = moved @ dial.shift / dial.shift.square().sum() / strength
        assert (moved - strength * along[:, None] * dial.shift).norm() < 1e-3 * moved.norm()
        along[starts] = 1
        assert along.mean().item() == pytest.approx(1, abs=0.03)
        assert along.std() < 0.15
        assert along.min() > 0.4


@pytest.mark.parametrize(
    ("architecture", "four_bit"),
    [*((name, False) for name in ("llama", "qwen2", "qwen3", "mistral", "smollm3", "phi3")), ("llama", True)],
)
def test_every_architecture_is_shifted(tiny_model: MakeModel, architecture: str, four_bit: bool) -> None:
    """The dial of each architecture, on a 4-bit base too, adds the shift, near its size on texts that were not seen."""
    model, dial = make(tiny_model, architecture, four_bit)
    (moved,) = shifts(model, dial, unseen_rows(model), 2.0)
    along = moved @ dial.shift / dial.shift.square().sum() / 2.0
    assert along.mean().item() == pytest.approx(1, abs=0.1)
    assert along.std() < 0.4
    assert_close(moved, 2.0 * along[:, None] * dial.shift, 1e-3)


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "olmo3"])
def test_behind_a_norm_the_shift_is_bounded(tiny_model: MakeModel, architecture: str) -> None:
    """Gemma and OLMo 3 take a norm of what carries the dial. A shift that is small beside it arrives as wanted; with
    larger ones the state moves on in its direction, by less and less, and by no more than the norm lets through."""
    model, dial = make(tiny_model, architecture)
    rows = unseen_rows(model)
    norm = decoder_of(model.network).layers[LAYER].post_feedforward_layernorm
    gain = norm.weight + (0 if architecture == "olmo3" else 1)
    size = (dial.shift / gain).square().mean().sqrt().item()  # beside 1, which the norm puts out
    reached, sizes = [], (0.1, 0.3, 1.0, 10.0)
    for wanted, moved in zip(sizes, shifts(model, dial, rows, *(wanted / size for wanted in sizes)), strict=True):
        along = moved @ dial.shift / dial.shift.square().sum()
        reached.append(along.mean().item() * size)
        if wanted < 1:
            assert reached[-1] == pytest.approx(wanted, rel=0.1)
            assert along.std() < 0.1 * along.mean()
            assert (moved - along[:, None] * dial.shift).norm() < 0.3 * moved.norm()
    assert reached == sorted(reached)
    assert reached[-1] < 1.5


def log_odds(model: Model, rows: list[list[int]]) -> Tensor:
    return torch.tensor([one.refusal_log_odds for one in answer(model, rows, max_new_tokens=0)])


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_the_shift_follows_the_models_own_log_odds(tiny_model: MakeModel, architecture: str) -> None:
    """A small strength lowers the mean log-odds of refusing the prompts that the direction was found on by NATS times
    itself, and in a model without a norm behind it no other direction of the same size lowers them nearly as fast."""
    model, dial = make(tiny_model, architecture)
    prompts = first_pairs(encode_pairs(model, PAIRS[:40]), GRADIENT_PAIRS)

    def slope(shift: Tensor) -> float:
        odds = []
        for strength in (0.01, -0.01):
            set_strength(model, ADAPTER, replace(dial, shift=shift), strength)
            odds.append(log_odds(model, prompts).mean().item())
        set_strength(model, ADAPTER, dial, None)
        return (odds[0] - odds[1]) / 0.02

    assert slope(dial.shift) == pytest.approx(-NATS, rel=0.05)
    for seed in range(3 if architecture == "llama" else 0):
        other = torch.randn(64, generator=torch.Generator().manual_seed(seed))
        assert abs(slope(other * dial.shift.norm() / other.norm())) < 0.8 * NATS


def test_the_reader_knows_the_kinds_of_a_real_model(smollm2: tuple[FinishedRun, Model], real_dial: Dial) -> None:
    """At the end of prompts that it was not fitted on it tells the kinds apart, and at other tokens it reads little."""
    (_, model), dial = smollm2, real_dial
    rows = encode_pairs(model, PAIRS[400:440])
    read = [row.inputs @ dial.reader for row in read_inputs(model, dial.layer, rows, [0.0] * len(rows))]
    ends = torch.stack([one[-1] for one in read])
    assert auroc(ends[40:].tolist(), ends[:40].tolist()) > 0.6
    assert torch.cat([one[:-1] for one in read]).square().mean().sqrt() < 0.5 * ends.square().mean().sqrt()


def test_gain_adds_the_shift_by_what_is_read(tiny_model: MakeModel) -> None:
    """With a gain, layer L puts out the shift times gain and what the reader reads of each token, beside strength."""
    model, dial = make(tiny_model)
    (row,) = read_inputs(model, LAYER, [ROW], [0.0])
    strong = replace(dial, gain=1.3)
    moved, both = shifts(model, strong, [ROW], 0.0, 0.7)
    along = moved @ dial.shift / dial.shift.square().sum()
    assert_close(moved, along[:, None] * dial.shift, 1e-3)
    for read in (1.3 * row.inputs @ dial.reader).tolist():
        assert (along - read).abs().min() < 1e-3 * along.abs().max()
    assert_close(both, moved + shifts(model, dial, [ROW], 0.7)[0], 1e-3)


def test_a_gain_is_taken_where_it_tells_the_kinds_apart(tiny_model: MakeModel) -> None:
    """A gain is taken where unseen prompts are told apart better; the AUROC by gain is that of the log-odds there. A
    reader that has it the wrong way round gets none."""
    model, _ = make(tiny_model)
    known = [Pair(f"{pair.toxic} red", f"{pair.toxic} blue") for pair in PAIRS[:60]]
    dial = fit_dial(model, ADAPTER, LAYER, known[:40], TEXTS[:20])
    dial = replace(dial, reader=4 * dial.reader)  # a random model's states tell little
    rows = encode_pairs(model, known[40:])
    found, aurocs = find_gain(model, ADAPTER, dial, rows)
    assert found.gain > 0
    assert aurocs[str(found.gain)] >= aurocs["0.0"] + RISE
    set_strength(model, ADAPTER, found, 0)
    odds = log_odds(model, rows).tolist()
    set_strength(model, ADAPTER, found, None)
    assert auroc(odds[:20], odds[20:]) == aurocs[str(found.gain)]
    assert find_gain(model, ADAPTER, replace(dial, reader=-dial.reader), rows)[0].gain == 0


def test_pairs_that_have_joined_are_read_by(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are more pairs than it takes, the reader is fitted to the last ones, where those stand that have
    joined a run."""
    monkeypatch.setattr("dcr_lite.method.dial_fitting.PAIRS", 20)
    model, _ = make(tiny_model)
    whole, last, first = (
        fit_dial(model, ADAPTER, LAYER, some, TEXTS[:20]) for some in (PAIRS[:26], PAIRS[6:26], PAIRS[:20])
    )
    assert_close(whole.reader, last.reader, 1e-5)
    assert_far(whole.reader, first.reader)


@pytest.mark.parametrize("architecture", ["llama", "olmo3", "gemma2"])
@pytest.mark.parametrize("first", [0, 1])
def test_key_and_reader_are_the_same_from_states_below(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, architecture: str, first: int
) -> None:
    """As from token ids, for the last of many pairs, from what stage 1 keeps of the layers below what it trains."""
    monkeypatch.setattr(dial_fitting, "PAIRS", 20)
    model, _ = make(tiny_model, architecture)
    refined = RefinedStates(model, dict(enumerate(encode_pairs(model, PAIRS[:24]))), first, LAYER)
    expected = fit_readers(model, ADAPTER, LAYER, PAIRS[:24], TEXTS[:4])
    seen: list[int] = []
    for found, of in zip(
        fit_readers(model, ADAPTER, LAYER, PAIRS[:24], TEXTS[:4], seen.append, refined), expected, strict=True
    ):
        assert_close(found, of, 1e-3)
    assert sum(seen) == prompts_read(PAIRS[:24], TEXTS[:4])


def test_every_prompt_that_is_read_counts_as_progress(tiny_model: MakeModel) -> None:
    model, _ = make(tiny_model)
    seen: list[int] = []
    fit_dial(model, ADAPTER, LAYER, PAIRS[:10], TEXTS[:4], seen.append)
    assert sum(seen) == prompts_read(PAIRS[:10], TEXTS[:4]) == 28


@pytest.mark.parametrize("most", [2, 3, 7, 40])
def test_places_are_spread_over_a_row(most: int) -> None:
    """The end of a row and, before it, distinct places, as many as are asked for or there are; over many rows every
    place is read."""
    for tokens in (1, 2, 9, 30):
        rows = [_spread(tokens, most, number) for number in range(tokens)]
        for places in rows:
            assert places == sorted(set(places))
            assert places[-1] == tokens - 1
            assert len(places) == min(most, tokens)
        assert set().union(*rows) == set(range(tokens))


@pytest.mark.parametrize("at_once", [10, 1024])
def test_the_key_solves_ridge_regression(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The solution is that of the normal equations, with more tokens than inputs and with fewer, in parts or not."""
    monkeypatch.setattr("dcr_lite.method.dial_fitting.AT_ONCE", at_once)
    generator = torch.Generator().manual_seed(0)
    for tokens in (12, 60):
        x, y = torch.randn(tokens, 24, generator=generator) + 1, torch.randn(tokens, 2, generator=generator)
        penalty = RIDGE * x.square().mean() * tokens
        expected = torch.linalg.solve(x.T @ x + penalty * torch.eye(24), x.T @ y)
        assert_close(ridge(x, y), expected.T, 1e-4)


def test_without_its_dial_the_adapter_is_as_trained(tiny_model: MakeModel) -> None:
    """After any strengths and gains, taking the dial off gives bit for bit the weights and the logits from before, and
    other layers, the other ranks and other adapters never change."""
    model, dial = make(tiny_model)
    add_random(model, "second", seed=1)
    activate(model, ADAPTER)
    weights, before = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    second = adapter_weights(model, "second")
    for strength in (10.0, -30.0, 0.0):
        set_strength(model, ADAPTER, replace(dial, gain=20.0), strength)
        assert_far(logits(model.network, ROW), before)
        turned = adapter_weights(model, ADAPTER)
        changed = {key for key in weights if weights[key].shape != turned[key].shape}
        assert {key.split("lora_")[0] for key in changed} == {f"base_model.model.model.layers.{LAYER}.mlp.down_proj."}
        for key, value in weights.items():
            kept = turned[key][:4] if "lora_A" in key else turned[key][:, :4]
            assert torch.equal(kept if key in changed else turned[key], value)
    set_strength(model, ADAPTER, dial, None)
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
    dial = replace(make(tiny_model)[1], gain=0.3)
    file = tmp_path / "dial" / "dial.safetensors"
    dial.save(file)
    back = Dial.load(file)
    assert back.layer == dial.layer
    assert torch.equal(back.shift, dial.shift)
    assert torch.equal(back.key, dial.key)
    assert torch.equal(back.reader, dial.reader)
    assert back.gain == dial.gain
    whole = file.read_bytes()
    file.write_bytes(whole[:-8])
    with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
        Dial.load(file)
    vectors = {"shift": dial.shift, "key": dial.key, "reader": dial.reader}
    for wrong in (
        {"key": dial.key[None]}, {"key": dial.key * torch.inf}, {"layer": torch.zeros(2)},
        {"reader": dial.key[:4].clone()}, {"gain": torch.tensor(torch.nan)},
    ):  # fmt: skip
        save_tensors({"layer": torch.tensor(2), "gain": torch.tensor(0.3), **vectors} | wrong, file)
        with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
            Dial.load(file)
    save_tensors({"shift": dial.shift}, file)
    with pytest.raises(UserError, match=r"dial\.safetensors is missing or damaged"):
        Dial.load(file)


def test_a_dial_of_another_model_is_refused(tiny_model: MakeModel) -> None:
    """Another width, fewer layers, and layers without the map that carries a dial, are said in a sentence."""
    _, dial = make(tiny_model)
    other = tiny_model(intermediate_size=160)
    add_random(other)
    shallow = tiny_model(num_hidden_layers=2)
    add_random(shallow)
    for another in (other, shallow):
        with pytest.raises(UserError, match="belongs to another model"):
            set_strength(another, ADAPTER, dial, 1)
    without = tiny_model("lfm2")
    add_random(without)
    with pytest.raises(UserError, match="lfm2 cannot carry a dial"):
        fit_dial(without, ADAPTER, LAYER, PAIRS[:4], TEXTS[:4])


# --- the adapter with its dial set, as files --------------------------------------------------------------------------


def turned(run: FinishedRun, model: Model, strength: float = 3.0) -> Dial:
    """Any dial, set on the run's model and saved in its adapter."""
    generator = torch.Generator().manual_seed(0)
    shift, key, reader = (torch.randn(size, generator=generator) for size in (64, 128, 128))
    dial = Dial(LAYER, shift, key / 5, reader / 5, gain=0.5)
    set_strength(model, ADAPTER, dial, strength)
    save_adapter(model, ADAPTER, run.adapter)
    return dial


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
def test_what_is_saved_answers_as_the_dial_is_set(architecture: str, make_run: MakeRun) -> None:
    """The adapter as peft alone reads it, as the kit reads it, and merged weights have the logits of the strength that
    was set."""
    run, model = make_run(architecture)
    as_trained = logits(model.network, ROW)
    dial = turned(run, model)
    expected = logits(model.network, ROW)
    assert_far(expected, as_trained)
    base = Path(run.report["model"])
    assert_close(logits(load_reference(export_merged(run)), ROW), expected, 1e-4)
    assert_close(logits(PeftModel.from_pretrained(load_reference(base), run.adapter), ROW), expected, 1e-4)
    again = load_tiny(base)
    load_adapter(again, "opened", run.adapter)
    assert torch.equal(logits(again.network, ROW), expected)
    set_strength(again, "opened", dial, None)
    assert torch.equal(logits(again.network, ROW), as_trained)


def test_weights_with_and_without_a_dial_go_into_either(tiny_model: MakeModel) -> None:
    """set_adapter_weights takes weights that were read with a dial where none is set, and the other way round; an
    adapter of yet another rank is still refused."""
    model, dial = make(tiny_model)
    without = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    set_strength(model, ADAPTER, dial, 20.0)
    with_dial = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    for weights, expected in (without, with_dial, with_dial, without):
        set_adapter_weights(model, ADAPTER, weights)
        assert torch.equal(logits(model.network, ROW), expected)
    smaller = {key: value[:2] if "lora_A" in key else value[:, :2] for key, value in without[0].items()}
    with pytest.raises(RuntimeError, match="size mismatch"):
        set_adapter_weights(model, ADAPTER, smaller)


def test_llama_cpp_turns_the_dial(make_run: MakeRun) -> None:
    """A GGUF file has the dial in it: llama.cpp gives the next token the probabilities of the adapter as it is set."""
    run, model = make_run()
    as_trained = logits(model.network, ROW)[-1:]
    turned(run, model)
    expected = logits(model.network, ROW)[-1:]
    with llama_cpp(export_gguf(run)) as served:
        theirs = served.log_probabilities(ROW, expected.shape[1])[None]
    assert divergence(expected, theirs) < 0.01 * divergence(expected, as_trained)


def test_rounding_to_16_bits_keeps_the_dial(
    smollm2: tuple[FinishedRun, Model], real_dial: Dial, tmp_path: Path
) -> None:
    """Merged into the 16-bit weights of SmolLM2 and rounded, the edit of a small strength still adds its size."""
    _, model = smollm2
    base, name = Path(locate(SMOLLM2)[0]), f"model.layers.{real_dial.layer}.mlp.down_proj.weight"
    weights = []
    for strength in (0.0, 0.5):
        set_strength(model, ADAPTER, real_dial, strength)
        save_adapter(model, ADAPTER, tmp_path / f"{strength}")
        weights.append(Merged(base, tmp_path / f"{strength}").tensor(name))
    set_strength(model, ADAPTER, real_dial, None)
    assert {w.dtype for w in weights} == {torch.bfloat16}
    rows = unseen_rows(model)
    inputs = torch.cat([row.inputs for row in read_inputs(model, real_dial.layer, rows, [0.0] * len(rows))])
    added = inputs @ (weights[1].float() - weights[0].float()).T
    expected = 0.5 * (inputs @ real_dial.key)[:, None] * real_dial.shift
    assert ((added * expected).sum() / expected.square().sum()).item() == pytest.approx(1, abs=0.01)
    assert (added - expected).norm() < 0.1 * expected.norm()
