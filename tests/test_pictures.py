"""Pictures of odd runs: a label missing, rates at the ends, one model, a single prompt. Each is a PNG that shows
something."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt

from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.run import plots
from dcr_lite.run.plots import COLOURS, draw_refusal_during_sft, draw_refusal_rates, draw_refusal_scores, draw_state_map

METHODS = ("base", "safety_sft", "dcr")


def rate(refused: int, n: int) -> dict[str, Any]:
    return {"n": n, "refusal_rate": refused / n, "ci95": list(wilson_interval(refused, n))}


def colours_in(path: Path) -> set[str]:
    """The kinds of prompts whose colour, at whatever opacity, the picture shows; fails for a blank picture."""
    pixels = plt.imread(path)[..., :3]
    assert pixels.shape[0] > 200
    assert pixels.shape[1] > 200
    assert pixels.std() > 0.02
    shown = set()
    for kind, colour in COLOURS.items():
        full = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        for opacity in (1.0, 0.65, 0.55):
            if (np.abs(pixels - (1 - opacity * (1 - full))).max(-1) < 0.01).sum() > 10:
                shown.add(kind)
    return shown


@pytest.fixture
def png(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


@pytest.fixture
def legend(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the legend of the next picture names."""
    names: list[str] = []
    save = plots.save

    def read_and_save(figure: Any, path: Path) -> None:
        names.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())
        save(figure, path)

    monkeypatch.setattr(plots, "save", read_and_save)
    return names


# --- refusal rates ----------------------------------------------------------------------------------------------------


def test_rates_of_three_models(png: Path, legend: list[str]) -> None:
    """Three models, three kinds of prompts: all of them are in the picture, each named once."""
    rates = {m: {"toxic": rate(9, 12), "seemingly_toxic": rate(4, 12), "plain": rate(1, 12)} for m in METHODS}
    draw_refusal_rates(rates, png)
    assert colours_in(png) == {"toxic", "seemingly_toxic", "plain"}
    assert legend == ["toxic", "seemingly toxic", "plain"]


@pytest.mark.parametrize("refused", [0, 1, 50])
def test_rates_at_the_ends(refused: int, png: Path) -> None:
    """Rates 0 and 1, from one prompt or from many, have intervals on one side only and are drawn all the same."""
    n = max(refused, 1)
    draw_refusal_rates({m: {"toxic": rate(refused, n), "seemingly_toxic": rate(n - refused, n)} for m in METHODS}, png)
    assert colours_in(png) == {"toxic", "seemingly_toxic"}


def test_rates_of_one_kind_and_one_model(png: Path) -> None:
    """A missing label leaves no gap and no entry behind."""
    draw_refusal_rates({"dcr": {"plain": rate(3, 4)}}, png)
    assert colours_in(png) == {"plain"}


# --- refusal scores ---------------------------------------------------------------------------------------------------


def test_scores_of_three_models(png: Path) -> None:
    """Histograms of two overlapping kinds, each in its colour."""
    rng = np.random.default_rng(0)
    scores = {
        m: {"toxic": list(rng.normal(4, 1, 30)), "seemingly_toxic": list(rng.normal(-4, 1, 30)), "plain": []}
        for m in METHODS
    }
    draw_refusal_scores(scores, dict.fromkeys(METHODS, 0.97), png)
    assert colours_in(png) >= {"toxic", "seemingly_toxic"}
    assert "plain" not in colours_in(png)


@pytest.mark.parametrize("value", [0.0, -16.5, 27.6, -1e4])
def test_score_of_a_single_prompt(value: float, png: Path) -> None:
    """One prompt, and no AUROC: still a bar, wherever its score lies."""
    draw_refusal_scores({"base": {"toxic": [value]}}, {"base": None}, png)
    assert colours_in(png) == {"toxic"}


def test_a_kind_that_only_later_models_have(png: Path, legend: list[str]) -> None:
    """The legend names every kind that some panel shows, not only those of the first."""
    scores = {"base": {"toxic": [1.0, 2.0]}, "dcr": {"toxic": [1.0], "seemingly_toxic": [-3.0, -2.0]}}
    draw_refusal_scores(scores, {"base": None, "dcr": 1.0}, png)
    assert colours_in(png) >= {"toxic", "seemingly_toxic"}
    assert legend == ["toxic", "seemingly toxic"]


# --- states -----------------------------------------------------------------------------------------------------------


def test_state_map_before_and_after(png: Path) -> None:
    """Two panels with every kind in its colour."""
    rng = np.random.default_rng(0)
    kinds = np.array(["toxic", "seemingly_toxic", "plain"] * 20)
    maps = {"before stage 1": rng.normal(size=(60, 2)), "after stage 1": rng.normal(size=(60, 2))}
    draw_state_map(maps, kinds, {"before stage 1": 0.5, "after stage 1": 0.5}, 1, png)
    assert colours_in(png) == {"toxic", "seemingly_toxic", "plain"}


@pytest.mark.parametrize("kind", ["toxic", "plain"])
def test_state_map_of_one_kind(kind: str, png: Path, legend: list[str]) -> None:
    """A kind that was not measured is neither drawn nor named in the legend."""
    points = np.random.default_rng(0).normal(size=(12, 2))
    draw_state_map({"after stage 1": points}, np.array([kind] * 12), {"after stage 1": None}, 15, png)
    assert colours_in(png) == {kind}
    assert legend == [kind]


def test_state_map_of_a_single_prompt(png: Path) -> None:
    """One prompt has no spread; it is a dot."""
    draw_state_map({"before stage 1": np.zeros((1, 2))}, np.array(["toxic"]), {"before stage 1": None}, 0, png)
    assert colours_in(png) == {"toxic"}


# --- curves -----------------------------------------------------------------------------------------------------------


def test_curves_of_two_methods(png: Path) -> None:
    """Both methods' curves, at their ends 0 and 1."""
    rising, falling = [(0, 0.0), (8, 0.6), (16, 1.0)], [(0, 0.4), (8, 0.1), (16, 0.0)]
    curves = {m: {"toxic": rising, "seemingly_toxic": falling} for m in ("safety_sft", "dcr")}
    draw_refusal_during_sft(curves, png)
    assert colours_in(png) == {"toxic", "seemingly_toxic"}


def test_curve_of_a_single_step(png: Path) -> None:
    """A run so short that it was observed once shows a dot."""
    draw_refusal_during_sft({"dcr": {"toxic": [(0, 0.5)]}}, png)
    assert colours_in(png) == {"toxic"}


def test_one_method_without_curves(png: Path, legend: list[str]) -> None:
    """A method that nothing was observed of leaves an empty panel; the legend still names the other's kinds."""
    draw_refusal_during_sft({"safety_sft": {}, "dcr": {"seemingly_toxic": [(0, 0.5), (8, 0.1)]}}, png)
    assert colours_in(png) == {"seemingly_toxic"}
    assert legend == ["seemingly toxic"]


def test_figures_are_closed(png: Path) -> None:
    """Drawing leaves no figure open: a long session does not fill the memory, and settings stay as they were."""
    before = dict(plt.rcParams)
    draw_refusal_rates({"dcr": {"toxic": rate(1, 2)}}, png)
    draw_refusal_scores({"dcr": {"toxic": [math.pi]}}, {"dcr": None}, png)
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before
