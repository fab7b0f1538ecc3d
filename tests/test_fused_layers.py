"""Claims about the fused layers: values and gradients of the library's own layers, with less kept in between."""

import copy
from collections.abc import Callable

import pytest
import torch
from _sides import library_layers
from hypothesis import given
from hypothesis import strategies as st
from peft.tuners.lora import Linear as LoraLinear
from tiny_models import (
    ADAPTER,
    PACKABLE,
    add_random_adapter,
    assert_close,
    kept_bytes,
    random_rows,
    take_gradients,
)
from torch import Tensor, nn
from torch.nn.functional import silu
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from dcr_lite.model import fused_layers
from dcr_lite.model.adapters import activate, add_adapter, stock, train_only
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
LAST = 3


def unfused(model: Model) -> Model:
    """The same model with the library's own layers."""
    other = copy.deepcopy(model)
    library_layers(other.network)
    return other


def fused_kinds(model: Model) -> set[str]:
    kinds = set()
    for module in decoder_of(model.network).modules():
        forward = getattr(module.__dict__.get("forward"), "func", None)
        if getattr(forward, "__module__", "") == fused_layers.__name__:
            kinds.add(type(module).__name__)
    return kinds


@pytest.mark.parametrize("architecture", PACKABLE)
def test_a_decoder_has_the_librarys_values_and_gradients(tiny_model: MakeModel, architecture: str) -> None:
    """All three kinds of layers are fused (of Phi, whose MLP has one map for two, the others), and states and adapter
    gradients are those of the library's own layers."""
    model = tiny_model(architecture)
    add_random_adapter(model)
    plain = unfused(model)
    assert len(fused_kinds(model)) == (2 if architecture == "phi3" else 3)
    assert not fused_kinds(plain)
    rows = random_rows([5, 9, 2], shared=4)
    outcome = []
    for each in (model, plain):
        parameters = train_only(each, ADAPTER, range(LAST + 1))
        states = states_at_layer(each.network, each.batch(rows), LAST)
        states.square().sum().backward()
        outcome.append([states.detach(), *take_gradients(parameters)])
    for ours, theirs in zip(*outcome, strict=True):
        assert_close(ours, theirs)


def test_without_its_adapter_a_fused_model_is_the_stock_model(tiny_model: MakeModel) -> None:
    """Within stock() the states are those from before the adapter came."""
    model = tiny_model("llama")
    batch = model.batch(random_rows([5, 9], shared=4))
    with torch.no_grad():
        bare = states_at_layer(model.network, batch, LAST)
        add_random_adapter(model)
        adapted = states_at_layer(model.network, batch, LAST)
        with stock(model):
            again = states_at_layer(model.network, batch, LAST)
    assert_close(again, bare)
    assert (adapted - bare).norm() > 1e-2 * bare.norm()


def test_a_layer_that_was_never_trained_costs_nothing(tiny_model: MakeModel) -> None:
    """With an adapter that adds nothing yet the decoder does the stock model's operations, to the last bit of its
    states; the layer that trains does the adapter's, and has gradients, as all of them behind it."""
    model = tiny_model("llama")
    add_adapter(model, ADAPTER, rank=4, seed=0)
    batch = model.batch(random_rows([5, 9], shared=4))

    def operations() -> tuple[Tensor, int]:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(False):
            states = states_at_layer(model.network, batch, LAST)
        return states, counter.get_total_flops()

    with stock(model):
        states, least = operations()
    idle, of_idle = operations()
    assert torch.equal(idle, states)
    assert of_idle == least
    parameters = train_only(model, ADAPTER, [1])
    assert operations()[1] > least
    states_at_layer(model.network, batch, LAST).square().sum().backward()
    assert sum(bool(p.grad is not None and p.grad.any()) for p in parameters) == len(parameters) // 2  # B, at zero
    with torch.no_grad():
        parameters[1].add_(1)
    activate(model, ADAPTER)
    changed, of_one = operations()
    assert not torch.equal(changed, states)
    assert of_one > least


