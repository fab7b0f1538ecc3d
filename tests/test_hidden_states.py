"""Claims about the decoder's two halves: up to layer L for stage 1, above it for stage 2."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import (
    ADAPTER,
    LAYERS,
    PACKABLE,
    PADDED,
    add_random_adapter,
    all_states,
    assert_close,
    assert_far,
    own_states,
    random_rows,
    take_gradients,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dcr_lite.model.adapters import train_only
from dcr_lite.model.hidden_states import (
    decoder_of,
    depth,
    final_states,
    prompt_states,
    states_above,
    states_at_layer,
    vocabulary_logits,
)
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import Batch, filled, pack, pad

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
ROWS = random_rows([5, 1, 12, 5], shared=7)
LAID_OUT = [*((a, lay) for a in PACKABLE for lay in ("pack", "pad")), *((a, "pad") for a in PADDED)]


def laid_out(model: Model, lay: str) -> Batch:
    return pack(ROWS) if lay == "pack" else pad(ROWS, model.tokenizer.pad_token_id)


def reference_states(reference: Any, row: list[int]) -> Tensor:
    """The full model's last state of every token, after the final norm."""
    return reference(input_ids=torch.tensor([row]), output_hidden_states=True).hidden_states[-1][0]


@pytest.mark.parametrize("architecture", [*PACKABLE, *PADDED])
@torch.no_grad()
def test_the_state_at_a_layer_is_that_of_the_full_model(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """Stopping at layer L gives what L puts out in the full model, before the norm, for the last layer as well."""
    model, plain = tiny_model(architecture), reference(architecture)
    seen: list[Tensor] = []
    for layer in plain.model.layers:
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0, -1]))
    from_lists = [all_states(plain, row) for row in ROWS]
    for layer in range(LAYERS):
        states = prompt_states(model.network, model.batch(ROWS), layer)
        for i, (state, from_list) in enumerate(zip(states, from_lists, strict=True)):
            assert_close(state, seen[i * LAYERS + layer])
            # The last entry of transformers' list is after the norm.
            (assert_close if layer < LAYERS - 1 else assert_far)(state, from_list[layer][-1])


def test_each_half_runs_its_own_layers_alone(tiny_model: MakeModel) -> None:
    """States at layer 1 run layers 0 and 1 once each, and compute no vocabulary logits; continuing from there runs
    layers 2 and 3 once each."""
    model = tiny_model()
    batch = model.batch(ROWS)
    ran: list[Any] = []
    for i, layer in enumerate(model.network.model.layers):
        layer.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.network.lm_head.register_forward_hook(lambda *_: ran.append("head"))
    states = states_at_layer(model.network, batch, 1)
    assert ran == [0, 1]
    states_above(model.network, batch, states[None], 1)
    assert ran == [0, 1, 2, 3]


@pytest.mark.parametrize("half", ["below", "above"])
def test_the_decoder_is_whole_again_after_an_exception(tiny_model: MakeModel, half: str) -> None:
    """A layer that raises leaves the decoder with all its layers in order, no hook behind, and the same output."""
    model = tiny_model()
    decoder = decoder_of(model.network)
    layers = list(decoder.layers)
    ids = torch.tensor([ROWS[0]])
    before = model.network(ids).logits
    batch = model.batch(ROWS)
    states = states_at_layer(model.network, batch, 1)[None]

    def fail(*_: Any) -> None:
        raise MemoryError

    handle = decoder.layers[0 if half == "below" else 2].register_forward_pre_hook(fail)
    with pytest.raises(MemoryError):
        states_at_layer(model.network, batch, 1) if half == "below" else states_above(model.network, batch, states, 1)
    handle.remove()
    assert list(decoder.layers) == layers
    assert not any(layer._forward_hooks for layer in layers)
    assert torch.equal(model.network(ids).logits, before)


def assert_halves_are_the_model(model: Model, plain: Any, batch: Batch) -> None:
    """States of every layer L, and these carried through the layers above, are the full model's, row by row."""
    shape, skip = batch.inputs["input_ids"].shape, batch.shared
    alone = [all_states(plain, row) for row in ROWS]
    final = [states[-1][skip:] for states in alone]
    for layer in range(LAYERS - 1):
        lower = states_at_layer(model.network, batch, layer)
        assert_close(own_states(lower, batch, ROWS, skip), [states[layer][skip:] for states in alone])
        upper = states_above(model.network, batch, lower.view(*shape, -1), layer)
        assert_close(own_states(upper, batch, ROWS, skip), final)


@pytest.mark.parametrize(("architecture", "lay"), LAID_OUT)
@torch.no_grad()
def test_the_upper_half_continues_the_lower_one(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, lay: str
) -> None:
    """Packed or padded, both halves together are the full model."""
    model = tiny_model(architecture)
    assert_halves_are_the_model(model, reference(architecture), laid_out(model, lay))


@torch.no_grad()
def test_the_upper_half_keeps_each_layers_own_window(tiny_model: MakeModel, reference: MakeReference) -> None:
    """Gemma 2's layers alternate between a sliding window and full attention; those above L keep theirs."""
    config = {"sliding_window": 4, "attn_logit_softcapping": None}
    model = tiny_model("gemma2", **config)
    assert_halves_are_the_model(model, reference("gemma2", **config), model.batch(ROWS))


