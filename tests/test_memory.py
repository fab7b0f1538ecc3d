"""Claims about the memory estimate: its parts are those that autograd and the weights really take, and a batch that
does not fit goes through in parts with the same gradients."""

import json
import math
import os
import subprocess
import sys
import tracemalloc
import weakref
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import bitsandbytes
import psutil
import pytest
import torch
from _sides import library_layers
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from recipe_runs import small_settings
from small_runs import RECIPE, flags, recipe_module, run_here, save_rows
from tiny_models import (
    ADAPTER,
    LAYERS,
    PACKABLE,
    PADDED,
    GivenStage,
    add_random_adapter,
    assert_close,
    kept_bytes,
    losses_of,
    random_rows,
)

from dcr_lite.data.rows import Conversation
from dcr_lite.errors import UserError
from dcr_lite.method import dial_fitting
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import memory, states_below
from dcr_lite.model.adapters import adapter_weights, add_adapter, train_only
from dcr_lite.model.free_memory import free_memory, within_limits
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model, keep_freed_memory
from dcr_lite.model.memory import LEAST_TOKENS, MOST_TOKENS, Need, disk_need, fit, needs
from dcr_lite.model.packing import ATTENTION_SHARE, tokens_at_once
from dcr_lite.model.shapes import KNOWN, Shape, shape_of
from dcr_lite.model.states import layer_states
from dcr_lite.run import opening, steps
from dcr_lite.run.cards import CARDS
from dcr_lite.run.run_folder import RunFolder

MakeModel = Callable[..., Model]
RECIPES = sorted(RECIPE.parent.glob("*.py"))
# Billions of weights, as the models' cards state them.
PUBLISHED = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": 0.1345,
    "Qwen/Qwen2.5-1.5B": 1.544,
    "Qwen/Qwen2.5-7B": 7.616,
    "HuggingFaceTB/SmolLM3-3B-Base": 3.075,
    "Qwen/Qwen3-0.6B-Base": 0.596,
    "Qwen/Qwen3-1.7B-Base": 1.721,
    "Qwen/Qwen3-4B-Base": 4.022,
    "Qwen/Qwen3-8B-Base": 8.191,
    "allenai/Olmo-3-1025-7B": 7.298,
    "unsloth/Llama-3.2-3B": 3.213,
    "unsloth/Meta-Llama-3.1-8B": 8.030,
    "unsloth/Mistral-Small-24B-Base-2501": 23.572,
    "unsloth/Phi-4-mini-instruct": 3.836,
    "unsloth/gemma-2-2b": 2.614,
    "unsloth/gemma-3-1b-pt": 1.000,
    "unsloth/gemma-3-4b-pt": 3.880,  # without the part that reads pictures
    "unsloth/llama-3-8b": 8.030,
    "unsloth/mistral-7b-v0.3": 7.248,
}
WIDE = {
    "hidden_size": 256, "intermediate_size": 768, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip
# The tiny model's own factors are for narrower heads.
NO_STRETCH = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.75}}
ROW_TOKENS = 200  # longer than the rows that a CPU multiplies out plainly: its kernel keeps what a card's keeps


# --- the formula ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", PUBLISHED)
def test_known_shapes_have_the_published_size(model: str) -> None:
    """The shape of each recipe's model gives the number of weights that its card states, to 2 in a thousand."""
    assert KNOWN[model].parameters / 1e9 == pytest.approx(PUBLISHED[model], rel=2e-3)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipes_models_are_known(path: Path) -> None:
    """Both models of a recipe can be planned for without fetching anything."""
    settings = recipe_module(path).SETTINGS
    assert {settings.model, settings.base_model} - {""} <= KNOWN.keys()


@pytest.mark.parametrize("architecture", [*PACKABLE, *PADDED])
def test_a_config_is_read_as_the_model_is_built(
    tiny_folder: Callable[..., Path], tiny_model: MakeModel, architecture: str
) -> None:
    """Weights, norms and kept scores that the shape counts are those of the loaded network."""
    shape = shape_of(str(tiny_folder(architecture)))
    network = tiny_model(architecture).network
    assert shape.parameters == sum(p.numel() for p in network.parameters() if p.dim() == 2)
    layer = decoder_of(network).layers[0]
    norms = [name for name, module in layer.named_modules() if type(module).__name__.endswith("RMSNorm")]
    on_heads = [name for name in norms if name.startswith("self_attn.")]
    assert (len(norms) - len(on_heads), len(on_heads)) == (shape.norms, 2 * shape.head_norms)
    maps = [(m.in_features, m.out_features) for m in layer.modules() if isinstance(m, torch.nn.Linear)]
    assert sorted(maps) == sorted(shape.maps)
    assert shape.scores == (architecture == "gemma2")


