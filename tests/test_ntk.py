"""Claims about the normalised kernel similarity: the exact one is the definition's, the sketch is near it by its own
stated error."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import add_random_adapter, assert_close, random_rows
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from dcr_lite.diagnose import ntk
from dcr_lite.diagnose.ntk import (
    Gradients,
    gradients,
    label_similarities,
    last_layer_similarity,
    mean_similarity,
    products,
    similarity,
)
from dcr_lite.model.adapters import train_only
from dcr_lite.model.hidden_states import decoder_of, output_matrix, vocabulary_logits
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
D_MODEL, VOCABULARY = 32, 48
ROWS = random_rows([5, 9, 3, 7], shared=4, vocabulary=VOCABULARY)
OFF_DIAGONAL = ~torch.eye(len(ROWS), dtype=torch.bool)
SMALL = {"hidden_size": D_MODEL, "intermediate_size": 64, "num_hidden_layers": 2, "vocab_size": VOCABULARY}


def prepared(tiny_model: MakeModel, architecture: str = "llama") -> tuple[Model, list[nn.Parameter]]:
    """A model so small that every logit's gradient can be taken, and the weights of its random adapter."""
    kinds = {"layer_types": ["sliding_attention", "full_attention"]} if architecture == "gemma3" else {}
    model = tiny_model(architecture, **SMALL, **kinds)
    add_random_adapter(model)
    return model, train_only(model, "first", range(2))


def blocks(found: Gradients) -> Tensor:
    return products(found.left, found.right)


def by_definition(model: Model, weights: list[nn.Parameter]) -> Tensor:
    """||K(x', x)||_F / ||K(x', x')||_F from the gradient of every single logit."""
    jacobians = []
    for row in ROWS:
        batch = model.batch([row], 0)
        state = decoder_of(model.network)(**batch.inputs, use_cache=False).last_hidden_state[0, batch.last[0]]
        logits = vocabulary_logits(model.network, state[None])[0]
        slopes = [torch.autograd.grad(z, weights, retain_graph=True) for z in logits]
        jacobians.append(torch.stack([torch.cat([g.flatten() for g in one]) for one in slopes]).double())
    sizes = torch.tensor([[(a @ b.T).norm() for b in jacobians] for a in jacobians])
    return sizes / sizes.diagonal()[:, None]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma3"])
def test_exact_similarity_is_the_definition(tiny_model: MakeModel, architecture: str) -> None:
    """d_model gradients give what the gradients of all logits give, also where the output matrix is tied; leaving
    nothing trainable that was not."""
    model, weights = prepared(tiny_model, architecture)
    weights[0].requires_grad_(False)
    found = gradients(model, [weights], ROWS, projections=D_MODEL)
    assert found.exact
    assert [w.requires_grad for w in weights[:2]] == [False, True]
    for weight in weights:
        weight.requires_grad_(True)
    exact = similarity(blocks(found))
    assert_close(exact.float(), by_definition(model, weights).float(), 1e-4)
    assert_close(exact.diagonal(), torch.ones(4))
    assert mean_similarity(blocks(found), OFF_DIAGONAL, True) == (pytest.approx(float(exact[OFF_DIAGONAL].mean())), 0)


def test_groups_of_weights_add_up(tiny_model: MakeModel) -> None:
    """The kernel of all weights is the sum of those of its parts; each part is its own kernel too."""
    model, weights = prepared(tiny_model)
    half = len(weights) // 2
    whole = gradients(model, [weights], ROWS, D_MODEL)
    parts = gradients(model, [weights[:half], weights[half:]], ROWS, D_MODEL)
    assert_close(blocks(parts), blocks(whole), 1e-4)
    upper = gradients(model, [weights[half:]], ROWS, D_MODEL)
    assert_close(products(parts.left[1:], parts.right[1:]), blocks(upper), 1e-4)


@pytest.mark.parametrize("buckets", [2**16, 2048])
def test_sketch_is_near_the_exact_value_by_its_stated_error(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, buckets: int
) -> None:
    """Over several seeds, with and without folding long gradients: the mean is right, and values scatter about as far
    as each of them says."""
    model, weights = prepared(tiny_model)
    assert 2048 < sum(weight.numel() for weight in weights) < 2**16
    exact = float(similarity(blocks(gradients(model, [weights], ROWS, D_MODEL)))[OFF_DIAGONAL].mean())
    monkeypatch.setattr(ntk, "BUCKETS", buckets)
    values, errors = [], []
    for seed in range(6):
        found = gradients(model, [weights], ROWS, 12, seed)
        assert not found.exact
        value, error = mean_similarity(blocks(found), OFF_DIAGONAL, found.exact)
        values.append(value)
        errors.append(error)
        assert abs(value - exact) < 5 * error
    scatter = float(torch.tensor(values).std())
    stated = float(torch.tensor(errors).square().mean().sqrt())
    assert abs(sum(values) / 6 - exact) < 3 * stated / 6**0.5 + 0.02
    assert stated / 3 < scatter < 3 * stated
    assert 0.005 < stated < 0.2  # an error that says something, and projections that are worth their name


