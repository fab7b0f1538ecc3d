"""Claims about the contrastive losses, against references with plain loops in double precision."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dcr_lite.method.losses import Loss, circle, cosine_similarity, info_nce, supervised_contrastive

Reference = Callable[[list[list[Tensor]], list[bool]], Tensor]


def log_sum_exp(values: list[Tensor]) -> Tensor:
    top = max(float(v) for v in values)
    return top + torch.log(sum((torch.exp(v - top) for v in values), torch.zeros((), dtype=torch.float64)))


def softplus(x: Tensor) -> Tensor:
    return x + torch.log1p(torch.exp(-x)) if x > 0 else torch.log1p(torch.exp(x))


def neighbours(i: int, kinds: list[bool]) -> tuple[list[int], list[int]]:
    positives = [j for j in range(len(kinds)) if j != i and kinds[j] == kinds[i]]
    return positives, [j for j in range(len(kinds)) if kinds[j] != kinds[i]]


def mean_over_anchors(term: Callable[[int, list[int], list[int]], Tensor], kinds: list[bool]) -> Tensor:
    terms = []
    for i in range(len(kinds)):
        positives, negatives = neighbours(i, kinds)
        if positives and negatives:
            terms.append(term(i, positives, negatives))
    return sum(terms[1:], terms[0]) / len(terms)


def loop_circle(margin: float, scale: float, detach: bool = True) -> Reference:
    """Sun et al., eq. 6, one pair at a time; ``float`` takes the weights out of the graph."""

    def weight(x: Tensor) -> Tensor | float:
        return max(0.0, float(x)) if detach else x.clamp_min(0)

    def loss(s: list[list[Tensor]], kinds: list[bool]) -> Tensor:
        def term(i: int, positives: list[int], negatives: list[int]) -> Tensor:
            pull = [-scale * weight(1 + margin - s[i][j]) * (s[i][j] - (1 - margin)) for j in positives]
            push = [scale * weight(s[i][j] + margin) * (s[i][j] - margin) for j in negatives]
            return softplus(log_sum_exp(push) + log_sum_exp(pull))

        return mean_over_anchors(term, kinds)

    return loss


def loop_supervised_contrastive(temperature: float) -> Reference:
    """Khosla et al., eq. 2, one pair at a time."""

    def loss(s: list[list[Tensor]], kinds: list[bool]) -> Tensor:
        def term(i: int, positives: list[int], negatives: list[int]) -> Tensor:
            everyone = log_sum_exp([s[i][j] / temperature for j in positives + negatives])
            terms = [everyone - s[i][j] / temperature for j in positives]
            return sum(terms[1:], terms[0]) / len(positives)

        return mean_over_anchors(term, kinds)

    return loss


def loop_info_nce(temperature: float) -> Reference:
    """van den Oord et al., eq. 4, one positive at a time against the anchor's negatives."""

    def loss(s: list[list[Tensor]], kinds: list[bool]) -> Tensor:
        def term(i: int, positives: list[int], negatives: list[int]) -> Tensor:
            terms = [
                log_sum_exp([s[i][k] / temperature for k in [j, *negatives]]) - s[i][j] / temperature for j in positives
            ]
            return sum(terms[1:], terms[0]) / len(positives)

        return mean_over_anchors(term, kinds)

    return loss


LOSSES: dict[str, tuple[Loss, Reference]] = {
    "circle": (circle(0.25, 16.0), loop_circle(0.25, 16.0)),
    "circle, scale 256": (circle(0.25, 256.0), loop_circle(0.25, 256.0)),
    "circle, margin 0.4": (circle(0.4, 32.0), loop_circle(0.4, 32.0)),
    "supervised contrastive": (supervised_contrastive(0.1), loop_supervised_contrastive(0.1)),
    "supervised contrastive, cold": (supervised_contrastive(0.01), loop_supervised_contrastive(0.01)),
    "InfoNCE": (info_nce(0.1), loop_info_nce(0.1)),
    "InfoNCE, cold": (info_nce(0.01), loop_info_nce(0.01)),
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def gaussian(n: int, seed: int) -> Tensor:
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))


UNEVEN = [True, False, True, True, False, True, False]
TWO_AND_TWO = [True, True, False, False]
BATCHES = {
    "uneven kinds": (gaussian(7, 0), UNEVEN),
    "one huge component": (gaussian(7, 1) + 5, UNEVEN),
    "one prompt of a kind": (gaussian(4, 2), [True, False, False, False]),
    "duplicates": (gaussian(1, 3).repeat(4, 1), TWO_AND_TWO),
    "opposite": (torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]]), [True, False, True, False]),
    "huge and minute": (torch.tensor([[1e15, 1.0], [1e-7, 2e-7], [3.0, -1.0], [0.5, 1e15]]), TWO_AND_TWO),
}