NF4, FLOAT32 = (torch.bfloat16, True), (torch.float32, False)


@pytest.mark.parametrize(
    ("architecture", "precision", "four_bit"),
    [(a, *how) for a in ("llama", "qwen2", "qwen3", "mistral", "gemma2") for how in (NF4, FLOAT32)]
    + [("phi3", *FLOAT32)],  # in 4 bits its four maps differ from seven by nothing new
)
def test_a_layer_keeps_of_a_token_what_the_formula_says(
    tiny_folder: Callable[..., Path], tiny_model: MakeModel, architecture: str, precision: torch.dtype, four_bit: bool
) -> None:
    """What one more layer adds to the tensors that autograd keeps, to 4 per cent, of the library's own layers, as they
    run on a card."""
    wide = WIDE | (NO_STRETCH if architecture == "phi3" else {})
    model = tiny_model(architecture, precision, four_bit, **wide)
    add_adapter(model, ADAPTER, rank=16, seed=0)
    library_layers(model.network)
    train_only(model, ADAPTER, range(LAYERS))
    rows = random_rows([ROW_TOKENS] * 4)
    kept = kept_bytes(model, rows, 2) - kept_bytes(model, rows, 1)
    shape = shape_of(str(tiny_folder(architecture, **wide)))
    adapter = sum(16 * (i + o) for i, o in shape.maps) * precision.itemsize if four_bit else 0  # cast, once a layer
    expected = 4 * ROW_TOKENS * memory.activations(shape, 16, precision.itemsize, ROW_TOKENS) + adapter
    assert kept == pytest.approx(expected, rel=0.04)


def test_a_layer_of_padded_rows_keeps_no_more_than_the_formula_says(
    tiny_folder: Callable[..., Path], tiny_model: MakeModel
) -> None:
    """OLMo 3's. The library's attention shares its output with the map behind it, which packed attention cannot: up to
    8 per cent less than is planned for."""
    model = tiny_model("olmo3", **WIDE)
    add_adapter(model, ADAPTER, rank=16, seed=0)
    library_layers(model.network)
    train_only(model, ADAPTER, range(LAYERS))
    rows = random_rows([ROW_TOKENS, ROW_TOKENS - 1])  # of one length they would need no mask
    kept = kept_bytes(model, rows, 2) - kept_bytes(model, rows, 1)
    shape = shape_of(str(tiny_folder("olmo3", **WIDE)))
    expected = 2 * ROW_TOKENS * memory.activations(shape, 16, 4, ROW_TOKENS)
    assert 0.92 * expected < kept < 1.02 * expected


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
@pytest.mark.parametrize("lengths", [[200] * 4, [400, 30, 30, 30, 30, 30], [300, 200, 100, 50, 20]])
def test_a_packed_pass_keeps_what_is_counted(
    tiny_folder: Callable[..., Path], tiny_model: MakeModel, architecture: str, lengths: list[int]
) -> None:
    """Of rows of any lengths a packed pass keeps no more than the tokens it counts as: its attention lays short rows
    side by side with long ones, each as wide as the longest."""
    model = tiny_model(architecture, torch.bfloat16, True, **WIDE)
    add_adapter(model, ADAPTER, rank=16, seed=0)
    library_layers(model.network)
    train_only(model, ADAPTER, range(LAYERS))
    rows = random_rows(lengths)
    kept = kept_bytes(model, rows, 2) - kept_bytes(model, rows, 1)
    shape = shape_of(str(tiny_folder(architecture, **WIDE)))
    adapter = sum(16 * (i + o) for i, o in shape.maps) * 2
    counted = tokens_at_once(lengths, 0, ATTENTION_SHARE)
    assert kept <= 1.04 * counted * memory.activations(shape, 16, 2, max(lengths)) + adapter
    if len(set(lengths)) > 1:  # which the plain number of tokens would miss
        assert kept > 1.1 * sum(lengths) * memory.activations(shape, 16, 2, max(lengths)) + adapter