def test_more_projections_state_a_smaller_error(tiny_model: MakeModel) -> None:
    model, weights = prepared(tiny_model)

    def stated(projections: int) -> float:
        of = (gradients(model, [weights], ROWS, projections, seed) for seed in range(2))
        return sum(mean_similarity(blocks(found), OFF_DIAGONAL, found.exact)[1] for found in of) / 2

    assert stated(24) < stated(5) / 1.5


def test_last_layer_similarity_is_the_definition(tiny_model: MakeModel) -> None:
    """With respect to the output matrix, by the gradient of every logit."""
    model, weights = prepared(tiny_model)
    states = gradients(model, [weights[:1]], ROWS, 2).states
    matrix = output_matrix(model.network).clone().requires_grad_()

    def jacobian(state: Tensor) -> Tensor:
        return torch.stack([torch.autograd.grad(z, matrix, retain_graph=True)[0].flatten() for z in matrix @ state])

    jacobians = [jacobian(state) for state in states]
    sizes = torch.tensor([[(a @ b.T).norm() for b in jacobians] for a in jacobians])
    assert_close(last_layer_similarity(states), sizes / sizes.diagonal()[:, None], 1e-4)


def test_similarity_is_directed() -> None:
    """Orthogonal gradients give 0, and the direction counts: a strong gradient moves a weak one more."""
    left = [torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]], [[2.0, 0.0]]])]  # prompts 1 weights
    assert_close(similarity(products(left, left)), torch.tensor([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0], [0.5, 0.0, 1.0]]))


def test_means_by_label_are_those_of_their_pairs_of_prompts(tiny_model: MakeModel) -> None:
    """Of all layers, of those above L, and of the output matrix; no prompt is compared with itself, and a seemingly
    toxic one with its own toxic side. Exact, so without an error."""
    model, weights = prepared(tiny_model)
    prompts = {"toxic": ROWS[:2], "seemingly_toxic": ROWS[2:], "plain": random_rows([6], 4, vocabulary=VOCABULARY)}
    found = label_similarities(model, "first", 0, prompts, D_MODEL)
    assert found["exact"]
    assert found["prompts"] == {"toxic": 2, "seemingly_toxic": 2, "plain": 1}
    rows, of_label = ROWS + prompts["plain"], {"toxic": [0, 1], "seemingly_toxic": [2, 3], "plain": [4]}
    groups = {"all": weights, "above": train_only(model, "first", [1])}
    kernels = {name: gradients(model, [group], rows, D_MODEL) for name, group in groups.items()}
    expected = {name: similarity(blocks(kernel)) for name, kernel in kernels.items()}
    expected["last_layer"] = last_layer_similarity(kernels["all"].states)
    for name, part in {**found["adapter"], "last_layer": found["last_layer"]}.items():
        for moved, i in of_label.items():
            for by, j in of_label.items():
                values = [float(expected[name][a, b]) for a in i for b in j if a != b]
                if values:
                    assert part["means"][moved][by] == [pytest.approx(sum(values) / len(values), rel=1e-4), 0]
        pair = (expected[name][2, 0] + expected[name][3, 1]) / 2
        assert part["pair"] == [pytest.approx(float(pair), rel=1e-4), 0]
    assert "plain" not in found["last_layer"]["means"]["plain"]


class _Sizes(TorchDispatchMode):
    """Notes the bytes of every float64 tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            self.largest = max(self.largest, out.untyped_storage().nbytes())
        return out


def test_the_root_of_a_large_output_matrix_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """No copy of the whole matrix in float64, which is 4.2 GB for 128,256 tokens of 4,096: only blocks of its columns;
    and the root is that of the whole."""
    monkeypatch.setattr(ntk, "COLUMNS", 16)
    matrix = torch.randn(2000, 96, generator=torch.Generator().manual_seed(0))
    with _Sizes() as sizes:
        root = ntk._root(matrix)
    assert sizes.largest <= 8 * max(2000 * 16, 96 * 96)
    assert_close(root @ root, matrix.T @ matrix, 1e-4)
