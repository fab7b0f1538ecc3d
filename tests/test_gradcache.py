"""Claims about GradCache: a batch in parts has the gradients of the batch in one piece."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import ADAPTER, add_random_adapter, assert_close, random_rows, take_gradients
from torch import Tensor, nn

from dcr_lite.method.gradcache import GradCache
from dcr_lite.method.losses import circle, cosine_similarity, supervised_contrastive
from dcr_lite.model.adapters import train_only
from dcr_lite.model.hidden_states import prompt_states
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
Rows = list[list[int]]

ROWS = random_rows([3, 9, 1, 4, 4, 12, 2, 7, 5, 6], shared=4)
IS_TOXIC = torch.tensor([True, False] * 5)
LAYER = 2


def whole_batch_loss(states: Tensor) -> Tensor:
    return circle()(cosine_similarity(states - states.mean(0)), IS_TOXIC)


def cut(n_parts: int) -> list[list[int]]:
    """Row numbers by length in so many parts; two are uneven."""
    order = sorted(range(len(ROWS)), key=lambda i: -len(ROWS[i]))
    if n_parts == 2:
        return [order[:3], order[3:]]
    size = len(ROWS) // n_parts
    return [order[i : i + size] for i in range(0, len(ROWS), size)]


def relative_error(gradients: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([g.flatten() for g in some]) for some in (gradients, expected))
    return ((a - b).norm() / b.norm()).item()


def prepared(model: Model) -> tuple[list[nn.Parameter], Callable[[Rows], Tensor]]:
    """The adapter's weights up to LAYER, trainable, and the encoder of one part."""
    add_random_adapter(model)

    def encode(part: Rows) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), LAYER)

    return train_only(model, ADAPTER, range(LAYER + 1)), encode


def backward(
    encode: Callable[[Rows], Tensor], parts: list[list[int]], loss_of: Callable[[Tensor], Tensor] = whole_batch_loss
) -> tuple[float, Tensor]:
    """The loss and the states of a batch in parts, whose gradients are added up."""
    cache = GradCache(encode, ROWS, parts)
    loss = loss_of(cache.states)
    loss.backward()
    cache.backward()
    return loss.item(), cache.states.detach()


@pytest.mark.parametrize("n_parts", [1, 2, 5, 10])
@pytest.mark.parametrize("weights", ["float32", "float64"])
def test_parts_have_the_gradients_of_the_whole(tiny_model: MakeModel, n_parts: int, weights: str) -> None:
    """Loss, states and adapter gradients over 1, 2, 5 and 10 parts equal those of an ordinary backward pass:
    to 1e-6 with weights in double precision, to rounding (1e-5) in float32."""
    model = tiny_model()
    parameters, encode = prepared(model)
    if weights == "float64":
        model.network.double()
    tolerance = 1e-6 if weights == "float64" else 1e-5
    whole = encode(ROWS)
    loss = whole_batch_loss(whole)
    loss.backward()
    expected = take_gradients(parameters)
    assert all(g.abs().max() > 0 for g in expected)
    value, states = backward(encode, cut(n_parts))
    assert value == pytest.approx(loss.item(), rel=tolerance)
    assert_close(states, whole.detach(), tolerance)
    assert relative_error(take_gradients(parameters), expected) < tolerance


def test_gradients_accumulate(tiny_model: MakeModel) -> None:
    """A second call adds to the gradients that are there, as backward() does."""
    parameters, encode = prepared(tiny_model())
    backward(encode, cut(2))
    once = [p.grad.clone() for p in parameters if p.grad is not None]
    backward(encode, cut(5))
    assert relative_error(take_gradients(parameters), [2 * g for g in once]) < 1e-5


def test_bfloat16_gradients_reach_every_part(tiny_model: MakeModel) -> None:
    """With the model's own bfloat16 blocks every part sends a gradient to every weight (none is served a weight that
    autocast cast for the pass without gradients), and the sum is the whole batch's."""
    parameters, encode = prepared(tiny_model(precision=torch.bfloat16))
    reached: list[list[float]] = [[] for _ in parameters]
    for parameter, norms in zip(parameters, reached, strict=True):
        parameter.register_hook(lambda g, norms=norms: norms.append(g.norm().item()))

    def gentle_loss(states: Tensor) -> Tensor:
        return supervised_contrastive(0.5)(cosine_similarity(states), IS_TOXIC)

    backward(encode, cut(1), gentle_loss)
    whole = take_gradients(parameters)
    for norms in reached:
        norms.clear()
    backward(encode, cut(5), gentle_loss)
    assert all(len(norms) == 5 and min(norms) > 0 for norms in reached)
    assert relative_error(take_gradients(parameters), whole) < 0.1
