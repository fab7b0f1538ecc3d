"""Claims about benchmarks/trade_off.py: what it compares differs as it says, and its intervals know both sources."""

from pathlib import Path
from typing import Any

import pytest
import trade_off
from recipe_runs import small_settings
from safetensors.torch import load_file

from dcr_lite.names import STOCK


def result(seed: int, compliance: float) -> dict[str, Any]:
    numbers, intervals = {"compliance": compliance}, {"compliance": [compliance - 0.03, compliance + 0.03]}
    return {"method": "stage1", "strength": 0.0, "seed": seed, "numbers": numbers, "intervals": intervals}


def test_intervals_are_over_seeds_and_prompts() -> None:
    """Seeds that agree leave the interval over prompts, and seeds that differ widen it in squares."""
    (same,) = trade_off.with_intervals([result(0, 0.5), result(1, 0.5)])
    assert same["numbers"]["compliance"]["ci95"] == pytest.approx([0.47, 0.53])
    (apart,) = trade_off.with_intervals([result(0, 0.49), result(1, 0.51)])
    over_seeds = 12.706 * 0.01414 / 2**0.5  # Student's t with one degree of freedom
    low, high = apart["numbers"]["compliance"]["ci95"]
    assert (high - low) / 2 == pytest.approx((0.03**2 + over_seeds**2) ** 0.5, rel=1e-3)


def test_trade_off(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each strength of what was asked for; stage 1 and its dial are shared with the variants that have a
    stage 2; a second call measures nothing."""
    monkeypatch.setattr(trade_off, "STRENGTHS", (0.5, 0.0))
    monkeypatch.setattr(trade_off, "ROWS", {"own": 2, "given": 4})
    settings = small_settings(tiny, rows, tmp_path / "unused")
    out, prompts = tmp_path / "out", (rows / "held_out.jsonl",)
    choices = trade_off.Choices(settings, (0,), prompts, out=out, only=("stage1", "given"))
    entries = trade_off.main(choices)
    assert [(e["method"], e["strength"]) for e in entries] == [
        (STOCK, 0), ("stage1", 0.5), ("given", 0.5), ("stage1", 0.0), ("given", 0.0)
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[-4:]] == [
        "| stage 1, 0.5", f"| {trade_off.VARIANTS['given'].title}, 0.5", "| stage 1, 0",
        f"| {trade_off.VARIANTS['given'].title}, 0",
    ]  # fmt: skip
    assert (out / "trade_off.png").exists()
    stage1, stage2 = (
        load_file(out / "seed0" / part / "adapter_model.safetensors") for part in ("stage1", "stage2_given")
    )
    changed = {name for name in stage1 if not stage1[name].equal(stage2[name])}
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in changed} == {2, 3}  # L is 1
    monkeypatch.setattr("dcr_lite.compare.command.measure_configuration", None)
    assert trade_off.main(choices) == entries
