"""Claims about benchmarks/trade_off.py: what it compares differs as it says, and its intervals know both sources."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trade_off
import voice
from drawing import drawing
from recipe_runs import small_settings
from safetensors.torch import load_file

from dcr_lite.files import load_json
from dcr_lite.method import dial_fitting
from dcr_lite.model.adapters import adapter_weights
from dcr_lite.names import DCR, STOCK


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


def test_gains_are_prompt_by_prompt() -> None:
    """Two sets weigh alike whatever their size; prompts that all move leave no doubt, seeds that differ leave some. A
    set of a single prompt leaves no interval: how far prompts differ is not known."""

    def answers(*refused: bool) -> list[dict[str, Any]]:
        sources = ["large"] * 4 + ["small"] * 2 + ["other"]
        labels = ["toxic"] * 6 + ["seemingly_toxic"]
        return [{"source": s, "label": la, "refused": r} for s, la, r in zip(sources, labels, refused, strict=True)]

    stock = answers(False, False, False, False, False, False, True)
    all_refused = answers(True, True, True, True, True, True, True)
    half = answers(True, True, False, False, False, False, True)
    assert trade_off.gain(stock, [all_refused], "toxic") == {"mean": 1.0, "ci95": [1.0, 1.0]}
    assert trade_off.gain(stock, [all_refused], "seemingly_toxic") == {"mean": 0.0, "ci95": None}
    found = trade_off.gain(stock, [half], "toxic")
    assert found["mean"] == pytest.approx(0.25)  # of a half of the large set and nothing of the small one
    over_prompts = 1.96 * (1 / 3 / 4) ** 0.5 / 2  # the variance of two of four, over four prompts, of two sets
    assert found["ci95"][1] - found["mean"] == pytest.approx(over_prompts, rel=1e-3)
    wider = trade_off.gain(stock, [half, all_refused], "toxic")["ci95"]
    assert wider[1] - wider[0] > 2 * 12.706 * 0.53 / 2**0.5  # Student's t over two seeds, 0.75 apart


def test_what_is_reachable_is_by_log_odds() -> None:
    """Whatever was judged; one seed has the interval over prompts, and seeds that differ widen it."""

    def rows(*odds: float) -> list[dict[str, Any]]:
        labels = ["toxic"] * 10 + ["seemingly_toxic"] * 4
        return [
            {"label": la, "source": "x", "refused": False, "refusal_log_odds": o}
            for la, o in zip(labels, odds, strict=True)
        ]

    apart = rows(-9.0, *range(1, 10), *(0.0, 0.5, 0.9, 2.0))
    one = trade_off.reachable([apart])
    assert (one["mean"], one["n"]) == (0.75, 1)
    assert one["ci95"][0] < 0.75 < one["ci95"][1]
    two = trade_off.reachable([apart, rows(-9.0, *range(1, 10), *(0.0, 0.5, 2.0, 2.0))])
    assert (two["mean"], two["n"]) == (0.625, 2)
    assert two["ci95"][1] - two["ci95"][0] > one["ci95"][1] - one["ci95"][0]


def test_trade_off(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each strength of what was asked for; stage 1 is shared with the variants that have a stage 2, of whose
    refusals given answers have all; each has a dial of its own, fitted once to what its last training has left, which
    is part of its cost; a second call measures nothing. voice.py goes on with what the first seed has found, as that
    did."""
    assert trade_off.settings_of(trade_off.Choices()).refusals == 128
    settings = small_settings(tiny, rows, tmp_path / "unused", sft_learning_rate=0.0)  # to be found
    out, prompts = tmp_path / "out", (rows / "held_out.jsonl",)
    choices = trade_off.Choices(settings, (0,), prompts, out=out, only=("stage1", "given"), strengths=(0.5, 0.0))
    fit, fitted_to = dial_fitting.fit_dial, []

    def fitting(model: Any, *args: Any) -> Any:
        fitted_to.append(adapter_weights(model, DCR))
        return fit(model, *args)

    monkeypatch.setattr("dcr_lite.compare.seed_run.fit_dial", fitting)
    with drawing():
        entries = trade_off.main(choices)
    assert [(e["method"], e["strength"]) for e in entries] == [
        (STOCK, 0), ("stage1", 0.5), ("given", 0.5), ("stage1", 0.0), ("given", 0.0)
    ]  # fmt: skip
    lines = capsys.readouterr().out.splitlines()
    assert lines[-7] == "| by log-odds, not by judged answers | compliance at a safety of 0.90 ↑ |"
    assert [line.split(" | ")[0] for line in lines[-4:]] == [
        "| stage 1, 0.5", f"| {trade_off.VARIANTS['given'].title}, 0.5", "| stage 1, 0",
        f"| {trade_off.VARIANTS['given'].title}, 0",
    ]  # fmt: skip
    assert (out / "trade_off.png").exists()
    assert (out / "seed0" / "state_map.png").exists()
    stage1, stage2 = (
        load_file(out / "seed0" / part / "adapter_model.safetensors") for part in ("stage1", "stage2_given")
    )
    assert all(weight.equal(stage2[name]) for name, weight in stage1.items())
    dialled, dialled_given = fitted_to
    assert all(weight.equal(dialled_given[name]) for name, weight in stage2.items())
    assert not all(weight.equal(dialled[name]) for name, weight in stage2.items())
    seconds = {
        part: load_json(out / "seed0" / "checkpoints" / f"{part}.json")["seconds"]
        for part in ("stage1", "stage2_given", "fitted_dial_given")
    }
    assert entries[2]["numbers"]["minutes"]["mean"] * 60 == pytest.approx(sum(seconds.values()))
    added = stage2.keys() - stage1.keys()
    assert {int(name.split(".layers.")[1].split(".")[0]) for name in added} == {2, 3}  # L is 1
    seeds = replace(choices, seeds=(0, 1), only=("stage1",), strengths=(0.0,))
    trade_off.main(seeds)
    monkeypatch.setattr("dcr_lite.compare.command.measure_configuration", None)
    assert trade_off.main(choices) == entries

    monkeypatch.setattr(voice, "VOICE_TOKENS", 8)
    monkeypatch.setattr(voice, "HELD_OUT_FILES", (rows / "held_out.jsonl", rows / "plain.jsonl"))
    found = voice.main(choices)
    assert [(row["variant"], row["strength"]) for row in found] == [
        (name, strength) for name in ("stage1", "given") for strength in (0.5, 0.0)
    ]
    same, apart = (row["voice"]["plain_divergence"] for row in found[1::2])
    assert 0 < same != apart > 0
    assert [(row["variant"], row["seed"]) for row in voice.main(seeds)][len(found) :] == [("stage1", 1)]