def value_and_gradient(loss: Loss, states: Tensor, kinds: list[bool]) -> tuple[Tensor, Tensor]:
    leaf = states.clone().requires_grad_()
    value = loss(cosine_similarity(leaf), torch.tensor(kinds))
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


def reference_value_and_gradient(reference: Reference, states: Tensor, kinds: list[bool]) -> tuple[Tensor, Tensor]:
    leaf = states.double().clone().requires_grad_()
    rows = [leaf[i] / torch.sqrt((leaf[i] ** 2).sum()) for i in range(len(leaf))]
    value = reference([[(a * b).sum() for b in rows] for a in rows], kinds)
    value.backward()
    assert leaf.grad is not None
    return value.detach(), leaf.grad


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, list[bool], list[int]]:
    """(states, kinds, a permutation) with at least two prompts of each kind."""
    kinds = [*draw(st.lists(st.booleans(), max_size=6)), *TWO_AND_TWO]
    states = gaussian(len(kinds), draw(st.integers(0, 999)))
    return states.double(), kinds, list(draw(st.permutations(range(len(kinds)))))


@every_loss
@pytest.mark.parametrize("batch", BATCHES)
def test_value_and_gradient_are_those_of_plain_loops(name: str, batch: str) -> None:
    """In double precision value and gradient equal a loop over pairs, also where float32 would be at its limits."""
    loss, reference = LOSSES[name]
    states, kinds = BATCHES[batch]
    value, gradient = value_and_gradient(loss, states.double(), kinds)
    expected_value, expected_gradient = reference_value_and_gradient(reference, states, kinds)
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-7, atol=1e-9)


@every_loss
def test_float32_is_close_to_the_loops(name: str) -> None:
    """In float32, in which training runs, value and gradient equal the loops to five digits."""
    loss, reference = LOSSES[name]
    states, kinds = BATCHES["uneven kinds"]
    value, gradient = value_and_gradient(loss, states, kinds)
    expected_value, expected_gradient = reference_value_and_gradient(reference, states, kinds)
    assert value.item() == pytest.approx(expected_value.item(), rel=1e-5)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


@pytest.mark.parametrize("batch", ["uneven kinds", "one huge component"])
def test_circle_with_weights_in_the_graph_is_another_loss(batch: str) -> None:
    """Undetached weights keep the value and turn the gradient by more than 5 %, so the pin above has teeth."""
    states, kinds = BATCHES[batch]
    value, gradient = reference_value_and_gradient(loop_circle(0.25, 16.0), states, kinds)
    other_value, other = reference_value_and_gradient(loop_circle(0.25, 16.0, detach=False), states, kinds)
    assert other_value.item() == pytest.approx(value.item(), rel=1e-12)
    assert (other - gradient).norm() > 0.05 * gradient.norm()
    kits = value_and_gradient(circle(0.25, 16.0), states.double(), kinds)[1]
    assert (kits - gradient).norm() < 1e-6 * gradient.norm()


@every_loss
@pytest.mark.parametrize("kinds", [[True] * 4, [False] * 4, [True], [True, False], []])
def test_a_batch_with_nothing_to_contrast_is_refused(name: str, kinds: list[bool]) -> None:
    """All one kind, or no two prompts of a kind, raises ValueError instead of giving nan."""
    with pytest.raises(ValueError, match="contrastive batch needs"):
        LOSSES[name][0](torch.eye(len(kinds)), torch.tensor(kinds, dtype=torch.bool))


@every_loss
def test_kinds_that_do_not_fit_the_similarities_are_refused(name: str) -> None:
    """Three kinds for four prompts raise ValueError."""
    with pytest.raises(ValueError, match="3 prompts"):
        LOSSES[name][0](torch.eye(4), torch.tensor([True, False, True]))


HARD = {
    **{name: states for name, (states, _) in BATCHES.items()},
    "zero vectors": torch.zeros(6, 4),
    "one zero vector": torch.cat([torch.zeros(1, 5), gaussian(5, 4)]),
    "all alike": torch.ones(6, 4),
    "large": 1e18 * gaussian(6, 5),
}


