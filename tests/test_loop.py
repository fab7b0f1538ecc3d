"""Claims about the training loop's parts: the learning rate, and checkpoints that are whole or absent."""

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite.errors import UserError
from dcr_lite.method import checkpoint
from dcr_lite.method.loop import learning_rate_at

FULL = Path("/dev/full")


@given(steps=st.integers(1, 400), peak=st.floats(1e-6, 1.0))
def test_the_learning_rate_rises_to_its_peak_and_falls_after(steps: int, peak: float) -> None:
    """Rising over the first tenth, peak reached, falling after, never above the peak nor below a tenth of it."""
    rates = [learning_rate_at(step, steps, peak) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert top <= max(1, round(steps / 10))
    assert all(rate > 0 for rate in rates)
    assert min(rates[top:]) >= 0.1 * peak * (1 - 1e-9)


@pytest.mark.parametrize("steps", [5, 20, 60, 200])
def test_the_last_step_has_a_tenth_of_the_peak(steps: int) -> None:
    """The cosine ends at a tenth of the peak in the last step that is taken."""
    assert learning_rate_at(steps - 1, steps, 1.0) == pytest.approx(0.1, abs=1e-3)


def test_the_learning_rate_scales_with_its_peak() -> None:
    """Twice the peak is twice the rate at every step."""
    for step in range(30):
        assert learning_rate_at(step, 30, 2e-3) == pytest.approx(2 * learning_rate_at(step, 30, 1e-3))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """What is saved is loaded again, folders are made, and nothing else is left beside it."""
    path = tmp_path / "run" / "stage1.pt"
    checkpoint.write({"step": 1, "weights": torch.arange(3)}, path)
    checkpoint.write({"step": 2, "weights": torch.arange(3)}, path)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 2
    assert saved["weights"].tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When writing fails half-way the old file is whole, no half file is left, and the message names the cure."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)

    def write_half(value: Any, path: Path) -> None:
        whole = pickle.dumps(value)
        path.write_bytes(whole[: len(whole) // 2])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half)
        with pytest.raises(UserError, match=r"stage1\.pt: cannot be written \(No space left on device\)"):
            checkpoint.write({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    """Whatever stops the writing, the old file stays whole."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)

    def write_half(value: Any, path: Path) -> None:
        path.write_bytes(b"half")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", write_half)
        with pytest.raises(error):
            checkpoint.write({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files may grow to 100 kB only, as if the disk were full then."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("value", [torch.zeros(1_000_000), [torch.zeros(1_000)] + [torch.ones(i) for i in range(999)]])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_is_a_user_error(tmp_path: Path, value: Any) -> None:
    """When the disk fills up half-way, torch's own writer included, the old file is whole and the half one gone."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)
    with pytest.raises(UserError, match=r"stage1\.pt: cannot be written"):
        checkpoint.write(value, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_full_disk_is_a_user_error(tmp_path: Path, size: int) -> None:
    """On a disk that is really full (/dev/full) the message is the same, and the old file is whole."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)
    path.with_name("stage1.pt.partial").symlink_to(FULL)
    with pytest.raises(UserError, match=r"stage1\.pt: cannot be written"):
        checkpoint.write({"step": 2, "weights": torch.zeros(size)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
