"""Pictures of odd runs: a label missing, rates at the ends, one model, a single prompt. Each is a PNG that shows
something."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt

from dcr_lite.compare.methods import METHODS as COMPARED
from dcr_lite.compare.plots import draw_plane
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.run import plots
from dcr_lite.run.plots import COLOURS, draw_refusal_during_sft, draw_refusal_rates, draw_refusal_scores, draw_state_map

pytestmark = pytest.mark.usefixtures("pictures")

METHODS = ("base", "safety_sft", "dcr")
TOXIC, SEEMINGLY, PLAIN = "toxic", "seemingly_toxic", "plain"
NORMAL = np.random.default_rng(0).normal(size=(60, 2))
RISING, FALLING = [(0, 0.0), (8, 0.6), (16, 1.0)], [(0, 0.4), (8, 0.1), (16, 0.0)]


def rate(refused: int, n: int) -> dict[str, Any]:
    return {"n": n, "refusal_rate": refused / n, "ci95": list(wilson_interval(refused, n))}


def rates(**of_label: tuple[int, int]) -> dict[str, dict[str, Any]]:
    return {label: rate(*counts) for label, counts in of_label.items()}


def rates_picture(of_method: dict[str, Any]) -> Callable[[Path], None]:
    return lambda png: draw_refusal_rates(of_method, png)


def scores_picture(scores: dict[str, Any], auroc: float | None) -> Callable[[Path], None]:
    return lambda png: draw_refusal_scores(scores, dict.fromkeys(scores, auroc), png)


def map_picture(titles: tuple[str, ...], points: Any, kinds: list[str], auroc: float | None) -> Callable[[Path], None]:
    maps = {title: points[i * len(kinds) :][: len(kinds)] for i, title in enumerate(titles)}
    return lambda png: draw_state_map(maps, np.array(kinds), dict.fromkeys(titles, auroc), 1, png)


def curves_picture(curves: dict[str, Any]) -> Callable[[Path], None]:
    return lambda png: draw_refusal_during_sft(curves, png)


# What is drawn -> (drawing it, the kinds of prompts that are in it).
ALL = rates(toxic=(9, 12), seemingly_toxic=(4, 12), plain=(1, 12))
OVERLAPPING = {TOXIC: list(NORMAL[:30, 0] + 4), SEEMINGLY: list(NORMAL[30:, 0] - 4), PLAIN: []}
LATER = {"base": {TOXIC: [1.0, 2.0]}, "dcr": {TOXIC: [1.0], SEEMINGLY: [-3.0, -2.0]}}
PICTURES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "rates of three models": (rates_picture(dict.fromkeys(METHODS, ALL)), [TOXIC, SEEMINGLY, PLAIN]),
    **{
        f"rates {k} of {n}": (
            rates_picture(dict.fromkeys(METHODS, rates(toxic=(k, n), seemingly_toxic=(n - k, n)))), [TOXIC, SEEMINGLY],
        )
        for k, n in ((0, 1), (1, 1), (50, 50))
    },
    "rates of one kind and one model": (rates_picture({"dcr": rates(plain=(3, 4))}), [PLAIN]),
    "scores of three models": (scores_picture(dict.fromkeys(METHODS, OVERLAPPING), 0.97), [TOXIC, SEEMINGLY]),
    **{
        f"a single score of {value}": (scores_picture({"base": {TOXIC: [value]}}, None), [TOXIC])
        for value in (0.0, -16.5, 27.6, -1e4)
    },
    "scores of a kind that only the second model has": (scores_picture(LATER, 1.0), [TOXIC, SEEMINGLY]),
    "two state maps": (
        map_picture(("before stage 1", "after stage 1"), NORMAL, [TOXIC, SEEMINGLY, PLAIN] * 10, 0.5),
        [TOXIC, SEEMINGLY, PLAIN],
    ),
    "a state map of toxic prompts": (map_picture(("after stage 1",), NORMAL, [TOXIC] * 12, None), [TOXIC]),
    "a state map of plain prompts": (map_picture(("after stage 1",), NORMAL, [PLAIN] * 12, None), [PLAIN]),
    "a state map of a single prompt": (map_picture(("before stage 1",), np.zeros((1, 2)), [TOXIC], None), [TOXIC]),
    "curves of two methods": (
        curves_picture({method: {TOXIC: RISING, SEEMINGLY: FALLING} for method in METHODS[1:]}), [TOXIC, SEEMINGLY],
    ),
    "a curve of a single step": (curves_picture({"dcr": {TOXIC: [(0, 0.5)]}}), [TOXIC]),
    "one method without curves": (curves_picture({"safety_sft": {}, "dcr": {SEEMINGLY: FALLING}}), [SEEMINGLY]),
}  # fmt: skip


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


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_shows_every_kind_and_names_it_once(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly the kinds that were measured are drawn, each in its colour, and the legend names each of them once,
    whichever model has it; no figure is left open, and the settings of matplotlib stay as they were."""
    draw, kinds = PICTURES[name]
    legend: list[str] = []
    save, before = plots.save, dict(plt.rcParams)

    def read_and_save(figure: Any, path: Path) -> None:
        legend.extend(text.get_text() for legend in figure.legends for text in legend.get_texts())
        save(figure, path)

    monkeypatch.setattr(plots, "save", read_and_save)
    draw(tmp_path / "picture.png")
    assert colours_in(tmp_path / "picture.png") == set(kinds)
    assert legend == [kind.replace("_", " ") for kind in kinds]
    assert plt.get_fignums() == []
    assert dict(plt.rcParams) == before


def test_a_curve_of_steering_goes_through_the_stock_model() -> None:
    """Between the strengths on its two sides; another method's curve has its own points alone."""

    def entry(method: str, strength: float, compliance: float) -> dict[str, Any]:
        value = {"mean": compliance, "ci95": [compliance, compliance]}
        return {"method": method, "strength": strength, "numbers": {"compliance": value, "safety": value}}

    curve = [entry("base", 0, 0.5), entry("steered", 1.0, 0.9), entry("steered", -1.0, 0.1)]
    curve += [entry("surgical", 1.0, 0.6), entry("surgical", 0.5, 0.4)]
    figure, axes = plt.subplots()
    draw_plane(axes, COMPARED, [curve[0], curve[1], curve[3]], curve)
    drawn = [list(line.get_xdata()) for line in axes.lines]
    plt.close(figure)
    assert [0.1, 0.5, 0.9] in drawn
    assert [0.4, 0.6] in drawn


def test_no_interval_of_a_rate_is_drawn_beyond_0_and_1() -> None:
    """Though that of a mean over seeds may end there; within them its ends are its own."""
    compliance, safety = {"mean": 0.95, "ci95": [0.8, 1.1]}, {"mean": 0.1, "ci95": [-0.2, 0.4]}
    entry = {"method": "dcr", "strength": 0, "numbers": {"compliance": compliance, "safety": safety}}
    figure, axes = plt.subplots()
    draw_plane(axes, COMPARED, [entry], [])
    ends = [bar.get_segments()[0].tolist() for bar in axes.collections]
    plt.close(figure)
    assert np.allclose(ends, [[[0.8, 0.1], [1, 0.1]], [[0.95, 0], [0.95, 0.4]]])
