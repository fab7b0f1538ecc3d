"""Claims about ``dcr-lite compare``: each method is what it says, shared work is done once, a stopped one goes on."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_runs import flags, recipe_module, run_here, save_rows, write_rows

from dcr_lite import cli
from dcr_lite.compare import command, methods
from dcr_lite.compare.summary import (
    differences,
    differences_table,
    frontier,
    intervals_of,
    numbers_of,
    over_seeds,
    table,
)
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import method_result, read_answers
from dcr_lite.measure.metrics import mean_interval, wilson_interval
from dcr_lite.names import COMPARED
from dcr_lite.run import steps
from dcr_lite.run.launch import tyro
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.settings import Settings

MODELS = ("base", "safety_sft", "augmented", "surgical", "scans", "dcr")


def tiny_recipe(folder: Path, model: Path) -> tuple[Path, list[str]]:
    """A recipe of a tiny model, and the flags that give the recipe of SmolLM2 the same settings."""
    rows = save_rows(folder / "rows")
    sounding = [{"prompt": f"How do I hurt a {t} joke?", "response": f"Here is a {t}."} for t in ("cat", "man", "dog")]
    extra = write_rows(folder / "rows" / "augmentation.jsonl", sounding)
    changes = {"augmentation_rows": extra, "augmentations": 3, "sft_learning_rate": 1e-2}
    argv = flags(model, rows, folder / "run", **changes)
    settings = tyro.cli(Settings, default=recipe_module().SETTINGS, args=argv)
    recipe = folder / "tiny.py"
    recipe.write_text(
        "from pathlib import Path, PosixPath\nfrom dcr_lite.settings import Settings\n" + f"SETTINGS = {settings!r}\n"
    )
    return recipe, argv


def without_times(value: Any) -> Any:
    """The same without what differs from run to run."""
    if isinstance(value, dict):
        left = {"seconds", "answer_seconds", "minutes", "peak_memory_gb", "peak_memory_bytes"}
        return {k: without_times(v) for k, v in value.items() if k not in left}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@pytest.fixture(autouse=True, scope="module")
def _openings() -> Iterator[None]:
    """A random model hardly opens with a whole refusal: single letters give probabilities that a choice can go by."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcr_lite.model.generation.REFUSING_OPENINGS", tuple("ISTWabcdefg"))
        yield


@pytest.fixture(scope="module")
def compared(
    tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], Path, dict[str, Any]]:
    """A finished comparison of two seeds, the first with a curve: recipe, its flags, folder, report."""
    folder = tmp_path_factory.mktemp("compare")
    recipe, argv = tiny_recipe(folder, tiny_folder("llama"))
    report = command.compare(recipe, (0, 1), (), None, None, (0,), folder / "out")
    return recipe, argv, folder / "out", report


def answers_of(out: Path, name: str, strength: str, seed: int | None = 0) -> list[dict[str, Any]]:
    folder = out / ("stock" if seed is None else f"seed{seed}") / "answers"
    (path,) = folder.glob(f"{name}_{strength}_*.jsonl")
    return read_answers(path)


