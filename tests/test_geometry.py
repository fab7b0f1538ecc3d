"""Which differences between states count, and how far apart two kinds are."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from sklearn.covariance import shrunk_covariance
from sklearn.metrics import roc_auc_score

from dcr_lite.method.geometry import SHRINKAGE, Geometry, kinds_of_pairs
from dcr_lite.method.layers import crossed_separation
from dcr_lite.method.read_out import difference_of_means, read_out, reads_as_toxic
from dcr_lite.model.double import in_double


def stretched_states(n: int = 200, width: int = 8, seed: int = 0) -> torch.Tensor:
    """States far from the origin whose spread differs a hundredfold between directions."""
    torch.manual_seed(seed)
    return torch.randn(n, width) * torch.logspace(0, 2, width) + 50


@pytest.mark.parametrize("centre", ["batch", "stock", "none"])
@pytest.mark.parametrize("whiten", [True, False])
def test_states_become_unit_vectors_in_float32(centre: str, whiten: bool) -> None:
    """Whatever the centre, rows come out with length 1 and in float32, from bfloat16 too."""
    states = stretched_states()
    units = Geometry.fit(states, centre, whiten)(states.bfloat16())  # type: ignore[arg-type]
    assert units.dtype == torch.float32
    torch.testing.assert_close(units.norm(dim=1), torch.ones(len(units)))


def test_raw_states_are_the_papers_choice() -> None:
    """Without centre and whitening the cosines are those of the states as they are."""
    states = stretched_states()
    units = Geometry.fit(states, "none", whiten=False)(states)
    torch.testing.assert_close(units @ units.T, torch.nn.functional.cosine_similarity(states[:, None], states, dim=-1))


@given(shift=st.floats(-1e3, 1e3))
@settings(deadline=None, max_examples=20)
def test_moving_all_states_one_way_gains_nothing_with_the_batch_centre(shift: float) -> None:
    """A common shift leaves the unit vectors alone; against the stock mean it would pull them all together."""
    states = stretched_states()
    geometry = Geometry.fit(states, "batch", whiten=True)
    torch.testing.assert_close(geometry(states + shift), geometry(states), atol=2e-3, rtol=0)


def test_a_common_shift_collapses_the_stock_centre() -> None:
    """The reason for the batch centre: far from the stock mean every cosine is 1, whatever the kind."""
    states = stretched_states()
    units = Geometry.fit(states, "stock", whiten=True)(states + 1e5)
    assert (units @ units.T).min() > 0.99


def test_whitening_brings_every_direction_to_a_like_spread() -> None:
    """A hundredfold difference in spread falls below twofold."""
    states = stretched_states(2000)
    geometry = Geometry.fit(states, "stock", whiten=True)
    assert geometry.whitening is not None
    before, after = states.std(0), ((states - geometry.mean) @ geometry.whitening).std(0)
    assert before.max() / before.min() > 50
    # The shrinkage towards a sphere keeps directions of almost no spread small: look at those that carry the variance.
    carrying = before > before.max() / 4
    assert after[carrying].max() / after[carrying].min() < 2


@pytest.mark.parametrize("n", [20, 200])
def test_whitening_is_the_inverse_root_of_the_shrunk_covariance(n: int) -> None:
    """As sklearn shrinks it and scipy takes its root, with fewer states than dimensions and with more."""
    torch.manual_seed(0)
    states = torch.randn(n, 50) * torch.linspace(0.1, 5, 50) + 100
    covariance = shrunk_covariance(np.cov(states.double().numpy(), rowvar=False), SHRINKAGE)
    whitening = Geometry.fit(states, "batch", whiten=True).whitening
    assert whitening is not None
    np.testing.assert_allclose(whitening.numpy(), np.linalg.inv(sqrtm(covariance)), rtol=1e-4, atol=1e-5)


def test_the_gradient_goes_through_the_batch_mean() -> None:
    """Gradients equal those of the same arithmetic written out in double precision."""
    states = stretched_states(6).double()
    geometry = Geometry.fit(stretched_states(), "batch", whiten=True)
    assert geometry.whitening is not None
    weights = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))

    ours = states.float().requires_grad_()
    (geometry(ours) * weights).sum().backward()
    theirs = states.clone().requires_grad_()
    moved = (theirs - theirs.mean(0)) @ geometry.whitening.double()
    ((moved / moved.norm(dim=1, keepdim=True)) * weights).sum().backward()
    assert ours.grad is not None
    assert theirs.grad is not None
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-3, atol=1e-5)


def test_the_read_out_finds_the_direction_between_two_kinds() -> None:
    """Two clouds a known way apart are read along that way, toxic above seemingly toxic."""
    torch.manual_seed(0)
    kinds = kinds_of_pairs(100)
    states = torch.randn(200, 8) + torch.outer(kinds.float(), torch.tensor([6.0, *[0.0] * 7]))
    direction = difference_of_means(states, kinds)
    assert direction[0] > 0.95
    assert (states @ direction)[kinds].mean() > (states @ direction)[~kinds].mean()


def test_reading_uses_one_mean_whatever_is_read_with_a_prompt() -> None:
    """A prompt's unit vector for reading does not depend on the prompts beside it."""
    states = stretched_states()
    reading = Geometry.fit(states, "batch", whiten=True).around(states)
    torch.testing.assert_close(reading(states[:1]), reading(states)[:1])