@every_loss
@pytest.mark.parametrize("hard", HARD)
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_hard_input_gives_a_finite_value_and_gradient(name: str, hard: str, precision: torch.dtype) -> None:
    """Zero vectors, duplicates, opposite and huge states, in float32 and bfloat16: finite value and gradient."""
    states = HARD[hard].to(precision)
    kinds = [i % 2 == 0 for i in range(len(states))]
    value, gradient = value_and_gradient(LOSSES[name][0], states, kinds)
    assert value.dtype == torch.float32
    assert gradient.dtype == precision
    assert math.isfinite(value.item())
    assert value >= 0
    assert torch.isfinite(gradient).all()


def test_a_zero_state_is_similar_to_nothing() -> None:
    """A zero row has similarity 0 to every row, itself included, and unit rows have 1 to themselves."""
    similarity = cosine_similarity(torch.tensor([[0.0, 0.0], [3.0, 4.0]]))
    assert similarity.tolist() == [[0.0, 0.0], [0.0, pytest.approx(1.0)]]


def test_bfloat16_states_are_compared_in_float32() -> None:
    """The cosines of bfloat16 states are those of the same numbers in float32, not rounded to three digits."""
    states = torch.randn(6, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(cosine_similarity(states), cosine_similarity(states.float()))


@every_loss
def test_bfloat16_similarities_are_computed_in_float32(name: str) -> None:
    """A loss handed bfloat16 similarities computes in float32 from there on."""
    loss, (states, kinds) = LOSSES[name][0], BATCHES["uneven kinds"]
    similarity = cosine_similarity(states).bfloat16()
    assert torch.equal(loss(similarity, torch.tensor(kinds)), loss(similarity.float(), torch.tensor(kinds)))


@every_loss
@given(batch=batches())
def test_order_in_the_batch_does_not_matter(name: str, batch: tuple[Tensor, list[bool], list[int]]) -> None:
    """Permuting the prompts keeps the value and permutes the gradients."""
    states, kinds, order = batch
    value, gradient = value_and_gradient(LOSSES[name][0], states, kinds)
    other_value, other = value_and_gradient(LOSSES[name][0], states[order], [kinds[i] for i in order])
    torch.testing.assert_close(other_value, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(other, gradient[order], rtol=1e-7, atol=1e-9)


@every_loss
@given(batch=batches())
def test_which_kind_is_called_toxic_does_not_matter(name: str, batch: tuple[Tensor, list[bool], list[int]]) -> None:
    """Swapping the two kinds changes nothing: the losses know sameness only."""
    states, kinds, _ = batch
    value, gradient = value_and_gradient(LOSSES[name][0], states, kinds)
    other_value, other = value_and_gradient(LOSSES[name][0], states, [not k for k in kinds])
    assert torch.equal(value, other_value)
    assert torch.equal(gradient, other)


@every_loss
@given(batch=batches())
def test_length_of_a_state_does_not_matter(name: str, batch: tuple[Tensor, list[bool], list[int]]) -> None:
    """Only directions count: scaling single states keeps the value."""
    states, kinds, _ = batch
    scales = torch.linspace(0.1, 10, len(states), dtype=torch.float64)[:, None]
    value, _ = value_and_gradient(LOSSES[name][0], states, kinds)
    other, _ = value_and_gradient(LOSSES[name][0], states * scales, kinds)
    torch.testing.assert_close(other, value, rtol=1e-9, atol=1e-12)


@every_loss
def test_separated_kinds_lose_less_than_mixed_ones(name: str) -> None:
    """Two opposite clusters have a lower loss than prompts without order, and than the same clusters mislabelled."""
    loss = LOSSES[name][0]
    kinds = [True] * 4 + [False] * 4
    separated = torch.tensor([[1.0, 0.0]] * 4 + [[-1.0, 0.0]] * 4)
    mixed = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    value = value_and_gradient(loss, separated, kinds)[0]
    assert value < value_and_gradient(loss, mixed, kinds)[0]
    assert value < value_and_gradient(loss, separated, [i % 2 == 0 for i in range(8)])[0]


@every_loss
def test_following_the_gradient_separates_the_kinds(name: str) -> None:
    """A step against the gradient lowers the loss."""
    states, kinds = BATCHES["uneven kinds"]
    value, gradient = value_and_gradient(LOSSES[name][0], states.double(), kinds)
    step = 1e-5 / gradient.norm()
    assert value_and_gradient(LOSSES[name][0], states.double() - step * gradient, kinds)[0] < value
