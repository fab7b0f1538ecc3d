"""Claims about GradCache: a batch in parts has the gradients of the batch in one piece."""

from collections.abc import Callable

import pytest
import torch
from tiny_models import add_random_adapter, assert_close, random_rows, take_gradients
from torch import Tensor

from dcr_lite import gradcache
from dcr_lite.backend import Model, train_only
from dcr_lite.hidden_states import prompt_states
from dcr_lite.losses import circle, cosine_similarity, supervised_contrastive

MakeModel = Callable[..., Model]
Rows = list[list[int]]

ROWS = random_rows([3, 9, 1, 4, 4, 12, 2, 7, 5, 6], shared=4)
IS_TOXIC = torch.tensor([True, False] * 5)
LAYER = 2


def loss_of(states: Tensor) -> Tensor:
    return circle()(cosine_similarity(states - states.mean(0)), IS_TOXIC)


def cut(n_parts: int) -> list[Rows]:
    """Rows in order in so many parts; two are uneven."""
    if n_parts == 2:
        return [ROWS[:3], ROWS[3:]]
    size = len(ROWS) // n_parts
    return [ROWS[i : i + size] for i in range(0, len(ROWS), size)]


@pytest.mark.parametrize("n_parts", [1, 2, 5, 10])
def test_parts_have_the_gradients_of_the_whole(tiny_model: MakeModel, n_parts: int) -> None:
    """Loss, representations and adapter gradients over 1, 2, 5 and 10 parts equal an ordinary backward pass to 1e-6."""
    model = tiny_model()
    add_random_adapter(model)
    parameters = train_only(model, "a", range(LAYER + 1))

    def encode(part: Rows) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), LAYER)

    whole = encode(ROWS)
    loss = loss_of(whole)
    loss.backward()
    expected = take_gradients(parameters)
    assert all(g.abs().max() > 0 for g in expected)
    value, representations = gradcache.backward(encode, cut(n_parts), loss_of)
    assert value == pytest.approx(loss.item(), rel=1e-6)
    assert not representations.requires_grad
    assert_close(representations, whole.detach(), 1e-6)
    assert_close(take_gradients(parameters), expected, 1e-6)


def test_gradients_accumulate(tiny_model: MakeModel) -> None:
    """A second call adds to the gradients that are there, as backward() does."""
    model = tiny_model()
    add_random_adapter(model)
    parameters = train_only(model, "a", range(LAYER + 1))

    def encode(part: Rows) -> Tensor:
        return prompt_states(model.network, model.batch(part), LAYER)

    gradcache.backward(encode, cut(2), loss_of)
    once = [p.grad.clone() for p in parameters if p.grad is not None]
    gradcache.backward(encode, cut(5), loss_of)
    assert_close(take_gradients(parameters), [2 * g for g in once], 1e-6)


def bfloat16_run(model: Model, n_parts: int, outer_block: bool) -> tuple[list[list[float]], list[Tensor]]:
    """For every trainable weight, the norms of the gradients that reached it one after the other; and their sums."""
    parameters = train_only(model, "a", range(LAYER + 1))
    reached: list[list[float]] = [[] for _ in parameters]
    handles = [
        p.register_hook(lambda g, norms=norms: norms.append(g.norm().item()))
        for p, norms in zip(parameters, reached, strict=True)
    ]

    def encode(part: Rows) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch(part), LAYER)

    def loss_of(states: Tensor) -> Tensor:
        return supervised_contrastive(0.5)(cosine_similarity(states), IS_TOXIC)

    if outer_block:
        with model.compute():
            gradcache.backward(encode, cut(n_parts), loss_of)
    else:
        gradcache.backward(encode, cut(n_parts), loss_of)
    for handle in handles:
        handle.remove()
    sums = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return reached, sums


def test_bfloat16_gradients_reach_every_part(tiny_model: MakeModel) -> None:
    """With the model's own bfloat16 blocks every part sends a gradient to every weight, and together the whole's."""
    model = tiny_model(precision=torch.bfloat16)
    add_random_adapter(model)
    _, whole = bfloat16_run(model, 1, outer_block=False)
    reached, sums = bfloat16_run(model, 5, outer_block=False)
    assert all(len(norms) == 5 and min(norms) > 0 for norms in reached)
    error = torch.stack([(a - b).norm() for a, b in zip(sums, whole, strict=True)]).norm()
    assert error < 0.1 * torch.stack([b.norm() for b in whole]).norm()


def test_one_block_around_all_passes_would_lose_gradients(tiny_model: MakeModel) -> None:
    """The trap itself, so that the test above has teeth: autocast keeps what it cast without gradient until the
    outermost block ends, and the passes that need a gradient get none."""
    model = tiny_model(precision=torch.bfloat16)
    add_random_adapter(model)
    try:
        reached, _ = bfloat16_run(model, 5, outer_block=True)
    except RuntimeError:
        return  # nothing had a gradient at all
    assert any(len(norms) < 5 or min(norms) == 0 for norms in reached)
