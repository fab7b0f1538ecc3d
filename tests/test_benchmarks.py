"""The benchmarks: that they measure what they say, and that every script runs from end to end."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import _measure
import card
import evaluation
import few_rows
import pytest
import stage1
import stage1_choices
import stage2
import stage2_choices
import torch
from _measure import EQUAL, Build, Case, Outcome, Result, Step
from _sides import load
from recipe_runs import small_settings

from dcr_lite.files import load_json
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement
from dcr_lite.method.safety_sft import SafetySFT

KEYS = {"name", "ours", "theirs", "unit", "ratio", "ratio_min", "ratio_max", "equal_to"}
QUICK: dict[str, Any] = {"repetitions": 1, "device": "cpu", "precision": "float32"}


# --- the shared measure -----------------------------------------------------------------------------------------------


def side(*gradient: float) -> Build:
    """A side that computes this gradient."""
    return lambda case, precision: lambda i: {"loss": 1.0, "gradient": torch.tensor(gradient)}


def greedy(case: Case, precision: torch.dtype) -> Step:
    """400 MB while it is built, which does not count, and 200 MB in each step."""
    torch.ones(100_000_000).sum()

    def step(i: int) -> Outcome:
        return {"sum": torch.ones(50_000_000).sum()}

    return step


def failing(case: Case, precision: torch.dtype) -> Step:
    raise ValueError("no such side")


def test_the_same_work_is_equal() -> None:
    """Equal results differ by nothing, others by the norm of the difference over the norm."""
    assert _measure.require_equal(side(3.0, 4.0), side(3.0, 4.0), Case(**QUICK)) == 0
    outcomes = ({"gradient": torch.tensor([3.0, last])} for last in (4.01, 4.0))
    assert _measure.difference(*outcomes) == pytest.approx(0.002, rel=1e-3)


@pytest.mark.parametrize("gradient", [(3.0, 4.01), (float("nan"), 4.0), (0.0, 0.0)])
def test_other_work_is_no_comparison(gradient: tuple[float, float]) -> None:
    """Gradients that differ by more than EQUAL, are lost or are not numbers stop the benchmark."""
    with pytest.raises(RuntimeError, match="not the same work"):
        _measure.require_equal(side(*gradient), side(3.0, 4.0), Case(**QUICK))


def test_a_side_that_leaves_a_gradient_out_is_noticed() -> None:
    """Both sides have to give the same quantities."""
    with pytest.raises(ValueError, match="do not compute the same"):
        _measure.difference({"loss": 1.0}, {"loss": 1.0, "gradient": 2.0})


def test_sides_take_turns_and_change_who_begins() -> None:
    """Every side does every step once, the warm-up apart, and neither always comes first."""
    order: list[tuple[str, int]] = []
    steps = {name: partial(lambda name, i: order.append((name, i)), name) for name in ("a", "b")}
    seconds = _measure.in_turns(steps, 3, "cpu")
    assert order == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
    assert {name: len(turns) for name, turns in seconds.items()} == {"a": 3, "b": 3}


def test_ratio_is_of_medians_and_its_spread_of_single_turns() -> None:
    """One slow turn moves the spread and not the ratio."""
    result = Result.of("x", [1.0, 2.0, 30.0], [4.0, 4.0, 10.0], "s", 0.0)
    assert (result.ours, result.theirs, result.ratio) == (2.0, 4.0, 0.5)
    assert (result.ratio_min, result.ratio_max) == (0.25, 3.0)


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are reset through /proc")
def test_peak_memory_is_that_of_the_steps() -> None:
    """A step of 200 MB adds 200 MB; what was used and given back before it does not count."""
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("this system does not let a process reset its peak")
    peak, added = _measure.peak_memory(greedy, Case(**QUICK))
    assert 0.19 < added < 0.3
    assert peak > added


def test_a_side_that_fails_in_its_own_process_is_reported() -> None:
    """Instead of waiting for it for ever."""
    with pytest.raises(RuntimeError, match="failing"):
        _measure.peak_memory(failing, Case(**QUICK))


@pytest.fixture(scope="module")
def quick(tiny: Path) -> dict[str, Any]:
    return {"model": str(tiny), **QUICK}


@pytest.fixture(scope="module")
def small(quick: dict[str, Any], rows: Path) -> dict[str, Any]:
    """Stage 1 on few pairs."""
    return {**quick, "layer": 1, "prompts": 8, "pairs": rows / "pairs.jsonl"}


@pytest.fixture
def out(tmp_path: Path) -> dict[str, Path]:
    return {"json": tmp_path / "out.json", "markdown": tmp_path / "out.md"}


# --- every script -----------------------------------------------------------------------------------------------------


def checked(results: list[Result], path: Path) -> list[Result]:
    """The results, after a look at their file: the promised keys, finite numbers, a ratio inside its spread."""
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == [r.name for r in results]
    assert len({row["name"] for row in rows}) == len(rows)
    for row in rows:
        assert set(row) == KEYS == {f.name for f in fields(Result)}
        assert row["ratio_min"] - 1e-9 <= row["ratio"] <= row["ratio_max"] + 1e-9
        assert 0 <= row["equal_to"] <= EQUAL
        assert row["ratio"] == pytest.approx(row["ours"] / row["theirs"])
    return results


def test_stage1(small: dict[str, Any], out: dict[str, Path]) -> None:
    """Equal loss and gradients, then speed and memory, in the table too."""
    results = checked(stage1.main(stage1.Stage1(**small, **out)), out["json"])
    assert [r.unit for r in results] == ["prompts/s", "GB", "GB"]
    assert all(r.name in out["markdown"].read_text() for r in results)


def test_stage1_needs_the_same_layer(small: dict[str, Any]) -> None:
    """The check can fail: the state of one layer further on is other work."""
    ours = stage1.ours(stage1.Stage1(**small), torch.float32)(0)
    other = stage1.plain(stage1.Stage1(**{**small, "layer": 2}), torch.float32)(0)
    assert _measure.difference(ours, {k: v for k, v in other.items() if k in ours}) > 100 * EQUAL


def test_stage2(quick: dict[str, Any], out: dict[str, Path]) -> None:
    """TRL's first loss and gradients are ours; both comparisons are listed apart."""
    pytest.importorskip("trl")
    results = checked(stage2.main(stage2.Stage2(layer=1, rows=5, batch=4, epochs=1, **quick, **out)), out["json"])
    assert [r.name.split(":")[0] for r in results] == ["all layers against all layers"] * 3 + [
        "recipe against recipe (above L, all layers)"
    ] * 3


