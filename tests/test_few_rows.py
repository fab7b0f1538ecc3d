"""Claims about linear maps of few rows: the same numbers in another order of the product."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import random_rows
from torch import nn
from torch.nn import functional

from dcr_lite.model import few_rows
from dcr_lite.model.few_rows import FEWEST, MOST, linear
from dcr_lite.model.loading import Model

SHAPES = st.lists(st.integers(1, 9), max_size=2)


@given(SHAPES, st.integers(1, 40), st.integers(1, 40), st.booleans(), st.integers(0, 9))
def test_it_is_the_linear_map(shape: list[int], inputs: int, outputs: int, biased: bool, seed: int) -> None:
    """For rows laid out in any way, with a bias and without: torch's own numbers."""
    draw = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(*shape, inputs, generator=draw), torch.randn(outputs, inputs, generator=draw)
    bias = torch.randn(outputs, generator=draw) if biased else None
    with torch.no_grad():
        found = linear(x, weight, bias)
    torch.testing.assert_close(found, functional.linear(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [FEWEST - 1, FEWEST, MOST, MOST + 1])
def test_only_few_rows_without_gradient_are_turned(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others are torch's own: bit for bit, with gradients, in any type."""
    calls: list[tuple[int, ...]] = []
    plain = functional.linear
    monkeypatch.setattr(functional, "linear", lambda x, *more: (calls.append(tuple(x.shape)), plain(x, *more))[1])
    x, weight = torch.randn(rows, 16), torch.randn(8, 16, requires_grad=True)
    with torch.no_grad():
        linear(x, weight)
        assert bool(calls) != (FEWEST <= rows <= MOST)
        calls.clear()
        linear(x.bfloat16(), weight.bfloat16())
        linear(x.double(), weight.double())
    linear(x, weight).sum().backward()
    assert calls == [(rows, 16)] * 3
    torch.testing.assert_close(weight.grad, x.sum(0).expand(8, -1))


def test_a_loaded_model_computes_so(tiny_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dense map of a model on a CPU, the output matrix too, with the logits that it has otherwise."""
    model = tiny_model("qwen2")
    model.set_training(False)
    rows = torch.tensor(random_rows([5] * 3))
    calls: list[int] = []
    plain = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *given: (calls.append(1), plain(*given))[1])
    with torch.no_grad():
        found = model.network(input_ids=rows).logits
        assert not calls
        monkeypatch.setattr(few_rows, "FEWEST", MOST)
        expected = model.network(input_ids=rows).logits
    assert len(calls) == sum(type(module) is nn.Linear for module in model.network.modules())
    assert all(type(module) is nn.Linear for module in model.network.modules() if "forward" in module.__dict__)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