def test_every_method_is_in_the_table_with_an_interval_over_seeds(compared: Any) -> None:
    """Six rows; the stock model is measured once, the others once a seed; numbers are those of the kept answers."""
    _, _, out, report = compared
    assert [entry["method"] for entry in report["methods"]] == list(MODELS)
    for entry in report["methods"]:
        assert entry["seeds"] == ([None] if entry["method"] == "base" else [0, 1])
        for key, value in entry["numbers"].items():
            spent = key in ("minutes", "peak_memory_gb", "answer_loss")
            assert (value["ci95"] is None) == (entry["method"] == "base" and spent), key
    for name, strength in (("safety_sft", "6"), ("surgical", "1"), ("scans", "1"), ("dcr", "4")):
        expected = [numbers_of(method_result(answers_of(out, name, strength, seed)), {}, 0, 0) for seed in (0, 1)]
        (entry,) = [e for e in report["methods"] if e["method"] == name]
        for key in ("compliance", "safety", "plain", "j", "auroc"):
            values = [e[key] for e in expected]
            assert entry["numbers"][key]["mean"] == pytest.approx(sum(values) / 2)
            assert entry["numbers"][key]["ci95"] == pytest.approx(list(mean_interval(values)))
    assert [entry["method"] for entry in report["toxic_sets"]] == list(MODELS)
    for entry in report["toxic_sets"]:  # one set here: its rate is what the mean over sets is
        (rate,) = entry["numbers"].values()
        assert (
            rate["mean"]
            == next(e for e in report["methods"] if e["method"] == entry["method"])["numbers"]["safety"]["mean"]
        )
    text = (out / "comparison.md").read_text()
    assert all(f"\n| {COMPARED[name]} |" in text for name in MODELS)
    assert (out / "trade_off.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((out / "comparison.json").read_text()) == report


def test_three_of_the_methods_are_those_of_the_recipe(compared: Any, tmp_path: Path) -> None:
    """The recipe itself, with the same settings and seed, gives the same answers and scores of the stock model, safety
    SFT alone and DCR."""
    _, argv, out, _ = compared
    run = tmp_path / "run"
    argv = [str(run) if previous == "--run" else value for previous, value in zip(["", *argv], argv, strict=False)]
    done = run_here(argv)
    assert done.code == 0, done.err
    for name, strength, seed in (("base", "0", None), ("safety_sft", "6", 0), ("dcr", "4", 0)):
        theirs, ours = read_answers(run / "answers" / f"{name}.jsonl"), answers_of(out, name, strength, seed)
        assert [row["response"] for row in ours] == [row["response"] for row in theirs]
        assert [r["refusal_log_odds"] for r in ours] == pytest.approx([r["refusal_log_odds"] for r in theirs], abs=1e-4)


def test_methods_differ_and_act_on_safety_sft_alone(compared: Any) -> None:
    """No two methods give the same scores; Surgical ablates and SCANS steers what the recipe's share of refusals gave,
    so the adapter of safety SFT is trained once a share, and stage 1 once a seed."""
    _, _, out, _ = compared
    usual = {"base": "0", "safety_sft": "6", "augmented": "6", "surgical": "1", "scans": "1", "dcr": "4"}
    scores = {
        name: tuple(r["refusal_log_odds"] for r in answers_of(out, name, strength, None if name == "base" else 0))
        for name, strength in usual.items()
    }
    assert len(set(scores.values())) == len(MODELS)
    steps = [json.loads(line) for line in (out / "seed0" / "metrics.jsonl").read_text().splitlines()]
    for stage in ("stage1", "safety_sft_6", "safety_sft_3", "augmented_6_3", "stage2_4", "stage2_2", "stage2_6"):
        taken = [row["step"] for row in steps if row["stage"] == stage and "loss" in row]
        assert taken == list(range(1, len(taken) + 1))
        assert taken
    kept = load_file(out / "seed0" / "surgical_1.safetensors")
    assert float(kept["direction"].norm()) == pytest.approx(1, abs=1e-4)


def test_a_curve_adds_strengths_for_its_seeds_alone(compared: Any) -> None:
    """Further shares of refusals, orthogonalities and strengths, none of which the table shows."""
    _, _, _, report = compared
    strengths: dict[str, set[float]] = {}
    for point in report["curve"]["points"]:
        assert set(point["seeds"]) <= {0, None}
        strengths.setdefault(point["method"], set()).add(point["strength"])
    assert strengths == {
        "base": {0}, "safety_sft": {3, 6}, "augmented": {3, 6}, "surgical": {0, 0.5, 1}, "scans": {0.5, 1, 2},
        "dcr": {2, 4, 6},
    }  # fmt: skip


def test_a_stopped_comparison_goes_on(compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the middle of answering and again in the middle of a training, it ends with the same numbers; nothing
    that was done is done again, and a finished one does nothing."""
    recipe, _, _, report = compared
    measure, train = command.measure, methods.job.train_safety_sft
    asked: list[int] = []
    trained: list[str] = []

    def stop(*args: Any) -> Any:
        raise KeyboardInterrupt

    def counting(*args: Any) -> Any:
        asked.append(1)
        return (stop if len(asked) == 4 else measure)(*args)

    def training(run: Any, model: Any, name: str, *rest: Any) -> None:
        if not run.finished(name):
            trained.append(name)
            if len(trained) == 4:
                stop()
        train(run, model, name, *rest)

    monkeypatch.setattr(command, "measure", counting)
    monkeypatch.setattr(steps, "train_safety_sft", training)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            command.compare(recipe, (0,), (), None, None, (0,), tmp_path)
    again = command.compare(recipe, (0,), (), None, None, (0,), tmp_path)
    undisturbed = [point for point in report["points"] if point["seed"] != 1]
    for ours, theirs in zip(without_times(again["points"]), without_times(undisturbed), strict=True):
        assert all(ours[key] == theirs[key] for key in ("method", "strength", "seed"))
        assert ours["numbers"] == pytest.approx(theirs["numbers"], abs=1e-5), ours["method"]
    assert len(asked) == len(undisturbed) + 1
    assert len(trained) == 7 + 1  # two shares of two methods, and three of DCR
    command.compare(recipe, (0,), (), None, None, (0,), tmp_path)
    assert len(asked) == len(undisturbed) + 1


def test_other_prompts_need_no_new_training(compared: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapters stay; each set has a column of its own, and --rows draws from each; --choices adds another."""
    recipe, _, finished, _ = compared
    out = shutil.copytree(finished, tmp_path / "out")
    sets = [
        write_rows(tmp_path / f"{name}.jsonl", [{"prompt": f"{name} {i}?", "label": label} for i in range(9)])
        for name, label in (("sweet", "seemingly_toxic"), ("sour", "seemingly_toxic"), ("bitter", "toxic"))
    ]
    choices = [{"question": f"Which is {n}?", "choices": ["cat", "dog", "man"], "answer": 1} for n in range(3)]
    questions = write_rows(tmp_path / "choices.jsonl", choices)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr("dcr_lite.run.steps.safety_sft", never)
    monkeypatch.setattr("dcr_lite.run.steps.contrastive_refinement", never)
    report = command.compare(recipe, (0,), tuple(sets), 4, questions, (), out)
    assert report["prompts"]["n"] == 12
    numbers = report["methods"][-1]["numbers"]
    assert {"compliance on sweet", "compliance on sour"} <= set(numbers)
    sweet, sour = (numbers[f"compliance on {name}"]["mean"] for name in ("sweet", "sour"))
    assert numbers["compliance"]["mean"] == pytest.approx((sweet + sour) / 2)
    assert numbers["accuracy"]["mean"] in (0, 1 / 3, 2 / 3, 1)
    heads = "| | sour ↑ | sweet ↑ | compliance, mean ↑ | safety ↑ | J ↑ | AUROC ↑ | answer loss ↓ | multiple choice ↑ |"
    assert heads in (out / "comparison.md").read_text()


def test_methods_train_within_the_memory_that_was_planned(compared: Any, tmp_path: Path) -> None:
    """Each share of a method takes as many tokens at once as that part of a run was found to have room for."""
    recipe, _, finished, _ = compared
    at = methods.Seed(command.recipe_settings(recipe), shutil.copytree(finished / "seed0", tmp_path / "seed0"), 0)
    at.model.tokens_in = {"stage1": 111, "stage2": 222, "safety_sft": 333}
    offered = methods.methods_of(at.settings)
    for name in ("safety_sft", "augmented", "dcr"):
        for strength in (offered[name].usual, *offered[name].further):
            with offered[name].model(at, strength):
                pass
    planned = {part: tokens for part, tokens in at.model.tokens_in.items() if part[-1].isdigit() and part != "stage1"}
    planned.pop("stage2")
    assert planned == {
        "safety_sft_6": 333, "safety_sft_3": 333, "augmented_6_3": 333, "augmented_3_3": 333,
        "stage2_4": 222, "stage2_2": 222, "stage2_6": 222,
    }  # fmt: skip


# --- numbers ---------------------------------------------------------------------------------------------------------


def point(method: str, seed: int | None, compliance: float, safety: float, strength: float = 1) -> dict[str, Any]:
    numbers = {"compliance": compliance, "safety": safety, "j": compliance + safety - 1, "auroc": 0.5, "minutes": 2.0}
    intervals = {"compliance": [compliance - 0.1, compliance + 0.1]}
    return {"method": method, "strength": strength, "seed": seed, "numbers": numbers, "intervals": intervals}


POINTS = [
    point("base", None, 1.0, 0.0),
    *(point("safety_sft", s, c, 0.8) for s, c in ((0, 0.2), (1, 0.3), (2, 0.4))),
    *(point("dcr", s, c, t) for s, c, t in ((0, 0.5, 0.8), (1, 0.6, 0.7), (2, 0.7, 0.9))),
]


def test_differences_are_taken_seed_by_seed() -> None:
    """A gain that is the same for every seed has no width, whatever the seeds do; the stock model stands for all."""
    found = differences(POINTS, "dcr")
    assert found["safety_sft"]["compliance"]["mean"] == pytest.approx(0.3)
    assert found["safety_sft"]["compliance"]["ci95"] == pytest.approx([0.3, 0.3])
    low, high = found["safety_sft"]["safety"]["ci95"]
    assert low < 0 < high
    assert found["base"]["compliance"]["mean"] == pytest.approx(-0.4)
    assert found["base"]["compliance"]["n"] == 3
    text = differences_table(found, COMPARED, "dcr")
    assert "**+0.30 (+0.30 to +0.30)**" in text
    assert "| +0.00 (-0.25 to +0.25) |" in text


def test_the_best_of_a_column_is_bold_and_never_the_stock_model() -> None:
    """By the column's direction; ties are all best; a single value has the interval over its prompts, if any."""
    lines = table(over_seeds(POINTS), COMPARED, "base").splitlines()
    assert lines[0] == "| | compliance, mean ↑ | safety ↑ | J ↑ | AUROC ↑ | minutes ↓ |"
    assert lines[2] == "| stock model | 1.00 ±0.10 | 0.00 | 0.00 | 0.50 | 2.0 |"
    assert lines[3].startswith("| safety SFT alone | 0.30 ±0.25 | **0.80 ±0.00** | 0.10 ±0.25 | **0.50 ±0.00** |")
    assert lines[4].startswith("| DCR | **0.60 ±0.25** | **0.80 ±0.25** | **0.40 ±")


def test_the_frontier_is_what_nothing_beats_in_both() -> None:
    """Ordered by compliance; equal points share it; a point beaten in one and equal in the other is off it."""
    entries = over_seeds([point(f"m{i}", 0, *place) for i, place in enumerate(
        [(1.0, 0.0), (0.5, 0.8), (0.5, 0.7), (0.2, 0.9), (0.4, 0.8), (0.9, 0.3), (0.1, 0.1)]
    )])  # fmt: skip
    assert frontier(entries) == [3, 1, 5, 0]


def test_sets_weigh_alike_in_a_mean() -> None:
    """However many prompts they have: as papers give it."""
    rows = [("a", "seemingly_toxic", 0.5, 10), ("b", "seemingly_toxic", 0.1, 990), ("c", "toxic", 0.9, 10)]
    sets = [{"name": n, "label": label, "refusal_rate": rate, "n": size} for n, label, rate, size in rows]
    result = {"sets": sets, "discernment": {"auroc": 0.7, "j": 0.0}}
    numbers = numbers_of(result, {"answer_loss": 1.2}, 90.0, 2_500_000_000)
    assert numbers == pytest.approx(
        {"compliance on a": 0.5, "compliance on b": 0.9, "compliance": 0.7, "safety": 0.9, "j": 0.6, "auroc": 0.7,
         "answer_loss": 1.2, "minutes": 1.5, "peak_memory_gb": 2.5}
    )  # fmt: skip


def test_intervals_over_prompts_hold_what_they_promise() -> None:
    """A set's is Wilson's; of the mean over two sets and of J about 95 % of simulated measurements cover the truth."""
    generator = np.random.default_rng(0)
    truth = {"a": ("seemingly_toxic", 0.3, 40), "b": ("seemingly_toxic", 0.1, 120), "c": ("toxic", 0.8, 60)}
    covered = {"compliance": 0, "j": 0}
    for _ in range(400):
        sets = []
        for name, (label, rate, n) in truth.items():
            hits = int(generator.binomial(n, rate))
            ci95 = list(wilson_interval(hits, n))
            sets.append({"name": name, "label": label, "n": n, "refusal_rate": hits / n, "ci95": ci95})
        found = intervals_of({"sets": sets, "discernment": {"auroc": 0.5}}, (0.4, 0.6))
        assert found["compliance on a"] == pytest.approx([1 - sets[0]["ci95"][1], 1 - sets[0]["ci95"][0]])
        assert found["auroc"] == [0.4, 0.6]
        covered["compliance"] += found["compliance"][0] <= 0.8 <= found["compliance"][1]
        covered["j"] += found["j"][0] <= 0.6 <= found["j"][1]
    assert 0.92 * 400 < covered["compliance"] < 0.985 * 400
    assert 0.92 * 400 < covered["j"] < 0.985 * 400


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets a process's peak")
def test_the_peak_of_a_part_is_its_own() -> None:
    """Memory of an earlier part is not counted once it was given back."""
    forget_peak_memory()
    before = peak_memory_bytes()
    big = torch.ones(100_000_000)  # 400 MB
    assert peak_memory_bytes() > before + 350e6
    del big
    assert peak_memory_bytes() > before + 350e6
    forget_peak_memory()
    assert peak_memory_bytes() < before + 100e6


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": Path("nowhere.py")}, "nowhere.py: no such recipe"),
        ({"recipe": Path(__file__).parent / "helpers" / "tiny_models.py"}, "defines no SETTINGS"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "each once"),
        ({"curve_seeds": (7,)}, "7 is not among --seeds"),
        ({"rows": 0}, "--rows 0"),
        ({"files": (Path("nowhere.jsonl"),)}, "nowhere.jsonl: no such file"),
    ],
)
def test_a_mistake_is_said_before_any_work(compared: Any, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    asked = {
        "recipe": compared[0],
        "seeds": (0,),
        "files": (),
        "rows": None,
        "choices": None,
        "curve_seeds": (),
        "out": tmp_path,
    }
    with pytest.raises(UserError, match=says):
        command.compare(**(asked | {"out": tmp_path} | changes))
    assert list(tmp_path.iterdir()) == []


def test_prompts_of_one_label_cannot_be_compared_on(compared: Any, tmp_path: Path) -> None:
    plain = write_rows(tmp_path / "plain.jsonl", [{"prompt": "Hi", "label": "plain"}])
    with pytest.raises(UserError, match="0 toxic prompts to compare on; give 2 or more of each kind"):
        command.compare(compared[0], (0,), (plain,), None, None, (), tmp_path / "out")


def test_the_command_shows_the_table(
    compared: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``dcr-lite compare`` on a finished comparison shows it, and asks for nothing twice."""
    recipe, _, out, _ = compared
    monkeypatch.setattr(
        sys, "argv", ["dcr-lite", "compare", "--recipe", str(recipe), "--out", str(out), "--seeds", "0"]
    )
    cli.main()
    shown = capsys.readouterr().out
    assert "SCANS" in shown
    assert str(out / "comparison.md") in shown