def test_four_bit_weights_and_other_formulas_are_left_to_the_library(tiny_model: MakeModel) -> None:
    """Linear maps in NF4, and Gemma's MLP and norms, keep their own forward pass."""
    four_bit = tiny_model("llama", four_bit=True)
    add_random_adapter(four_bit)
    assert fused_kinds(four_bit) == {"LlamaMLP", "LlamaRMSNorm"}
    gemma = tiny_model("gemma2")
    add_random_adapter(gemma)
    assert fused_kinds(gemma) == {LoraLinear.__name__}


def both_gradients(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], *inputs: Tensor) -> None:
    """The two functions have the same value, and the same gradient in every input, for an arbitrary gradient behind."""
    outcome = []
    for function in (ours, theirs):
        own = [x.clone().requires_grad_() for x in inputs]
        out = function(*own)
        (out * torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
        outcome.append([out.detach(), *(x.grad for x in own)])
    for one, other in zip(*outcome, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


sizes = st.integers(1, 9)


@given(sizes, sizes, sizes, st.integers(1, 4), st.sampled_from([1.0, 0.5, 2.0]), st.booleans())
def test_a_low_rank_layer(n: int, wide: int, out: int, rank: int, scaling: float, biased: bool) -> None:
    """Value and gradients of LowRank are those of the plain formula."""
    torch.manual_seed(n * 100 + wide * 10 + out)
    weight, bias = torch.randn(out, wide), torch.randn(out) if biased else None

    def plain(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return nn.functional.linear(x, weight, bias) + scaling * (x @ a.T @ b.T)

    def ours(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return fused_layers.LowRank.apply(x, weight, bias, a, b, scaling)

    both_gradients(ours, plain, torch.randn(n, wide), torch.randn(rank, wide), torch.randn(out, rank))


@given(sizes, sizes, st.floats(0.1, 20))
def test_a_swiglu(n: int, wide: int, size: float) -> None:
    """Value and gradients of SwiGLU are those of the plain formula."""
    torch.manual_seed(n * 10 + wide)
    gate, up = size * torch.randn(n, wide), torch.randn(n, wide)
    both_gradients(fused_layers.SwiGLU.apply, lambda g, u: silu(g) * u, gate, up)


@given(sizes, st.integers(2, 9), st.floats(0.01, 100))
def test_a_norm(n: int, wide: int, size: float) -> None:
    """Value and gradients of RMSNorm are those of transformers' LlamaRMSNorm."""
    torch.manual_seed(n * 10 + wide)
    norm = LlamaRMSNorm(wide)
    norm.weight = nn.Parameter(torch.randn(wide), requires_grad=False)

    def ours(x: Tensor) -> Tensor:
        return fused_layers.RMSNorm.apply(x, norm.weight, norm.variance_epsilon)

    both_gradients(ours, norm, size * torch.randn(n, wide))


def test_without_gradients_a_layer_says_the_same(tiny_model: MakeModel) -> None:
    """Bit for bit, of all three kinds, though nothing goes through autograd then."""
    model = tiny_model("llama")
    add_random_adapter(model)
    layer = decoder_of(model.network).layers[1]
    states = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    for module in (layer.self_attn.q_proj, layer.mlp, layer.input_layernorm):
        with_gradients = module(states.clone().requires_grad_())
        assert with_gradients.grad_fn is not None
        with torch.no_grad():
            assert torch.equal(module(states), with_gradients)


def test_less_is_kept_for_the_backward_pass(tiny_model: MakeModel) -> None:
    """Bytes of activations that autograd saves in a pass over all layers."""
    model = tiny_model("llama", torch.bfloat16)
    add_random_adapter(model)
    train_only(model, ADAPTER, range(LAST + 1))
    rows = random_rows([30, 40])
    assert kept_bytes(model, rows, LAST) < 0.9 * kept_bytes(unfused(model), rows, LAST)