def test_evaluation(quick: dict[str, Any], out: dict[str, Path]) -> None:
    """All three ways give the same verdicts; one of four that differs is a quarter."""
    results = checked(evaluation.main(evaluation.Evaluation(prompts=5, tokens=8, batch=3, **quick, **out)), out["json"])
    assert len(results) == 6
    assert {r.equal_to for r in results} == {0.0}
    assert evaluation.differing({"refused": [True, False, True, True]}, {"refused": [True] * 4}) == 0.25


def test_few_rows(quick: dict[str, Any], out: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways give the same logits, at every number of answers, and are what they are called."""
    case = few_rows.FewRows(answers=(1, 9, 50), tokens=2, **quick, **out)
    results = checked(few_rows.main(case), out["json"])
    assert [r.name for r in results] == ["1 answer", "9 answers", "50 answers"]
    calls: list[int] = []
    plain = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda *given: (calls.append(1), plain(*given))[1])
    for name, step in few_rows.sides(load(case, torch.float32, fresh=True), 50, 1).items():
        calls.clear()
        step(1)
        assert bool(calls) == (name == "plain")


def test_every_script_is_in_the_documents() -> None:
    """A script whose figures nobody cites is dead."""
    root = Path(stage1.__file__).parents[1]
    text = "".join(page.read_text(encoding="utf-8") for page in (root / "README.md", *root.glob("docs/*.md")))
    scripts = {path.name for path in (root / "benchmarks").glob("[!_]*.py")}
    assert {name for name in scripts if f"benchmarks/{name}" not in text} == set()


@pytest.mark.parametrize("name", stage1_choices.VARIANTS)
def test_every_variant_of_stage1_trains(name: str) -> None:
    """Each has a layer and a learning rate of its own, and none is left to be found, which these runs do not."""
    settings = stage1_choices.changed(stage1_choices.SETTINGS, stage1_choices.VARIANTS[name])
    config = ContrastiveConfig.of(settings)
    assert (settings == stage1_choices.SETTINGS) == (
        name.startswith("default") or "pairs" in stage1_choices.VARIANTS[name]
    )
    assert config.layer > 0
    assert config.learning_rate > 0
    assert config.steps > 0


def test_stage1_choices(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each variant that was asked for, and one that is stored is not run again; a line for each layer."""
    settings = small_settings(tiny, rows, tmp_path / "run", contrastive_steps=2)
    case = stage1_choices.Choices(
        only=("unmatched", "info nce, raw", "twice the rank"), json=tmp_path / "found.json", settings=settings
    )
    stage1_choices.main(case)
    lines = capsys.readouterr().out.splitlines()
    names = ["| info nce, raw states", "| unmatched pairs", "| twice the rank"]
    assert [line.split(" | ")[0] for line in lines[2:]] == names
    monkeypatch.delattr(stage1_choices, "variant")
    stage1_choices.main(case)
    assert capsys.readouterr().out.splitlines() == lines
    stage1_choices.main(stage1_choices.Choices(layers=True, settings=settings))
    assert len(capsys.readouterr().out.splitlines()) == 2 + 4


def stopping_at(step: int, run: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """``run``, an observation of a stage, that Ctrl-C stops before that step or the next observed one."""

    def stops(stage: Any, number: int) -> Any:
        if number >= step:
            raise KeyboardInterrupt
        return run(stage, number)

    return stops


def noting(numbers: list[int], run: Callable[[Any, int], Any]) -> Callable[[Any, int], Any]:
    """``run`` of a stage that notes the numbers it is called with."""

    def noted(stage: Any, number: int) -> Any:
        numbers.append(number)
        return run(stage, number)

    return noted


def test_a_stopped_variant_of_stage1_goes_on(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """From its checkpoint, to the numbers that it would have had; then the checkpoint is gone. That of other settings
    has another name."""
    settings = small_settings(tiny, rows, tmp_path / "run", contrastive_steps=3)

    def case(name: str, **changes: Any) -> stage1_choices.Choices:
        of = replace(settings, **changes)
        return stage1_choices.Choices(only=("unmatched",), json=tmp_path / f"{name}.json", settings=of)

    stage1_choices.main(case("whole"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ContrastiveRefinement, "observe", stopping_at(2, ContrastiveRefinement.observe))
        with pytest.raises(KeyboardInterrupt):
            stage1_choices.main(case("stopped"))
    (checkpoint,) = (tmp_path / "stopped").glob("unmatched_pairs_0_*.pt")
    steps: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ContrastiveRefinement, "step", noting(steps, ContrastiveRefinement.step))
        stage1_choices.main(case("stopped"))
    assert steps == [2]
    assert not checkpoint.exists()
    whole, stopped = (load_json(tmp_path / f"{name}.json")[0] for name in ("whole", "stopped"))
    assert whole | {"seconds": 0} == stopped | {"seconds": 0}
    other = case("stopped", temperature=0.25).checkpoint("unmatched pairs", 0, "0" * 64)
    assert other.parent == checkpoint.parent
    assert other != checkpoint


def test_a_stopped_variant_of_stage2_goes_on(demo_run: Path, tmp_path: Path) -> None:
    """As one of stage 1 does."""
    steps: dict[str, list[int]] = {"whole": [], "stopped": []}
    for name, taken in steps.items():
        case = stage2_choices.Choices(runs=(demo_run,), only=("half of the",), json=tmp_path / f"{name}.json")
        if name == "stopped":
            with pytest.MonkeyPatch.context() as patched:
                patched.setattr(SafetySFT, "observe", stopping_at(1, SafetySFT.observe))
                with pytest.raises(KeyboardInterrupt):
                    stage2_choices.main(case)
            assert len([*(tmp_path / name).glob("half_of_the_refusals_0_*.pt")]) == 1
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(SafetySFT, "step", noting(taken, SafetySFT.step))
            stage2_choices.main(case)
    whole, stopped = (load_json(tmp_path / f"{name}.json")[0] for name in steps)
    assert whole | {"seconds": 0} == stopped | {"seconds": 0}
    assert 0 < len(steps["stopped"]) < len(steps["whole"])
    assert steps["stopped"] == steps["whole"][-len(steps["stopped"]) :]
    assert not [*(tmp_path / "stopped").iterdir()]


def test_stage2_choices(demo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line for each variant, from the stage 1 of a finished run; a share of the refusals is a number of them."""
    only = ("default", "half of the refusals")
    stage2_choices.main(stage2_choices.Choices(runs=(demo_run,), only=only, json=tmp_path / "found.json"))
    cells = [line.split(" | ")[:3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert cells == [["| default", "4", "0"], ["| half of the refusals", "2", "0"]]


def test_a_recipes_geometry_on_a_card(tiny: Path, capsys: Any) -> None:
    """The script for a card runs on a CPU with a small shape: speeds of both ways, and the peak beside the estimate."""
    case = card.Card(model=str(tiny), prompts=8, prompt_tokens=60, rows=2, row_tokens=100, **QUICK)
    results = card.main(case)
    assert [r.name.split(":")[0] for r in results] == ["stage1", "stage1", "safety_sft", "safety_sft"]
    assert all(r.ours > 0 and r.theirs > 0 for r in results)
    said = capsys.readouterr().out
    assert "| part | estimated, GB | allocated, GB | off by | fits 12 GB | tokens of a pass |" in said
    for part, result in (("stage1", results[1]), ("safety_sft", results[3])):
        assert f"| {part} | {result.theirs:.2f} | {result.ours:.2f} |" in said


def test_a_card_is_planned_for_what_was_asked() -> None:
    """Llama 3 8B takes smaller passes where 12 GB are planned for than where 24 are, however much is free here; the
    verdict counts CUDA's own memory."""
    small, large = (card.estimate(card.Card(memory=gb, precision="bfloat16")) for gb in (12.0, 24.0))
    for part in ("stage1", "safety_sft"):
        assert small[part][0] <= 12 < large[part][0] <= 24
        assert small[part][1] < large[part][1]
    expected, row = card.beside_the_estimate(card.Card(precision="bfloat16"), "stage1", 11.5)
    assert expected == pytest.approx(small["stage1"][0] - 1)
    assert row[3:5] == [f"{11.5 / expected - 1:+.0%}", "no"]