def test_weights_and_adapters_take_what_the_formula_says(
    tiny_folder: Callable[..., Path], tiny_model: MakeModel
) -> None:
    """Bytes of the 4-bit maps with their scales, of embeddings and output matrix, and of adapters, to 1 per cent."""
    model = tiny_model("llama", torch.bfloat16, True, **WIDE)
    shape = shape_of(str(tiny_folder("llama", **WIDE)))
    maps = [m for m in model.network.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    states = [m.weight.quant_state for m in maps]
    packed = sum(m.weight.nbytes + s.absmax.nbytes + s.state2.absmax.nbytes for m, s in zip(maps, states, strict=True))
    others = sum(p.nbytes for p in model.network.parameters() if p.dim() == 2 and p.dtype == torch.bfloat16)
    assert packed + others == pytest.approx(memory.weights(shape, True, 2), rel=0.01)

    for name in ("first", "second"):
        add_adapter(model, name, rank=16, seed=0)
    lora = sum(p.nbytes for n, p in model.network.named_parameters() if "lora_" in n)
    assert any(isinstance(m, LoraLayer) for m in model.network.modules())
    assert memory.adapters(shape, 16, 2, 0, 0) == lora
    trained = sum(p.nbytes for p in train_only(model, "first", range(2)))
    assert memory.adapters(shape, 16, 2, 2, 0) - lora == trained * memory.ADAM_BYTES / 4


def test_an_8b_model_fits_twelve_gigabytes_in_every_part() -> None:
    """Llama 3 8B in NF4 goes through a 12 GB card with at least 512 tokens at once, the baseline too; in 16 bits it
    does not."""
    settings = replace(recipe_module(RECIPE.parent / "llama3_8b.py").SETTINGS, compare_with=("safety_sft",))
    shape = KNOWN[settings.model]
    fitting = fit(needs(shape, settings, True, 2), 12e9, settings.model)
    assert all(need.total(fitting.units[name]) <= 12e9 for name, need in fitting.needs.items())
    assert all(fitting.units[name] >= 512 for name in ("stage1", "stage2", "safety_sft"))
    with pytest.raises(UserError, match=r"needs at least 1\d\.\d GB for stage 1 and 12\.0 GB are free"):
        fit(needs(shape, settings, False, 2), 12e9, settings.model)


def test_the_stages_that_are_planned_are_those_that_train() -> None:
    """The paper's stage 1 trains all layers up to L, whatever --contrastive-layers is; without stage 1 none is
    planned."""
    settings = replace(recipe_module(RECIPE.parent / "llama3_8b.py").SETTINGS, layer=16)

    def planned(**changes: Any) -> dict[str, float]:
        return {need.name: need.each for need in needs(KNOWN[settings.model], replace(settings, **changes), True, 2)}

    assert planned(paper=True)["stage1"] == planned(contrastive_layers=0)["stage1"] > planned()["stage1"]
    assert planned().keys() - planned(stage1="no").keys() == {"stage1"}


def test_the_dial_s_fit_is_planned_for_where_it_is_done() -> None:
    """In this computer's memory, of which what stage 1 reads below its layers takes a part too; a card has neither.
    Both are planned for as many pairs as the fit reads at most."""
    settings = replace(recipe_module(RECIPE.parent / "llama3_8b.py").SETTINGS, layer=16, dial="discerning")
    shape = KNOWN[settings.model]
    on_card, on_cpu = ({need.name: need for need in needs(shape, settings, True, 2, where)} for where in (False, True))
    assert on_cpu.keys() - on_card.keys() == {"dial"}
    stored = memory.stored_states(shape, 2)
    assert on_cpu["stage1"].fixed - on_card["stage1"].fixed == pytest.approx(stored)
    fitted = on_cpu["dial"].total(memory.FITTED_TOKENS)
    assert fitted > memory.weights(shape, True, 2) + stored + memory.ridge(shape, memory.FITTED_TOKENS)
    assert "dial" not in {need.name for need in needs(shape, replace(settings, dial="none"), True, 2, True)}
    assert memory.READ_ROWS == 2 * dial_fitting.PAIRS
    assert memory.FITTED_TOKENS >= 2 * memory.READ_ROWS + dial_fitting.TOKENS
    assert fit(list(on_cpu.values()), 1e12, "it").lines()["  fitting the dial"] == f"{fitted / 1e9:.1f} GB"


def peak_of(work: Callable[[], object]) -> int:
    """The most bytes that torch has allocated at once for ``work`` on the CPU."""
    with torch.profiler.profile(profile_memory=True) as profile:
        work()
    found = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(found, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("tokens", [1400, 700])
def test_a_ridge_regression_takes_what_the_formula_says(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Beyond its inputs, to a tenth, whether these are more or fewer than their width; and beyond what it has of them
    in double precision at once, here little. scipy, which factors their products, takes none of its own."""
    width = 1024
    inputs, targets = torch.randn(tokens, width), torch.randn(tokens, 2)
    monkeypatch.setattr(dial_fitting, "AT_ONCE", 10)
    planned = memory.ridge(Shape(1, 64, 1, 1, 64, width, 8, tied=True), tokens)
    products = 8 * min(tokens, width) ** 2
    assert planned == inputs.nbytes + max(inputs.nbytes, products)
    assert peak_of(lambda: dial_fitting.ridge(inputs, targets)) == pytest.approx(products, rel=0.1)
    tracemalloc.start()
    try:
        dial_fitting.ridge(inputs, targets)
        assert tracemalloc.get_traced_memory()[1] < products / 2
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="keep_freed_memory is for glibc")
def test_what_a_stage_took_is_given_back(tiny_model: MakeModel, tmp_path: Path) -> None:
    """At its end, though the allocator would keep it for the stage's next step: it does not count beside what comes
    after."""
    model = tiny_model()
    add_random_adapter(model)
    weights = train_only(model, ADAPTER, range(LAYERS))
    sizes: list[int] = []
    keep_freed_memory()

    def step(number: int) -> float:
        took = [torch.ones(2**18) for _ in range(300)]  # of a megabyte each
        (weights[0].sum() * took[0][0]).backward()
        del took
        sizes.append(psutil.Process().memory_info().rss)
        return 0.0

    run = RunFolder(small_settings(tmp_path, save_rows(tmp_path / "rows"), tmp_path / "run"))
    steps.train(run, GivenStage(model, weights, step, steps=2), "Stage 1")
    run.leave()
    assert sizes[-1] - psutil.Process().memory_info().rss > 250e6


@given(fixed=st.floats(0, 1e10), each=st.floats(1, 1e7), free=st.floats(0, 1e11), least=st.sampled_from([1, 128]))
def test_what_is_said_to_fit_fits(fixed: float, each: float, free: float, least: int) -> None:
    """The units chosen never need more than is free, twice as many would (or are not asked for), and None means that
    the least does not fit."""
    need = Need("stage1", fixed, each, 4096, least)
    units = need.units(free)
    if units is None:
        assert need.total(least) > free * (1 - 1e-9)
        return
    assert least <= units <= 4096
    assert need.total(units) <= free * (1 + 1e-9)
    assert units == 4096 or need.total(2 * units) > free * (1 - 1e-9)


# --- less at once, the same result ------------------------------------------------------------------------------------


@contextmanager
def memory_for(model: Model, tokens: int, training: bool) -> Iterator[list[int]]:
    """A device with memory for so many tokens of a pass, of passes that train or of those that answer; yields the sizes
    that were tried."""
    tried: list[int] = []

    def allocate(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        tried.append(given.shape[0] * given.shape[1])
        if tried[-1] > tokens and torch.is_grad_enabled() == training:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = decoder_of(model.network).register_forward_pre_hook(allocate, with_kwargs=True)
    try:
        yield tried
    finally:
        handle.remove()


def trained_run(tiny: Path, rows: Path, run: Path) -> tuple[str, list[float]]:
    """What a whole run prints, and its losses."""
    done = run_here(flags(tiny, rows, run, contrastive_steps=4, instructions=8, sft_epochs=1, sft_batch=4))
    assert done.code == 0, done.err
    return done.out, losses_of([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])


def test_a_run_that_runs_out_of_memory_halves_and_ends_the_same(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a pass does not fit, all stages go on with half as much at once, and their losses are those of a run with
    memory for all of it."""
    tiny, rows, train = tiny_folder("llama"), save_rows(tmp_path / "rows"), Loop.run
    printed, expected = trained_run(tiny, rows, tmp_path / "much")
    assert "out of memory" not in printed

    def train_in_little_memory(loop: Loop) -> Any:
        with memory_for(loop.stage.model, 300, training=True):
            return train(loop)

    monkeypatch.setattr(Loop, "run", train_in_little_memory)
    printed, losses = trained_run(tiny, rows, tmp_path / "little")
    assert "out of memory; goes on with" in printed
    assert len(losses) == 4 + 3 + 4
    assert losses == pytest.approx(expected, rel=1e-4)


def loop_of(model: Model, step: Callable[[int], float]) -> Loop:
    return Loop(GivenStage(model, train_only(model, ADAPTER, range(LAYERS)), step))


def test_gradients_of_a_failed_pass_are_not_counted(tiny_model: MakeModel, capsys: pytest.CaptureFixture[str]) -> None:
    """What a pass had accumulated before memory ran out is dropped: the step is that of an undisturbed one."""

    def trained(tokens_per_pass: int) -> dict[str, torch.Tensor]:
        model = tiny_model()
        add_random_adapter(model)
        model.tokens_per_pass = tokens_per_pass

        def step(number: int) -> float:
            decoder = decoder_of(model.network)
            loss = decoder(**model.batch(random_rows([9, 5])).inputs).last_hidden_state.square().mean()
            loss.backward()
            if model.tokens_per_pass > 128:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return float(loss)

        loop_of(model, step).run()
        assert model.tokens_per_pass == 128
        return adapter_weights(model, ADAPTER)

    disturbed, undisturbed = trained(512), trained(128)
    assert all(torch.equal(disturbed[k], undisturbed[k]) for k in undisturbed)
    assert capsys.readouterr().out.splitlines() == [
        "stage1: out of memory; goes on with 256 tokens at once",
        "stage1: out of memory; goes on with 128 tokens at once",
    ]


def test_where_not_even_a_row_fits_the_cure_is_named(tiny_model: MakeModel) -> None:
    """Halving ends at about a row, with a one-line message."""
    model = tiny_model()
    add_random_adapter(model)

    def step(number: int) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(UserError, match=r"memory runs out even with one row at a time.*--plan"):
        loop_of(model, step).run()
    assert model.tokens_per_pass <= LEAST_TOKENS // 4


@pytest.mark.parametrize("tokens", [20, 45])
def test_answers_that_do_not_fit_together_are_given_in_halves(tiny_model: MakeModel, tokens: int) -> None:
    """Prompts that cannot be answered together are answered in smaller batches: same answers, same scores."""
    model = tiny_model()
    rows = random_rows([5, 1, 9, 5, 8, 2, 9], shared=3)
    expected = answer(model, rows, 4)
    done: list[int] = []
    with memory_for(model, tokens, training=False) as tried:
        got = answer(model, rows, 4, done.append)
    assert max(tried) > tokens
    assert [a.text for a in got] == [a.text for a in expected]
    assert [a.refusal_log_odds for a in got] == pytest.approx([a.refusal_log_odds for a in expected], abs=1e-4)
    assert sum(done) == len(rows)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"], ids=["packed", "padded"])
def test_states_that_do_not_fit_together_are_computed_in_halves(tiny_model: MakeModel, architecture: str) -> None:
    """Layer-L states of prompts that cannot go through together are those of all at once, in the order given; where not
    even one fits, the cure is named."""
    model = tiny_model(architecture)
    rows = random_rows([5, 1, 9, 5, 8, 2, 9], shared=3)
    expected = layer_states(model, rows, 2)
    with memory_for(model, 30, training=False) as tried:
        got = layer_states(model, rows, 2)
    assert max(tried) > 30
    assert_close(got, expected, 1e-5)
    with memory_for(model, 3, training=False), pytest.raises(UserError, match=r"even with one row at a time.*--plan"):
        layer_states(model, rows, 2)


def safety_sft_losses(model: Model) -> list[float]:
    add_random_adapter(model)
    rows = [Conversation(f"Name {n} cats.", f"Here is a list of {n} cats.") for n in range(2, 12)]
    config = SafetySFTConfig(above=1, epochs=1, batch_size=4, learning_rate=1e-2)
    return losses_of(Loop(SafetySFT("stage2", model, ADAPTER, rows, config, seed=0)).run().metrics)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_stage_2_is_the_same_in_little_memory(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, architecture: str
) -> None:
    """Stage 2 takes the same steps where few rows at once go through the layers below L, and where their states are
    too many to be stored and are computed for each batch."""
    expected = safety_sft_losses(tiny_model(architecture))
    model = tiny_model(architecture)
    with memory_for(model, 60, training=False) as tried:
        assert safety_sft_losses(model) == pytest.approx(expected, rel=1e-5)
    assert max(tried) > 60
    monkeypatch.setattr(states_below, "STORED_SHARE", 0.0)
    assert safety_sft_losses(tiny_model(architecture)) == pytest.approx(expected, rel=1e-4)


def test_memory_that_runs_out_while_loading_is_a_user_error(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the estimate was, the message names the cure."""

    def load(*args: Any) -> Model:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(opening.loading, "load", load)
    done = run_here(flags(tiny_folder("llama"), save_rows(tmp_path / "rows"), tmp_path / "run"))
    assert done.code == 1
    assert "is loaded. Close other programs that use it, lower --rank, load the model with --quantization" in done.err


# --- what a user sees -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_plan_names_every_card(path: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """--plan prints the parts of a run for every card, and touches nothing."""
    done = run_here(["--plan", "--run", str(tmp_path / "run")], path)
    assert done.code == 0, done.err
    rows = {card: next(line for line in done.out.splitlines() if line.startswith(card)) for card in CARDS}
    compared = "safety SFT alone" in done.out
    assert compared == (path.stem == "smollm2_135m")
    assert all(row.count(" GB (") + row.count("does not fit") == 3 + compared for row in rows.values())
    assert rows["A100 / H100, 80 GB"].count(f"({MOST_TOKENS:,})") >= 2
    assert all(word in done.out for word in ("stage 1", "stage 2", "evaluation", "4-bit NF4"))
    assert not (tmp_path / "run").exists()


def test_the_plan_of_a_model_without_a_config_says_so(tmp_path: Path) -> None:
    """A folder that holds no model, and one that holds another kind, are named."""
    for config, message in ((None, "no config.json in it"), ('{"model_type": "mamba"}', "describes no decoder")):
        if config:
            (tmp_path / "config.json").write_text(config)
        done = run_here(["--plan", "--model", str(tmp_path)])
        assert done.code == 1
        assert message in done.err


def test_the_plan_needs_no_torch() -> None:
    """--plan answers before anything heavy is imported."""
    code = (
        "import runpy, sys; sys.argv = ['llama3_8b.py', '--plan']\n"
        f"runpy.run_path({str(RECIPE.parent / 'llama3_8b.py')!r}, run_name='__main__')\n"
        "assert not {'torch', 'transformers', 'peft'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "RTX 3060" in done.stdout


def test_a_run_shows_the_estimate_and_keeps_to_it(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the model is loaded the run prints what each part needs and what is free, and how far it went down;
    training then puts no more through at once."""
    tiny, rows = tiny_folder("llama"), save_rows(tmp_path / "rows")
    settings = small_settings(tiny, rows, tmp_path / "run", contrastive_batch=64, sft_batch=8)
    parts = needs(shape_of(str(tiny)), settings, False, 4)
    free = max(need.total(256) for need in parts if need.name != "evaluation")
    monkeypatch.setattr(opening, "free_memory", lambda device: free)
    shown = opening.will_it_fit(settings)
    assert shown["memory"].startswith(f"{free / 1e9:.1f} GB free")
    assert "256 tokens, lowered from 4,096 to fit" in shown["  safety SFT alone"]
    seen: dict[str, int] = {}
    train = Loop.run

    def watch(loop: Loop) -> Any:
        seen[loop.stage.name] = loop.stage.model.tokens_per_pass
        return train(loop)

    monkeypatch.setattr(Loop, "run", watch)
    argv = flags(tiny, rows, tmp_path / "run", contrastive_steps=1, sft_epochs=1, contrastive_batch=64, sft_batch=8)
    done = run_here(argv)
    assert done.code == 0, done.err
    assert done.out.index("GB free") < done.out.index("estimated time")
    fitting = fit(parts, free, str(tiny))
    assert seen == {name: fitting.units[name] for name in ("stage1", "stage2", "safety_sft")}
    assert seen["safety_sft"] == 256


def test_a_model_of_another_kind_is_not_estimated(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A model whose config.json gives no shape can be used; the run says that its need cannot be estimated."""
    config = json.loads((tiny_folder("llama") / "config.json").read_text())
    del config["intermediate_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    shown = opening.will_it_fit(small_settings(tmp_path, tmp_path, tmp_path / "run"))
    assert list(shown) == ["memory"]
    assert "cannot be estimated" in shown["memory"]


def test_free_memory_of_this_computer_is_plausible() -> None:
    """More than nothing, and less than this computer has."""
    assert 1e8 < free_memory("cpu") < psutil.virtual_memory().total


def test_a_model_that_was_let_go_of_takes_no_memory_of_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer and its 4-bit weights refer to each other, and torch caches what is freed: both are cleared, in this
    order, before a card is asked what is free."""
    there: list[Any] = []
    layer = torch.nn.Linear(2, 2)
    layer.weight.module = layer  # type: ignore[assignment] # as bitsandbytes does
    freed = weakref.ref(layer)
    del layer
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: there.append(freed()))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (5e9 if there == [None] else 1e9, 16e9))
    assert free_memory("cuda") == 5e9


@pytest.mark.parametrize(
    ("weights", "limit", "stops"), [(0.5e9, False, False), (2e9, False, True), (0.5e9, True, True)]
)
def test_memory_is_insisted_on_where_swapping_is_no_way_on(
    tiny_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    weights: float,
    limit: bool,
    stops: bool,
) -> None:
    """On a CPU a small model may swap for a moment; one of more than a billion weights may not, nor anything within the
    limit of a container: the run stops before work begins, with the numbers."""
    monkeypatch.setattr(Shape, "parameters", property(lambda shape: weights))
    monkeypatch.setattr(opening, "free_memory", lambda device: 0.2e9)
    monkeypatch.setattr(opening, "within_limits", lambda: 0.2e9 if limit else float("inf"))
    settings = small_settings(tiny_folder("llama"), save_rows(tmp_path / "rows"), tmp_path / "run")
    if not stops:
        assert "lowered" in opening.will_it_fit(settings)["  safety SFT alone"]
        return
    with pytest.raises(UserError, match=r"needs at least \d\.\d GB for stage 1 and 0\.2 GB are free"):
        opening.will_it_fit(settings)


def test_an_address_space_limit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit leaves what the process does not have yet; a container's leaves its limit less its use."""
    code = (
        "import resource, psutil; from dcr_lite.model.free_memory import free_memory\n"
        "most = psutil.Process().memory_info().vms + 300_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most)); print(free_memory('cpu'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2.5e8 < float(done.stdout) <= 3e8


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both versions of control groups; "max", and the absurd number of version 1, are no limit."""
    limit, usage = tmp_path / "limit", tmp_path / "usage"
    monkeypatch.setattr("dcr_lite.model.free_memory.CGROUPS", ((str(limit), str(usage)),))
    usage.write_text("1000000\n")
    for text, left in (("5000000\n", 4e6), ("max\n", math.inf), ("9223372036854771712\n", math.inf)):
        limit.write_text(text)
        assert within_limits() == left
    assert free_memory("cpu") < math.inf


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_disk_that_a_run_needs_is_counted(path: Path) -> None:
    """What an 8B run writes at once, by hand: four adapters and two checkpoints of four times an adapter."""
    settings = recipe_module(path).SETTINGS
    shape = KNOWN[settings.model]
    adapter = 4 * 16 * shape.layers * sum(i + o for i, o in shape.maps)
    assert 12 * adapter < disk_need(shape, 16) < 12 * adapter + 5e8
    if path.stem == "llama3_8b":
        assert adapter == 167_772_160
        assert 2.2e9 < disk_need(shape, 16) < 2.6e9


def test_a_run_without_room_for_its_files_does_not_begin(
    tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Known before the model is loaded, and not after the first stage."""
    settings = small_settings(tiny_folder("llama"), save_rows(tmp_path / "rows"), tmp_path / "run", rank=16_384)
    used = namedtuple("used", "total used free")(10**12, 0, 1_200_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: used)
    with pytest.raises(UserError, match=r"1,200 MB free and \d,\d{3} MB needed"):
        opening.will_it_fit(settings)


def test_blocks_of_memory_can_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch is told so before it is imported, unless the user has told it something else, which stays as it is."""
    told = "import dcr_lite, torch; torch.zeros(1); print(torch._C._accelerator_getAllocatorSettings())"
    kept = "import os; before = dict(os.environ); import dcr_lite; print(os.environ == before)"
    given: dict[str, str]
    for given, code, said in (
        ({}, told, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, kept, "True"),
    ):
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTORCH")} | given
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == said
