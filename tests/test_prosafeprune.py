"""Claims about ProSafePrune: what is averaged, what goes out of weights, what carries it, which setting is taken."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from finished_runs import MakeRun, logits
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_score
from tiny_models import (
    ADAPTER,
    LAYERS,
    add_random_adapter,
    assert_close,
    assert_far,
    load_reference,
    load_tiny,
    random_kinds,
    random_rows,
)
from torch import Tensor

from dcr_lite.compare import prosafeprune
from dcr_lite.compare.directions import apart, first_token, first_token_kl
from dcr_lite.compare.prosafeprune import Pruning, basis, edit, fit, pruned, window
from dcr_lite.compare.seed_run import _fields, _flat
from dcr_lite.export.command import export_merged
from dcr_lite.files import load_tensors, save_tensors
from dcr_lite.model.adapters import (
    adapted_maps,
    adapted_weight,
    adapter_weights,
    extra_ranks,
    load_adapter,
    save_adapter,
    set_adapter_weights,
    set_extra_ranks,
)
from dcr_lite.model.loading import Model
from dcr_lite.model.map_outputs import mean_outputs

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
ROW = random_rows([30])[0]
DOWN = "model.layers.1.mlp.down_proj"
SOME = ["model.layers.1.self_attn.q_proj", "model.layers.2.self_attn.v_proj", DOWN]


def random_pruning(model: Model, maps: list[str], rank: int = 3, size: float = 0.2) -> Pruning:
    """Any change of a few maps, large enough to show."""
    generator = torch.Generator().manual_seed(5)
    shapes = {name: adapted_weight(model, ADAPTER, name).shape for name in maps}
    a = {name: torch.randn(rank, shape[1], generator=generator) for name, shape in shapes.items()}
    b = {name: size * torch.randn(shape[0], rank, generator=generator) for name, shape in shapes.items()}
    return Pruning(a, b, [1, 2], False, rank, 0.5, 0.1)


def orthonormal(outputs: int, rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(outputs, rank, generator=generator, dtype=torch.float64)).Q


# --- the edit of one weight -------------------------------------------------------------------------------------------


@given(st.integers(3, 9), st.integers(1, 9), st.integers(1, 3), st.integers(0, 99))
def test_the_low_rank_form_is_the_dense_product(outputs: int, inputs: int, rank: int, seed: int) -> None:
    """b a is (I - P_s) P_u P_p W with whole projections; and nothing where plain and toxic prompts have one subspace,
    or where toxic and seemingly toxic ones share no direction."""
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    bases = [orthonormal(outputs, rank, 3 * seed + kind) for kind in range(3)]
    plain, toxic, seemingly_toxic = (base @ base.T for base in bases)
    a, b = edit(weight, *bases)
    assert a.shape == (rank, inputs)
    assert b.shape == (outputs, rank)
    assert_close(b @ a, (torch.eye(outputs).double() - plain) @ toxic @ seemingly_toxic @ weight, 1e-12)

    a, b = edit(weight, bases[1], bases[1], bases[2])
    assert (b @ a).abs().max() < 1e-12 * weight.abs().max()
    if 2 * rank <= outputs:
        both = orthonormal(outputs, 2 * rank, seed)
        a, b = edit(weight, bases[0], both[:, :rank], both[:, rank:])
        assert (b @ a).abs().max() < 1e-12 * weight.abs().max()


def test_three_dimensions_by_hand() -> None:
    """U_s = e1, U_u = e2, U_p = (e2 + e3) / sqrt 2: of the rows of W the second alone changes, to
    w2 - strength / 2 (w2 + w3)."""
    weight = torch.tensor([[1.0, 2.0], [3.0, 5.0], [7.0, 11.0]])
    e1, e2, e3 = torch.eye(3)[:, :, None]
    a, b = edit(weight, e1, e2, (e2 + e3) / 2**0.5)
    assert_close(weight - 0.5 * b @ a, torch.tensor([[1.0, 2.0], [3.0 - 2.5, 5.0 - 4.0], [7.0, 11.0]]), 1e-6)


@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 2), st.integers(0, 99))
def test_a_basis_is_the_best_subspace(prompts: int, outputs: int, rank: int, seed: int) -> None:
    """Its columns are orthonormal eigenvectors of the uncentred second moment, those of the largest eigenvalues."""
    rows = torch.randn(prompts, outputs, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 1
    found = basis(rows, rank)
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    assert_close(found.T @ found, torch.eye(rank).double(), 1e-9)
    assert_close(found @ found.T, vectors[:, -rank:] @ vectors[:, -rank:].T, 1e-6)
    assert float((rows @ found).square().sum()) == pytest.approx(float(values[-rank:].sum()), rel=1e-9)


# --- averages of what linear maps put out -----------------------------------------------------------------------------


def changed(reference: Any, changes: dict[str, Tensor]) -> Any:
    """transformers' own model with some of its weights changed."""
    for name, change in changes.items():
        reference.get_submodule(name).weight.data += change
    return reference