@pytest.mark.parametrize("architecture", [*PACKABLE, *PADDED])
@torch.no_grad()
def test_vocabulary_logits_are_the_models_own(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """Logits of final states equal the model's own, its final softcapping included."""
    model, plain = tiny_model(architecture), reference(architecture)
    row = ROWS[2]
    logits = vocabulary_logits(model.network, reference_states(plain, row))
    assert logits.dtype == torch.float32
    assert_close(logits, plain(torch.tensor([row])).logits[0])


@torch.no_grad()
def test_the_output_matrix_is_read_once(tiny_model: MakeModel) -> None:
    """The states behind one opening, a slice across the rows of a batch, take one product with the output matrix, and
    not one for each row, as torch would take them."""

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if {"mm", "bmm", "addmm", "mv"} & set(op._opname.split(".")):
                products.append([tuple(tensor.shape) for tensor in args])
            return op(*args, **(kwargs or {}))

    products: list[Any] = []
    model = tiny_model()
    states = torch.randn(6, 4, model.network.config.hidden_size)
    expected = vocabulary_logits(model.network, states.flatten(0, 1)).view(6, 4, -1)
    with Products():
        logits = vocabulary_logits(model.network, states[:, 1:2])
    assert_close(logits, expected[:, 1:2])
    assert [shapes[0] for shapes in products] == [(6, states.shape[-1])]


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_changes_neither_states_nor_gradients(tiny_model: MakeModel, reentrant: bool) -> None:
    """Models are loaded without gradient checkpointing. With it, of either kind, both halves give the same states and
    adapter gradients, though each layer runs twice."""
    results = []
    for checkpointing in (False, True):
        model = tiny_model()
        add_random_adapter(model)
        if checkpointing:
            assert not any(getattr(m, "gradient_checkpointing", False) for m in model.network.modules())
            model.network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
            model.network.enable_input_require_grads()  # without it the reentrant kind computes no gradient
        model.network.train()
        batch = model.batch(ROWS)
        runs: list[int] = []
        decoder_of(model.network).layers[1].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        parameters = train_only(model, ADAPTER, range(3))
        lower = states_at_layer(model.network, batch, 2)
        (lower[batch.last].tanh().sum()).backward()
        assert len(runs) == 1 + checkpointing  # it ran again in the backward pass: checkpointing was on
        gradients = take_gradients(parameters)
        parameters = train_only(model, ADAPTER, [3])
        upper = states_above(model.network, batch, lower.detach()[None].requires_grad_(), 2)
        upper[batch.last].tanh().sum().backward()
        results.append(([lower.detach(), upper.detach()], gradients, take_gradients(parameters)))
    for plain, checkpointed in zip(*results, strict=True):
        assert all(g.abs().max() > 0 for g in plain)
        assert_close(checkpointed, plain, 1e-6)


@pytest.mark.parametrize(("architecture", "lay"), LAID_OUT)
def test_states_at_some_places_are_those_of_all(tiny_model: MakeModel, architecture: str, lay: str) -> None:
    """Asked for a few places, all three passes give the same states there and the same adapter gradients."""
    model = tiny_model(architecture)
    add_random_adapter(model)
    batch = laid_out(model, lay)
    places = torch.cat([batch.last, batch.index[2][3:7]])
    lower = states_at_layer(model.network, batch, 1).detach().view(*batch.inputs["input_ids"].shape, -1)
    passes: dict[str, Callable[..., Tensor]] = {
        "at a layer": lambda at: states_at_layer(model.network, batch, 2, at),
        "final": lambda at: final_states(model.network, batch, at),
        "above": lambda at: states_above(model.network, batch, lower, 1, at),
    }
    for name, run in passes.items():
        results = []
        for at in (None, places):
            parameters = train_only(
                model, ADAPTER, range(2 if name == "above" else 0, 3 if name == "at a layer" else 4)
            )
            states = run(at) if at is not None else run(None)[places]
            states.tanh().sum().backward()
            results.append([states.detach(), *take_gradients(parameters)])
        assert results[0][0].shape == (len(places), 64)
        assert_close(results[1], results[0])
    assert not any("forward" in vars(layer) for layer in decoder_of(model.network).layers)


@pytest.mark.parametrize("architecture", [kind for kind in PACKABLE if kind != "phi3"])
def test_the_last_layer_works_at_the_places_alone(tiny_model: MakeModel, architecture: str) -> None:
    """Its MLP sees no other token, every other layer's sees them all."""
    model = tiny_model(architecture)
    batch = pack(ROWS)
    seen: list[int] = []
    for layer in model.network.model.layers:
        layer.mlp.register_forward_hook(lambda _module, inputs, _out: seen.append(inputs[0].shape[1]))
    final_states(model.network, batch, batch.last)
    tokens = batch.inputs["input_ids"].shape[1]
    assert seen == [tokens, tokens, tokens, len(filled(batch.last))]
    assert tokens > seen[-1] >= len(ROWS)


@pytest.mark.parametrize("layer", [-1, LAYERS, 99])
def test_a_layer_that_is_not_there_is_refused(tiny_model: MakeModel, layer: int) -> None:
    """A layer out of range raises ValueError and leaves the decoder as it was."""
    model = tiny_model()
    with pytest.raises(ValueError, match=f"layer {layer} .* 4 layers"):
        states_at_layer(model.network, model.batch(ROWS), layer)
    assert depth(model.network) == LAYERS


def test_the_decoder_is_found_with_and_without_adapters(tiny_model: MakeModel) -> None:
    """Wrapping the model in adapters changes neither its decoder nor its depth."""
    model = tiny_model()
    bare = decoder_of(model.network)
    add_random_adapter(model)
    assert decoder_of(model.network) is bare
    assert depth(model.network) == LAYERS