@pytest.mark.parametrize("centre", ["batch", "stock", "none"])
def test_the_middle_lies_between_the_two_kinds(centre: str) -> None:
    """Whatever the centre: what lies about one mean reads as that kind, and the middle between the means as neither."""
    torch.manual_seed(0)
    toxic, seemingly = torch.randn(8) * 20, torch.randn(8) * 20
    reference = torch.cat([toxic + torch.randn(40, 8), seemingly + torch.randn(40, 8)])
    geometry = Geometry.fit(reference, centre, whiten=True)  # type: ignore[arg-type]
    assert (reads_as_toxic(geometry, reference, toxic + torch.randn(30, 8)) > 0).all()
    assert (reads_as_toxic(geometry, reference, seemingly + torch.randn(30, 8)) < 0).all()
    assert reads_as_toxic(geometry, reference, reference).mean().abs() < 1e-4


def test_crossed_separation_reads_every_pair_by_the_others() -> None:
    """As numpy reads them fold by fold; chance where nothing tells the kinds apart, though with more dimensions than
    pairs the means of the very same pairs always do."""
    torch.manual_seed(0)
    folds = torch.arange(60) % 4
    noise = torch.randn(120, 200)
    means = read_out(Geometry.fit(noise, "stock", whiten=False), noise)
    assert roc_auc_score([1] * 60 + [0] * 60, means[0](noise) @ means[1]) > 0.95
    assert crossed_separation(noise, folds, "batch", whiten=True) == pytest.approx(0.5, abs=0.1)

    states = noise + torch.outer(kinds_of_pairs(60).float(), torch.full((200,), 0.15))
    kinds, of_states, scores = np.arange(120) < 60, np.tile(folds.numpy(), 2), np.empty(120)
    for fold in range(4):
        others = of_states != fold
        centred = states.numpy() - states.numpy()[others].mean(0)
        units = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        way = units[others & kinds].mean(0) - units[others & ~kinds].mean(0)
        way /= np.linalg.norm(way)
        scores[~others] = units[~others] @ way - (units[others] @ way).mean()
    reference = roc_auc_score(kinds, scores)
    assert 0.6 < reference < 0.99
    assert crossed_separation(states, folds, "stock", whiten=False) == pytest.approx(reference, abs=1e-3)


def test_a_device_without_float64_hands_over_to_the_cpu() -> None:
    """As the GPU of a Mac does, whose tensors cannot become float64 there; of any other device they stay on it."""
    on_the_cpu = torch.zeros(2)
    mac = SimpleNamespace(device=torch.device("mps"), cpu=lambda: on_the_cpu)
    doubled = in_double(mac)  # type: ignore[arg-type]
    assert (doubled.dtype, doubled.device.type) == (torch.float64, "cpu")
    assert in_double(torch.zeros(2, device="meta")).device.type == "meta"