def adapter_changes(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """What an adapter of scale 1 adds to each weight."""
    names = [key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") for key in weights if "lora_A" in key]
    key = "base_model.model.{}.lora_{}.weight"
    return {name: weights[key.format(name, "B")] @ weights[key.format(name, "A")] for name in names}


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3", "phi3"])
def test_averages_are_those_of_each_prompt_alone(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """Of every map of every layer, over all tokens of a prompt, those that all prompts share among them, with the bias
    and the adapter: packed, padded and fused passes give what transformers gives for one prompt at a time. The same
    where only the layers that are read run."""
    model = tiny_model(architecture)
    plain = changed(reference(architecture), adapter_changes(add_random_adapter(model)))
    rows = random_rows([9, 4, 21, 5], shared=7)
    maps = [name for i in range(LAYERS) for name in adapted_maps(model, ADAPTER, i)]
    of_layer = 4 if architecture == "phi3" else 7  # where query, key and value are one, as gate and up are
    assert len(maps) == of_layer * LAYERS
    found = mean_outputs(model, rows, maps, LAYERS)
    for i, row in enumerate(rows):
        seen: dict[str, Tensor] = {}

        def keep(name: str, seen: dict[str, Tensor] = seen) -> Any:
            return lambda _module, _inputs, output: seen.update({name: output[0].mean(0)})

        hooks = [plain.get_submodule(name).register_forward_hook(keep(name)) for name in maps]
        plain(input_ids=torch.tensor([row]), use_cache=False)
        for hook in hooks:
            hook.remove()
        assert_close([found[name][i] for name in maps], [seen[name] for name in maps], 1e-4)
    lowest = mean_outputs(model, rows, maps[:of_layer], 1)
    assert_close([lowest[name] for name in maps[:of_layer]], [found[name] for name in maps[:of_layer]])


def test_averages_in_several_passes(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row's average does not depend on the rows beside it, and keeps its place."""
    model, rows = tiny_model(), random_rows([9, 4, 21, 5, 30], shared=7)
    add_random_adapter(model)
    together = mean_outputs(model, rows, SOME, LAYERS)
    monkeypatch.setattr("dcr_lite.model.map_outputs.TOKENS_PER_PART", 20)
    assert len(model.passes(rows, 20)) > 2
    apart = mean_outputs(model, rows, SOME, LAYERS)
    assert_close([apart[name] for name in SOME], [together[name] for name in SOME])


# --- the adapter that carries it --------------------------------------------------------------------------------------


@pytest.mark.parametrize("four_bit", [False, True], ids=["float32", "NF4"])
def test_a_weight_is_read_with_its_adapter(tiny_model: MakeModel, four_bit: bool) -> None:
    """Base weight, written out of its 4 bits, plus what the adapter and a pruning add; reading changes nothing."""
    model = tiny_model(four_bit=four_bit)
    added = adapter_changes(add_random_adapter(model))
    before = logits(model.network, ROW)
    pruning = random_pruning(model, SOME)
    for name in SOME:
        base = model.network.get_base_model().get_submodule(name).base_layer.weight
        base = dequantize_4bit(base.data, base.quant_state) if four_bit else base
        assert_close(adapted_weight(model, ADAPTER, name), base + added[name])
        with pruned(model, ADAPTER, pruning, 3.0):
            expected = base + added[name] - 3 * 0.5 * pruning.b[name] @ pruning.a[name]
            assert_close(adapted_weight(model, ADAPTER, name), expected)
    assert torch.equal(logits(model.network, ROW), before)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2", "gemma3"])
def test_the_pruned_adapter_answers_as_the_edited_weights(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """transformers' own model with every weight W - strength * Omega W, its biases untouched, has the same logits."""
    model = tiny_model(architecture)
    changes = adapter_changes(add_random_adapter(model))
    pruning, before = random_pruning(model, SOME), logits(model.network, ROW)
    for name in SOME:
        changes[name] = changes[name] - 1.5 * 0.5 * pruning.b[name] @ pruning.a[name]
    with pruned(model, ADAPTER, pruning, 1.5):
        assert_close(logits(model.network, ROW), logits(changed(reference(architecture), changes), ROW), 1e-4)
        assert_far(logits(model.network, ROW), before)


@pytest.mark.parametrize("fails", [False, True], ids=["ends well", "raises"])
def test_behind_the_block_the_adapter_is_as_trained(tiny_model: MakeModel, fails: bool) -> None:
    """Bit for bit, whether the block ends or raises; and within it where the strength, or the factor of it, is 0."""
    model = tiny_model()
    weights = add_random_adapter(model)
    before, pruning = logits(model.network, ROW), random_pruning(model, SOME)
    for without, factor in ((pruning, 0.0), (replace(pruning, strength=0.0), 2.0)):
        with pruned(model, ADAPTER, without, factor):
            assert torch.equal(logits(model.network, ROW), before)
            assert all(torch.equal(value, weights[key]) for key, value in adapter_weights(model, ADAPTER).items())
    try:
        with pruned(model, ADAPTER, pruning):
            assert_far(logits(model.network, ROW), before)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert torch.equal(logits(model.network, ROW), before)
    assert all(torch.equal(value, weights[key]) for key, value in adapter_weights(model, ADAPTER).items())


def test_a_pruning_stands_beside_what_was_set_before(tiny_model: MakeModel) -> None:
    """A dial on the same map turns on while the model is pruned, and is there afterwards, bit for bit."""
    model = tiny_model()
    add_random_adapter(model)
    pruning, as_trained = random_pruning(model, SOME), adapted_weight(model, ADAPTER, DOWN)
    a, b = torch.full((1, 128), 0.2), torch.linspace(-1, 1, 64)[:, None]
    set_extra_ranks(model, ADAPTER, DOWN, a, b)
    before = logits(model.network, ROW)
    with pruned(model, ADAPTER, pruning):
        expected = as_trained + b @ a - 0.5 * pruning.b[DOWN] @ pruning.a[DOWN]
        assert_close(adapted_weight(model, ADAPTER, DOWN), expected)
        assert len(extra_ranks(model, ADAPTER, DOWN)[0]) == 1 + pruning.rank
    assert torch.equal(logits(model.network, ROW), before)
    assert all(map(torch.equal, extra_ranks(model, ADAPTER, DOWN), (a, b)))


def test_pruned_weights_go_back_into_the_adapter(tiny_model: MakeModel) -> None:
    """What adapter_weights reads of a pruned adapter is put back by set_adapter_weights, and what it reads of the
    trained one takes the pruning out."""
    model = tiny_model()
    add_random_adapter(model)
    without = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    with pruned(model, ADAPTER, random_pruning(model, SOME)):
        within = adapter_weights(model, ADAPTER), logits(model.network, ROW)
    for weights, expected in (within, without, within):
        set_adapter_weights(model, ADAPTER, weights)
        assert torch.equal(logits(model.network, ROW), expected)


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_what_is_saved_answers_as_the_pruned_adapter(architecture: str, make_run: MakeRun) -> None:
    """Merged weights and the adapter as the kit reads it have the logits of the pruned model."""
    run, model = make_run(architecture)
    before, base = logits(model.network, ROW), Path(run.report["model"])
    with pruned(model, ADAPTER, random_pruning(model, SOME)):
        expected = logits(model.network, ROW)
        save_adapter(model, ADAPTER, run.adapter)
    assert_far(expected, before)
    assert_close(logits(load_reference(export_merged(run)), ROW), expected, 1e-4)
    again = load_tiny(base)
    load_adapter(again, "opened", run.adapter)
    assert torch.equal(logits(again.network, ROW), expected)


def test_a_pruning_comes_back_from_its_file(tiny_model: MakeModel, tmp_path: Path) -> None:
    """The matrices of every map, as a part of a seed keeps them."""
    model = tiny_model()
    add_random_adapter(model)
    pruning = random_pruning(model, SOME)
    save_tensors(_flat(vars(pruning)), tmp_path / "kept.safetensors")
    back = replace(pruning, **_fields(load_tensors(tmp_path / "kept.safetensors", "")))
    for ours, theirs in ((pruning.a, back.a), (pruning.b, back.b)):
        assert set(ours) == set(theirs) == set(SOME)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


# --- the search -------------------------------------------------------------------------------------------------------


def small_search(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A search of 16 settings. A random model hardly opens with a whole refusal: single letters give probabilities to
    tell apart."""
    few = {"WINDOWS": (1, 2), "RANKS": (1, 2), "MOST": 0.2, "KL_LIMIT": 1e9, "SETTINGS": 16}
    for name, value in (few | changes).items():
        monkeypatch.setattr(prosafeprune, name, value)
    monkeypatch.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTWabcdefg"))


def every_setting(model: Model, training: Any) -> dict[tuple[int, bool, int, float], dict[str, Tensor]]:
    """What each of the 16 settings should add to each weight, by whole projections: by the number of layers, attention
    only, rank, strength."""
    kinds = (training.plain, training.toxic, training.seemingly_toxic)
    means, scores = {}, {}
    for i in range(LAYERS):
        maps = adapted_maps(model, ADAPTER, i)
        read = [mean_outputs(model, rows, maps, LAYERS) for rows in kinds]
        means |= {name: [of[name] for of in read] for name in maps}
        of_maps = [silhouette_score(torch.cat(means[name]), [0] * 12 + [1] * 12 + [2] * 12) for name in maps]
        scores[i] = sum(of_maps) / len(of_maps)
    best = 1 if scores[1] > scores[2] else 2  # 30 and 70 % of four layers
    found = {}
    for size, attention_only, rank, strength in product((1, 2), (True, False), (1, 2), (0.5, 1.0)):
        chosen = [best] if size == 1 else [best - 1, best]
        changes = {}
        for name in (name for i in chosen for name in adapted_maps(model, ADAPTER, i)):
            if ".self_attn." in name or not attention_only:
                bases = [torch.linalg.svd(of.double().T).U[:, :rank] for of in means[name]]
                plain, toxic, seemingly_toxic = (u @ u.T for u in bases)
                weight = adapted_weight(model, ADAPTER, name).double()
                dense = (torch.eye(len(weight)) - plain) @ toxic @ seemingly_toxic @ weight
                changes[name] = -strength * dense.float()
        found[size, attention_only, rank, strength] = changes
    return found


def as_setting(pruning: Pruning) -> tuple[int, bool, int, float]:
    return len(pruning.layers), pruning.attention_only, pruning.rank, pruning.strength


def test_the_setting_that_sets_the_kinds_furthest_apart_is_taken(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every setting, by whole projections added to the weights of a second model, which no adapter edits: the best of
    them on validation prompts is the one that is found, with its numbers."""
    small_search(monkeypatch)
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(1)
    trained = add_random_adapter(model)
    done: list[int] = []
    found = fit(model, ADAPTER, training, validation, done.append)
    assert sum(done) == found.tried == 16
    assert all(torch.equal(value, trained[key]) for key, value in adapter_weights(model, ADAPTER).items())

    other = tiny_model()
    add_random_adapter(other)
    before = first_token(other, validation.plain)
    values, kls, settings = {}, {}, every_setting(model, training)
    assert found.before == pytest.approx(apart(other, validation), abs=1e-5)
    for setting, changes in settings.items():
        for sign in (1, -1):
            for name, change in changes.items():
                other.network.get_base_model().get_submodule(name).base_layer.weight.data += sign * change
            if sign == 1:
                values[setting], kls[setting] = (
                    apart(other, validation),
                    first_token_kl(other, validation.plain, before),
                )
    assert len({round(value, 5) for value in values.values()}) == 16
    assert as_setting(found) == max(values, key=lambda setting: values[setting])
    assert found.apart == pytest.approx(values[as_setting(found)], abs=1e-5)
    assert found.kl == pytest.approx(kls[as_setting(found)], abs=1e-4)
    changes = settings[as_setting(found)]
    assert set(changes) == set(found.a) == set(found.b)
    for name, change in changes.items():
        assert_close(-found.strength * found.b[name] @ found.a[name], change, 1e-4)

    limit = sorted(kls.values())[5]
    small_search(monkeypatch, KL_LIMIT=limit * 1.001)
    kept = {setting: value for setting, value in values.items() if kls[setting] <= limit}
    assert as_setting(fit(model, ADAPTER, training, validation)) == max(kept, key=lambda setting: kept[setting])
    small_search(monkeypatch, KL_LIMIT=-1.0)
    assert as_setting(fit(model, ADAPTER, training, validation)) == min(kls, key=lambda setting: kls[setting])


def test_finalists_are_told_apart_by_all_prompts(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one finalist a few prompts decide, with all settings as finalists all prompts do; the numbers that are told
    are of all."""
    small_search(monkeypatch, VALIDATION=2, FINALISTS=1)
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(6)
    add_random_adapter(model)
    by_few = fit(model, ADAPTER, training, validation)
    small_search(monkeypatch, VALIDATION=2, FINALISTS=16)
    by_all = fit(model, ADAPTER, training, validation)
    for one in (by_few, by_all):
        with pruned(model, ADAPTER, one):
            assert one.apart == pytest.approx(apart(model, validation), abs=1e-6)
    assert by_all.apart > by_few.apart


def test_ranks_leave_most_of_a_maps_outputs(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys and values here have 32 outputs, and there are 12 prompts of a kind: a twelfth of them is one rank, the
    larger ones are not tried; the progress counts them as done."""
    small_search(monkeypatch, MOST=1 / 12)
    model, done = tiny_model(), []
    add_random_adapter(model)
    found = fit(model, ADAPTER, random_kinds(0), random_kinds(1), done.append)
    assert (found.rank, found.tried, sum(done)) == (1, 8, 16)


def test_a_window_lies_around_the_best_layer() -> None:
    """So many layers, cut off at either end of the model."""
    assert window(10, 1, 30) == [10]
    assert window(10, 2, 30) == [9, 10]
    assert window(10, 5, 30) == [8, 9, 10, 11, 12]
    assert window(1, 5, 30) == [0, 1, 2, 3]
    assert window(3, 5, 4) == [1, 2, 3]


def test_the_search_is_as_wide_as_it_says() -> None:
    """60 settings, the most ranks within what a small model's keys allow."""
    assert prosafeprune.SETTINGS == 60
    assert max(prosafeprune.RANKS) <= prosafeprune.MOST * 128
