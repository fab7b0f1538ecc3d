"""Claims about benchmarks/off_grid.py: weights leave the steps of a 4-bit file and still round to them, and what is
added to them survives rounding on average."""

from pathlib import Path

import off_grid
import pytest
import torch
from safetensors.torch import load_file

from dcr_lite.errors import UserError
from dcr_lite.names import BASELINE, DCR
from dcr_lite.run.opening import open_model

STEP, ADDED = 0.02, 0.004  # of the grid; what an adapter adds, a fifth of a step


def rounded(weight: torch.Tensor) -> torch.Tensor:
    return (weight / STEP).round() * STEP


def test_what_is_added_to_weights_on_the_steps_is_rounded_away_and_off_them_is_kept_on_average() -> None:
    """And every weight that was moved rounds to what it was."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-8, 8, (200, 320), generator=generator) * STEP
    moved = off_grid.off_grid(weight, generator)
    assert torch.equal(rounded(moved), rounded(weight))
    assert (moved - weight).std() == pytest.approx(STEP / 12**0.5, rel=0.02)  # even, half a step to either side
    assert torch.equal(rounded(weight + ADDED), rounded(weight))
    assert (rounded(moved + ADDED) - rounded(weight)).mean() == pytest.approx(ADDED, rel=0.05)


def test_a_block_of_one_value_stays() -> None:
    weight = torch.full((2, off_grid.BLOCK), 0.5)
    assert torch.equal(off_grid.off_grid(weight, torch.Generator()), weight)


def test_the_run_opens_on_the_moved_weights(demo_run: Path, tmp_path: Path) -> None:
    """Its adapters are the run's, its base has other matrices and the same vectors."""
    off_grid.main(off_grid.Choices(demo_run, tmp_path / "out"))
    for method in (DCR, BASELINE):
        before, after = (open_model(str(run), method) for run in (demo_run, tmp_path / "out" / "run"))
        assert after.base == str(tmp_path / "out" / "base")
        assert after.adapter_sha256 == before.adapter_sha256
    there = load_file(Path(before.base) / "model.safetensors")
    for name, tensor in load_file(tmp_path / "out" / "base" / "model.safetensors").items():
        assert tensor.equal(there[name]) == (tensor.dim() == 1), name
    with pytest.raises(UserError, match="exists already"):
        off_grid.main(off_grid.Choices(demo_run, tmp_path / "out"))
