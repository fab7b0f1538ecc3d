"""Claims about ``dcr-lite compare``: each method is what it says, shared work is done once, a stopped one goes on."""

import json
import math
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import combined
import numpy as np
import pytest
import torch
from contract_runs import DOCS
from drawing import drawing
from recipe_runs import small_settings
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from small_comparison import make_small
from small_runs import flags, run_here, save_rows, write_recipe, write_rows

from dcr_lite import cli
from dcr_lite.compare import (
    actor,
    command,
    directions,
    measurement,
    prosafeprune,
)
from dcr_lite.compare.anchors import Meaning, meaning_of
from dcr_lite.compare.directions import KL_LIMIT
from dcr_lite.compare.elapsed import Elapsed
from dcr_lite.compare.measurement import Configuration, EvaluationData, all_seeds, configurations, with_seeds
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.report import failed_section
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.compare.summary import numbers_of
from dcr_lite.compare.tables import COSTS, marked
from dcr_lite.data.rows import Prompt, prompts_of
from dcr_lite.errors import MethodError, UserError
from dcr_lite.files import load_json, load_jsonl, read_state, write_json, write_state
from dcr_lite.measure.answers import measure, method_result, read_answers
from dcr_lite.measure.metrics import mean_interval
from dcr_lite.method.dial import Dial, set_strength
from dcr_lite.method.pass_size import PassSize
from dcr_lite.model import adapters
from dcr_lite.model.adapters import WEIGHTS, adapter_weights
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import in_halves
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.probe.subjects import sources_of_comparison
from dcr_lite.run import found_settings, own_voice, steps
from dcr_lite.run.dial_bench import DIAL
from dcr_lite.run.dial_setting import FOLDER, DialSetting
from dcr_lite.run.inputs import resolved
from dcr_lite.run.machine import forget_peak_memory, peak_memory_bytes
from dcr_lite.run.recipes import load_recipe, settings_of
from dcr_lite.settings import SHIPPED_FILES, Settings

USUAL = {
    "base": "0", "steered": "1", "dial_alone": "0", "safety_sft": "6", "augmented": "6", "surgical": "1", "scans": "1",
    "adacd": "1", "prosafeprune": "1", "actor": "1", "dpo": "0.5", "dcr": "0",
}  # fmt: skip
Compared = tuple[Path, list[str], Path, dict[str, Any]]


@pytest.fixture(autouse=True, scope="module")
def _small_comparison(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small one (small_comparison.py), with few instructions to take the answer loss of. A random model hardly opens
    with a whole refusal: single letters give probabilities that a choice can go by."""
    rows = [{"prompt": f"Name {n} dogs.", "response": f"Here is a list of {n} dogs."} for n in range(4)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTaeg"))
        instructions = write_rows(tmp_path_factory.mktemp("rows") / "instructions.jsonl", rows)
        patched.setattr(measurement, "HELD_OUT_INSTRUCTIONS", instructions)
        make_small(patched.setattr)
        yield


@pytest.fixture(scope="module")
def compared(tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Compared:
    """A finished comparison of two seeds, the first with a curve: recipe, the flags that give the recipe of SmolLM2 the
    same settings, folder, report."""
    folder = tmp_path_factory.mktemp("compare")
    rows = save_rows(folder / "rows")
    sounding = [{"prompt": f"How do I hurt a {t} joke?", "response": f"Here is a {t}."} for t in ("cat", "man", "dog")]
    extra = write_rows(folder / "rows" / "augmentation.jsonl", sounding)
    small = {"contrastive_steps": 6, "sft_epochs": 1, "sft_learning_rate": 1e-2, "dial": "balanced"}
    argv = flags(tiny_folder("llama"), rows, folder / "run", augmentation_rows=extra, augmentations=3, **small)
    recipe, _ = write_recipe(folder / "tiny.py", argv)
    with drawing():
        report = compare(recipe, folder / "out", seeds=(0, 1), curve_seeds=(0,))
    return recipe, argv, folder / "out", report


def compare(recipe: Path | Settings, out: Path, **changes: Any) -> dict[str, Any]:
    """``command.compare`` of seed 0 without a curve, on the recipe's held-out prompts, unless ``changes`` says
    otherwise."""
    options = {"seeds": (0,), "files": (), "rows": None, "multiple_choice": None, "curve_seeds": ()}
    return command.compare(**({"recipe": recipe, "out": out} | options | changes))


def answers_of(out: Path, name: str, seed: int = 0) -> list[dict[str, Any]]:
    """The kept answers of a method at its usual strength."""
    folder = out / ("stock" if name == "base" else f"seed{seed}") / "answers"
    (path,) = folder.glob(f"{name}_{USUAL[name]}_*.jsonl")
    return read_answers(path)


def test_every_method_is_in_the_table_with_an_interval_over_seeds(compared: Compared) -> None:
    """A row each; the stock model is measured once, the others once a seed; numbers are those of the kept answers."""
    _, _, out, report = compared
    assert [entry["method"] for entry in report["methods"]] == list(METHODS) == list(USUAL)
    for entry, sets in zip(report["methods"], report["toxic_sets"], strict=True):
        name, numbers = entry["method"], entry["numbers"]
        seeds = [None] if name == "base" else [0, 1]
        assert entry["seeds"] == seeds
        results = [method_result(answers_of(out, name, seed or 0)) for seed in seeds]
        expected = [numbers_of(result, (0, 0))[0] for result in results]
        for key, value in numbers.items():
            if key == "token_ms":  # at one of the seeds a random model may answer without a second token
                continue
            measured_once = name == "base" and key in (*COSTS, "answer_loss")
            assert (value["ci95"] is None) == measured_once, key
        for key in ("compliance", "safety", "plain", "j", "auroc"):
            values = [e[key] for e in expected]
            assert numbers[key]["mean"] == pytest.approx(sum(values) / len(values))
            if len(seeds) > 1:
                assert numbers[key]["ci95"] == pytest.approx(list(mean_interval(values)))
        assert sets["method"] == name
        (rate,) = sets["numbers"].values()  # one set here: its rate is the mean over sets
        assert rate["mean"] == numbers["safety"]["mean"]


def test_every_method_is_measured_by_the_stock_models_answers(compared: Compared) -> None:
    """All but the stock model itself, at every strength: what a token keeps of its probability, with an interval over
    seeds, beside compliance; and the divergence from the stock model, which changes with the strength."""
    _, _, out, report = compared
    held_out = [row for row in answers_of(out, "base") if row["label"] != "toxic"]
    for point in report["points"]:
        assert bool(point["kept"]) == (point["method"] != "base")
        for label, of in point["kept"].items():
            assert of["n"] + of["refused"] + of["empty"] == sum(row["label"] == label for row in held_out)
            assert point["numbers"][f"kept_{label}"] == of["kept"] == pytest.approx(math.exp(-of["loss"]))
            low, high = point["intervals"][f"kept_{label}"]
            assert low <= of["kept"] <= high
            assert of["divergence"] > 0
    along = {p["strength"]: p["kept"]["plain"]["divergence"] for p in report["points"] if p["method"] == "steered"}
    assert along[2] > along[1] > along[0.5]
    text = (out / "comparison.md").read_text()
    head = next(line for line in text.splitlines() if "| compliance" in line or "| held_out ↑" in line)
    assert "| kept, seemingly toxic ↑ | kept, plain ↑ | safety ↑ |" in head
    assert "KL divergence from the stock model" in text
    assert [entry["method"] for entry in report["divergences"]] == [name for name in METHODS if name != "base"]


def test_a_method_that_does_not_apply_says_so(compared: Compared) -> None:
    """A random model refuses no plain prompt when it is asked to: AdaCD is measured all the same, with its authors'
    alpha, and the page says under the table what was found with each seed. Its rows say so too, and none is bold; it is
    not on the frontier."""
    _, _, out, report = compared
    for seed in (0, 1):
        fitted = read_state(out / f"seed{seed}" / "checkpoints" / "adacd.json", "")["numbers"]
        assert fitted == {"alpha": 4.5, "obeys": 0.0, "tried": 0, "prompts": 6}
    (note,) = report["notes"]
    assert (note["method"], note["seeds"]) == ("adacd", [0, 1])
    text = (out / "comparison.md").read_text()
    said = "AdaCD: not applicable: the model refuses 0.00 of 6 plain prompts when it is asked to refuse, and the method"
    assert text.index("| DCR |") < text.index(said) < text.index("DCR minus each method")
    rows = [line for line in text.splitlines() if line.startswith("| AdaCD")]
    assert len(rows) > 2
    assert all(row.startswith("| AdaCD (does not apply) |") for row in rows)
    assert not any("**" in row for row in text[: text.index("DCR minus")].splitlines() if row in rows)
    curve = report["curve"]
    assert "adacd" not in {curve["points"][i]["method"] for i in curve["frontier"]}


def test_everything_is_written_without_paths_of_this_machine(compared: Compared) -> None:
    """JSON with what was returned, a plot, and a page with a row for each method."""
    recipe, _, out, report = compared
    assert json.loads((out / "comparison.json").read_text()) == report
    assert (out / "trade_off.png").stat().st_size > 10_000
    text = (out / "comparison.md").read_text()
    assert all(f"\n| {method.title} |" in text for method in marked(report["methods"]).values())
    assert Path(report["model"]).name in text
    assert str(recipe.parent.parent) not in text


def test_three_of_the_methods_are_those_of_the_recipe(compared: Compared, tmp_path: Path) -> None:
    """The recipe itself, with the same settings and seed, gives the same answers and scores of the stock model, safety
    SFT alone and DCR."""
    _, argv, out, _ = compared
    run = tmp_path / "run"
    argv = [str(run) if previous == "--run" else value for previous, value in zip(["", *argv], argv, strict=False)]
    done = run_here(argv)
    assert done.code == 0, done.err
    for name in ("base", "safety_sft", "dcr"):
        theirs, ours = read_answers(run / "answers" / f"{name}.jsonl"), answers_of(out, name)
        assert [row["response"] for row in ours] == [row["response"] for row in theirs]
        assert [r["refusal_log_odds"] for r in ours] == pytest.approx([r["refusal_log_odds"] for r in theirs], abs=1e-4)


def test_methods_differ_and_act_on_safety_sft_alone(compared: Compared) -> None:
    """No two methods give the same scores; Surgical ablates, SCANS steers, AdaCD contrasts, ProSafePrune edits, ACTOR
    and DPO train on what the recipe's refusals gave, so the adapter of safety SFT is trained once for each number of
    refusals, and stage 1 once a seed."""
    _, _, out, _ = compared
    assert len({tuple(row["refusal_log_odds"] for row in answers_of(out, name)) for name in USUAL}) == len(METHODS)
    metrics = [json.loads(line) for line in (out / "seed0" / "metrics.jsonl").read_text().splitlines()]
    trained = ("dpo_preferences_0.25", "dpo_preferences_0.5")
    for stage in ("stage1", "safety_sft_6", "safety_sft_3", "augmented_6_3", "stage2", *trained):
        taken = [row["step"] for row in metrics if row["stage"] == stage and "loss" in row]
        assert taken == list(range(1, len(taken) + 1))
        assert taken
    kept = load_file(out / "seed0" / "surgical_1.safetensors")
    assert float(kept["direction"].norm()) == pytest.approx(1, abs=1e-4)
    pruning = load_file(out / "seed0" / "prosafeprune.safetensors")
    assert {key.split(".")[-1] for key in pruning} >= {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_methods_on_top_of_dcr_change_it_alone(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """benchmarks/combined.py: in the folder of a comparison DCR is trained and measured no more; what is put on top of
    it is fitted to it, changes its scores, and leaves its weights and its dial as they were."""
    recipe, _, finished, report = compared
    out = Path(shutil.copytree(finished, tmp_path / "out"))
    monkeypatch.setattr(steps, "train", None)  # nothing may be trained
    combined.main(combined.Choices(recipe=str(recipe), seeds=(0,), only=("surgical", "prosafeprune"), out=out))
    page = (out / "combined.md").read_text(encoding="utf-8")
    (before,) = (p for p in report["points"] if (p["method"], p["seed"], p["strength"]) == ("dcr", 0, 0))
    (row,) = (line for line in page.splitlines() if line.startswith("| DCR |"))
    assert f" {before['numbers']['auroc']:.2f} ±" in row.replace("*", "")
    assert page.count("| DCR and Surgical |") == page.count("| DCR and ProSafePrune |") == 2
    scores = {name: [row["refusal_log_odds"] for row in answers_of(out, name)] for name in ("dcr", "surgical")}
    for name in ("dcr_surgical", "dcr_prosafeprune"):
        (path,) = (out / "seed0" / "answers").glob(f"{name}_0_*.jsonl")
        odds = [row["refusal_log_odds"] for row in read_answers(path)]
        assert odds not in scores.values()
        seed = command.seed_run(load_recipe(recipe).SETTINGS, out, 0)
        with combined.combined(name.removeprefix("dcr_")).model(seed, 0.0):
            pass
        with METHODS["dcr"].model(seed, 0.0):
            encoded = encode_prompts(
                seed.model.tokenizer, [row["prompt"] for row in answers_of(out, "dcr")], seed.model.window
            )
            after = [one.refusal_log_odds for one in answer(seed.model, encoded, max_new_tokens=0)]
        assert after == pytest.approx(scores["dcr"], abs=1e-4)


def test_a_row_is_saved_as_an_adapter(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of docs/comparing.md train nothing and save what was measured: read again, ProSafePrune's adapter opens
    answers as ProSafePrune does, and not as safety SFT alone, whose adapter it was."""
    recipe, _, finished, _ = compared
    out, folder = Path(shutil.copytree(finished, tmp_path / "out")), tmp_path / "adapter"
    (lines,) = re.findall(r"```python\n(# row\.py.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    for usual, ours in (("runs/compare", out), ("adapters/prosafeprune_seed0", folder), ("smollm2_135m", recipe)):
        assert f'"{usual}"' in lines
        lines = lines.replace(f'"{usual}"', repr(str(ours)))
    monkeypatch.setattr(steps, "train", None)
    monkeypatch.setattr(prosafeprune, "fit", None)
    exec(lines, names := {})
    model = names["run"].model
    names["run"].run.leave()
    adapters.load_adapter(model, "read", folder)
    rows = {name: answers_of(out, name) for name in ("prosafeprune", "safety_sft")}
    encoded = encode_prompts(model.tokenizer, [row["prompt"] for row in rows["prosafeprune"]], model.window)
    again = [one.refusal_log_odds for one in answer(model, encoded, max_new_tokens=0)]
    measured, others = ([row["refusal_log_odds"] for row in of] for of in rows.values())
    assert again == pytest.approx(measured, abs=1e-4)
    assert again != pytest.approx(others, abs=1e-2)


def test_the_dial_alone_is_a_dial_without_any_training(compared: Compared) -> None:
    """The stock model's weights and one rank at layer L, found and set for the same goal as DCR's dial, answer so."""
    recipe, _, out, _ = compared
    seed = command.seed_run(load_recipe(recipe).SETTINGS, out, 0)
    folder = out / "seed0" / "dial_alone" / FOLDER
    turning, setting = Dial.load(folder / DIAL), DialSetting.load(folder)
    ours = DialSetting.load(out / "seed0" / FOLDER)
    assert (setting.goal, setting.pairs, setting.stock) == (ours.goal, ours.pairs, ours.stock)
    rows = answers_of(out, "dial_alone")
    encoded = encode_prompts(seed.model.tokenizer, [row["prompt"] for row in rows], seed.model.window)
    adapters.activate(seed.model, DCR)
    set_strength(seed.model, DCR, turning, setting.strength)
    odds = [one.refusal_log_odds for one in answer(seed.model, encoded, max_new_tokens=0)]
    assert [row["refusal_log_odds"] for row in rows] == pytest.approx(odds, abs=1e-3)


def test_actor_takes_the_best_of_what_it_has_tried(compared: Compared) -> None:
    """Of every alpha after every epoch, once a seed. Each alpha's adapter is kept as peft reads it and is that of
    safety SFT at all layers but one. Its minutes are those of safety SFT and of all that it tried."""
    _, _, out, report = compared
    for seed in (0, 1):
        folder = out / f"seed{seed}"
        notes = {path.stem: read_state(path, "") for path in (folder / "checkpoints").glob("*.json")}
        chosen = notes["actor"]["numbers"]
        assert (chosen["layer"], chosen["tried"]) == (notes["actor_layer"]["numbers"]["number"], 2 * actor.EPOCHS)
        parts = [f"actor_{alpha:g}" for alpha in actor.ALPHAS]
        tried: dict[tuple[str, int], float] = {}
        for part in parts:
            seen = [row for row in load_jsonl(folder / "metrics.jsonl") if row["stage"] == part and "apart" in row]
            assert len(seen) == actor.EPOCHS
            for epoch, row in enumerate(seen, start=1):
                divergence = row["first_token_kl"]
                tried[part, epoch] = row["apart"] if divergence <= KL_LIMIT else -1 - divergence
        assert tried[f"actor_{chosen['alpha']:g}", chosen["epochs"]] == max(tried.values()) == chosen["apart"]

        before = load_file(folder / "safety_sft_6" / WEIGHTS)
        for part in parts:
            after = load_file(folder / part / WEIGHTS)
            changed = {
                name.split(".layers.")[1].split(".")[0] for name in before if not after[name].equal(before[name])
            }
            assert changed == {str(chosen["layer"])}
        (point,) = (p for p in report["points"] if (p["method"], p["seed"], p["strength"]) == ("actor", seed, 1))
        seconds = [notes[part]["seconds"] for part in ("safety_sft_6", "judged_safety_sft", "actor_layer", *parts)]
        assert point["numbers"]["minutes"] == pytest.approx(sum(seconds) / 60)


def test_a_search_of_actor_goes_on(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped before its last alpha, it trains that one alone and chooses as an undisturbed one does; the model is then
    the one that was chosen."""
    recipe, _, finished, _ = compared
    folder = Path(shutil.copytree(finished / "seed0", tmp_path / "seed0"))
    last = f"actor_{actor.ALPHAS[-1]:g}"
    weights = load_file(folder / last / WEIGHTS)
    for part in ("actor", last):
        (folder / "checkpoints" / f"{part}.json").unlink()
    shutil.rmtree(folder / last)
    trained: list[str] = []
    train = steps.train

    def training(run: Any, stage: Any, *rest: Any) -> None:
        trained.append(stage.name)
        train(run, stage, *rest)

    monkeypatch.setattr(steps, "train", training)
    seed_run = SeedRun(resolved(load_recipe(recipe).SETTINGS), folder, 0)
    with METHODS["actor"].model(seed_run, 1.0):
        active = adapter_weights(seed_run.model, BASELINE)
    assert trained == [last]
    assert all(tensor.equal(weights[name]) for name, tensor in load_file(folder / last / WEIGHTS).items())
    chosen, before = (read_state(at / "checkpoints" / "actor.json", "") for at in (folder, finished / "seed0"))
    assert chosen["numbers"] == before["numbers"]
    kept = load_file(folder / f"actor_{chosen['numbers']['alpha']:g}" / WEIGHTS)
    assert all(tensor.equal(kept[name]) for name, tensor in active.items())


def test_a_curve_adds_strengths_for_its_seeds_alone(compared: Compared) -> None:
    """Further numbers of refusals, orthogonalities, strengths and settings of the dial, which the table leaves out."""
    _, _, _, report = compared
    strengths: dict[str, set[float]] = {}
    for point in report["curve"]["points"]:
        assert set(point["seeds"]) <= {0, None}
        strengths.setdefault(point["method"], set()).add(point["strength"])
    assert strengths == {
        "base": {0}, "steered": {-1, 0.5, 1, 2}, "safety_sft": {3, 6}, "augmented": {3, 6},
        "surgical": {0, 0.5, 1}, "scans": {0.5, 1, 2}, "prosafeprune": {0.5, 1, 1.5}, "actor": {0.5, 1, 2},
        "adacd": {0.5, 1, 2}, "dpo": {0.25, 0.5, 0.75},
        "dial_alone": {0, 0.8}, "dcr": {0, 0.8},
    }  # fmt: skip


def test_a_stopped_comparison_goes_on(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while answering and again before a training, it ends with the same numbers; nothing that was finished is
    done again, and a finished one does nothing. Of methods that train together, that train alone and that do not."""
    recipe, _, _, report = compared
    some = ("steered", "safety_sft", "augmented", "surgical", "dcr")
    measure, train = measurement.measure, steps.train_safety_sft
    answered: list[int] = []
    trained: list[str] = []

    def counting(*args: Any) -> Any:
        answered.append(1)
        if len(answered) == 4:
            raise KeyboardInterrupt
        return measure(*args)

    def training(run: Any, model: Any, name: str, *rest: Any) -> None:
        if not run.finished(name):
            trained.append(name)
            if len(trained) == 3:
                raise KeyboardInterrupt
        train(run, model, name, *rest)

    monkeypatch.setattr(measurement, "measure", counting)
    monkeypatch.setattr(steps, "train_safety_sft", training)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            compare(recipe, tmp_path, only=some)
    again = compare(recipe, tmp_path, only=some)
    usual = [p for p in report["points"] if p["seed"] != 1 and f"{p['strength']:g}" == USUAL[p["method"]]]
    undisturbed = [p for p in usual if p["method"] in ("base", *some)]
    for ours, theirs in zip(again["points"], undisturbed, strict=True):
        assert all(ours[key] == theirs[key] for key in ("method", "strength", "seed"))
        for key in ours["numbers"].keys() - set(COSTS):
            assert ours["numbers"][key] == pytest.approx(theirs["numbers"][key], abs=1e-5), (ours["method"], key)
    assert len(answered) == len(undisturbed) + 1
    assert trained == ["safety_sft_6", "augmented_6_3", "stage2", "stage2"]
    compare(recipe, tmp_path, only=some)
    assert len(answered) == len(undisturbed) + 1


def test_a_model_is_compared_without_a_recipe(compared: Compared, tmp_path: Path) -> None:
    """Its settings in place of a recipe's file are the same comparison, of which nothing is done again."""
    recipe, _, out, report = compared
    shutil.copytree(out, tmp_path / "out")
    settings = settings_of(recipe)
    again = compare(settings, tmp_path / "out", seeds=(0, 1), curve_seeds=(0,))
    assert again["methods"] == report["methods"]
    assert again["recipe"] == settings.run.name


def test_other_prompts_need_no_new_training(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The adapters stay; each set has a column in a table of the sets, ``rows`` draws from each set and label, and
    multiple choice adds a column."""
    recipe, _, finished, _ = compared
    out = shutil.copytree(finished, tmp_path / "out")
    sets = {"sweet": "seemingly_toxic", "sour": "seemingly_toxic", "bitter": "toxic"}
    rows = [{"prompt": f"{s} {i}?", "label": label, "source": s} for s, label in sets.items() for i in range(9)]
    choices = [{"question": f"Which is {n}?", "choices": ["cat", "dog", "man"], "answer": 1} for n in range(3)]
    questions = write_rows(tmp_path / "choices.jsonl", choices)

    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("trained again")

    monkeypatch.setattr(steps, "train", never)
    files = (write_rows(tmp_path / "prompts.jsonl", rows),)
    report = compare(recipe, out, files=files, rows=4, multiple_choice=questions)
    assert report["prompts"]["n"] == 12
    numbers = report["methods"][-1]["numbers"]
    sweet, sour = (numbers[f"compliance on {name}"]["mean"] for name in ("sweet", "sour"))
    assert numbers["compliance"]["mean"] == pytest.approx((sweet + sour) / 2)
    assert numbers["accuracy"]["mean"] in (0, 1 / 3, 2 / 3, 1)
    page = (out / "comparison.md").read_text()
    heads = "| compliance, mean ↑ | kept, seemingly toxic ↑ | safety ↑ | J ↑ | AUROC ↑ | answer loss ↓ | "
    assert f"{heads}multiple choice ↑ |" in page
    assert "| sour ↑ | sweet ↑ |" in page


def test_benchmarks_by_name_are_sets_too(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone they are measured in place of the held-out prompts, at most ``rows`` of each; page and JSON name them."""
    sets = {name: [Prompt(f"{name} {n}?", name, name) for n in range(3)] for name in ("toxic", "seemingly_toxic")}
    monkeypatch.setattr(measurement, "load_benchmark", sets.__getitem__)
    out = tmp_path / "out"
    report = compare(small_settings(tiny, rows, out), out, only=("steered",), benchmarks=tuple(sets), rows=2)
    assert report["prompts"] == {"files": [], "benchmarks": list(sets), "rows": 2, "n": 4}
    assert {row["name"] for row in report["points"][0]["result"]["sets"]} == set(sets)
    assert "4 prompts of toxic, seemingly_toxic." in (out / "comparison.md").read_text()


def test_methods_train_within_the_memory_that_was_planned(compared: Compared, tmp_path: Path) -> None:
    """Each training of a method takes as many tokens per pass as that part of a run has memory for."""
    recipe, _, finished, _ = compared
    settings = resolved(load_recipe(recipe).SETTINGS)
    seed_run = SeedRun(settings, shutil.copytree(finished / "seed0", tmp_path / "seed0"), 0)
    seed_run.model.tokens_in = {"stage1": 111, "stage2": 222, "safety_sft": 333}
    for name in ("safety_sft", "augmented", "dcr"):
        for strength in METHODS[name].strengths(settings):
            with METHODS[name].model(seed_run, strength):
                pass
    assert seed_run.model.tokens_in == {
        "stage1": 111, "stage2": 222, "safety_sft": 333,
        "safety_sft_6": 333, "safety_sft_3": 333, "augmented_6_3": 333, "augmented_3_3": 333,
    }  # fmt: skip


def test_what_has_to_be_found_is_found_once(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other seeds take what the first one has found, and know as it does how the model refuses."""
    settings = replace(resolved(load_recipe(compared[0]).SETTINGS), sft_learning_rate=0.0)
    first = SeedRun(settings, tmp_path / "first", 0)
    first.find_settings()
    assert first.settings.sft_learning_rate > 0
    monkeypatch.setattr(steps, "find_settings", None)  # never again
    second = SeedRun(settings, tmp_path / "second", 1, first.run.path)
    second.find_settings()
    assert second.settings.sft_learning_rate == first.settings.sft_learning_rate
    assert second.model.openings == first.model.openings
    stock = SeedRun(settings, tmp_path / "stock", 0, second.run.path)
    stock.run.leave()
    other = first.settings.sft_learning_rate * 2
    with pytest.raises(UserError, match=r"begun with other settings \(sft_learning_rate"):
        command.seed_run(replace(settings, sft_learning_rate=other), tmp_path, 6)
    third = command.seed_run(settings, tmp_path, 7)  # one that comes first later
    assert third.model.openings == first.model.openings


def test_seconds_are_those_of_all_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one that was stopped, up to its last finished measurement."""
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for seconds, total in ((100.0, 100.0), (201.0, 301.0)):
        elapsed = Elapsed(tmp_path)
        clock[0] += seconds
        assert elapsed.keep() == total
        clock[0] += 7.0  # of a measurement that was not finished


def test_methods_may_have_seeds_of_their_own(compared: Compared) -> None:
    """Each is measured with its own, all others with those of the comparison, and the stock model once; a comparison
    without such is as before. A strength that is asked for twice is measured once, a seed that is given twice is an
    error, of benchmarks too."""
    settings, names = load_recipe(compared[0]).SETTINGS, (STOCK, BASELINE, DCR)
    methods = {name: METHODS[name] for name in names}
    seeds, curve = all_seeds((4,), None, {DCR: (0, 4, 2)})
    assert (seeds, curve) == ((4, 0, 2), (4,))
    found = configurations(with_seeds(methods, (4,), {DCR: (0, 4, 2)}), settings, seeds, ())
    assert [(one.method, one.seed) for one in found] == [
        (STOCK, None), (BASELINE, 4), (DCR, 4), (DCR, 0), (DCR, 2)
    ]  # fmt: skip
    assert configurations(with_seeds(methods, (4, 0), {}), settings, (4, 0), (0,)) == configurations(
        methods, settings, (4, 0), (0,)
    )
    twice = {STOCK: METHODS[STOCK], DCR: replace(METHODS[DCR], strengths=lambda settings: (0.5, 0.5, 0.0, 0.5))}
    assert [one.strength for one in configurations(twice, settings, (4,), (4,))] == [0, 0.5, 0.0]
    with pytest.raises(UserError, match="--seeds: give one seed or more, each once"):
        command.measured(methods, settings, EvaluationData([], [], []), (4, 4), (), compared[2] / "nowhere")
    assert not (compared[2] / "nowhere").exists()


def test_what_is_ahead_of_a_comparison_is_what_is_not_measured(compared: Compared, tmp_path: Path) -> None:
    """Nothing of one that is done; of one more seed, or of other prompts behind these, some seconds, and nothing is
    measured for saying so."""
    recipe, _, out, report = compared
    here = Path(shutil.copytree(out, tmp_path / "out"))
    asked: Any = {"seeds": tuple(report["seeds"]), "files": [()], "rows": None, "out": here}
    assert command.seconds_ahead(recipe, **asked) == 0.0
    before, other = sorted(here.rglob("answers/*")), load_recipe(recipe).SETTINGS.evaluation[0]
    more = command.seconds_ahead(recipe, **asked, seeds_of={DCR: (9,)})
    assert more > 0.0
    assert command.seconds_ahead(recipe, **asked | {"files": [(), (other,)]}) > 0.0
    assert sorted(here.rglob("answers/*")) == before


def test_what_methods_build_on_is_estimated_with_the_first_of_them(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own answers once a seed, before the first safety SFT; that before the first method that goes on from it, unless
    it is in the table itself or was trained already."""
    run = SeedRun(resolved(small_settings(tiny, rows, tmp_path, answers="own")), tmp_path / "seed0", 0)
    parts = dict.fromkeys(("stage1", "stage2", BASELINE, "own answers", "answers", "prompt", "dial"), 0.0)
    monkeypatch.setattr(SeedRun, "operations", parts | {BASELINE: 5.0, "own answers": 70.0, "answers": 100.0})
    monkeypatch.setattr(SeedRun, "data", SimpleNamespace(held_out=[0], development=[]))
    monkeypatch.setattr(command, "models_of", lambda names: [STOCK])

    def estimated(*names: str) -> list[float]:
        methods = {name: replace(METHODS[name], operations=lambda seed, strength: 0.0) for name in names}
        methods |= {BASELINE: METHODS[BASELINE]} if BASELINE in names else {}
        left = [Configuration(name, METHODS[name].strengths(run.settings)[0], 0) for name in names]
        return [operations - 100.0 for operations in command._operations(methods, {0: run}, left, 1)]

    assert estimated("surgical", "scans", DCR) == [75.0, 0.0, 0.0]
    assert estimated(BASELINE, "surgical") == [75.0, 0.0]
    assert estimated("dial_alone", DCR) == [0.0, 70.0]
    run.run.finish("safety_sft_6", {"seconds": 1.0})
    assert estimated("surgical") == [70.0]


def test_the_cost_of_dcr_is_all_that_it_takes(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search for its settings, what stage 1 computes around its steps, and the own answers of its stage 2; those
    cost safety SFT alone as much. What is trained is not counted again."""
    run = SeedRun(resolved(small_settings(tiny, rows, tmp_path, layer=-1, answers="own")), tmp_path / "seed0", 0)
    run.find_settings()
    plain, clock = steps.stock_geometry, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])  # only what is slow by this test takes time

    def slow(*given: Any) -> Any:
        clock[0] += 1000.0
        return plain(*given)

    monkeypatch.setattr(steps, "stock_geometry", slow)
    for _ in range(2):
        cost = run.train_dcr()
        own = run.cost(own_voice.PART).seconds
        assert cost.seconds == run.cost_of_finding.seconds + 1000.0 + own
    found = read_state(run.run.path / "found.json", "")
    assert run.cost_of_finding.seconds == found["evidence"]["seconds"] > 0
    note = run.run.finished(own_voice.PART) or {}
    run.run.finish(own_voice.PART, note | {"seconds": 60.0})
    assert run.train_dcr().seconds == run.cost_of_finding.seconds + 1060.0
    with METHODS[BASELINE].model(run, 6) as cost:
        assert cost.seconds == 60.0
    run.run.leave()


def test_where_dcr_has_no_stage_2_others_begin_with_the_model_itself(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """A model that refuses by itself is taught no more refusals for the methods beside DCR; one that does not is taught
    them for all."""
    for stage2, taught in (("no", False), ("yes", True)):
        folder = tmp_path / stage2
        settings = resolved(small_settings(tiny, rows, folder / "unused", stage2=stage2, dial="none"))
        run = SeedRun(settings, folder / "seed0", 0)
        with METHODS["prosafeprune"].model(run, 0.0) as cost:  # fitted, and at no strength nothing is changed
            begun = adapter_weights(run.model, BASELINE)
        changed = any(not torch.equal(begun[name], weights) for name, weights in run.first_weights.items())
        assert changed == taught == bool(run.run.finished("safety_sft_6"))
        assert cost.seconds > run.cost("safety_sft_6").seconds
        run.run.leave()


def test_searches_know_what_log_odds_mean_for_the_model_that_a_method_begins_with(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its judged answers to the development pairs: of the stock model for steering, of safety SFT alone for the
    others. They are given once, and belong to the cost of each method."""
    run = SeedRun(resolved(small_settings(tiny, rows, tmp_path, stage2="yes", dial="none")), tmp_path / "seed0", 0)
    both = prompts_of(run.data.development, "development")
    refusing = {prompt.prompt for prompt in both[::3]}
    plain = measure
    asked: list[list[str]] = []

    def judged(model: Any, prompts: list[Prompt], *rest: Any) -> list[dict[str, Any]]:
        asked.append([prompt.prompt for prompt in prompts])
        return [row | {"refused": row["prompt"] in refusing} for row in plain(model, prompts, *rest)]

    monkeypatch.setattr("dcr_lite.compare.anchors.measure", judged)
    meanings = {}
    for method, begun in (("steered", STOCK), ("prosafeprune", BASELINE), ("surgical", BASELINE)):
        with METHODS[method].model(run, METHODS[method].strengths(run.settings)[0]) as cost:
            assert cost.seconds > run.cost(f"judged_{begun}").seconds > 0
        meanings[begun] = run.judged_anchors(begun)[1][1].meaning
    assert asked == [[prompt.prompt for prompt in both]] * 2

    adapters.activate(run.model, BASELINE)
    rows_of = plain(run.model, both, run.settings.answer_tokens)
    odds = np.array([[row["refusal_log_odds"]] for row in rows_of])
    reference = LogisticRegression(C=1e8, max_iter=1000).fit(odds, [prompt.prompt in refusing for prompt in both])
    intercept, slope = meanings[BASELINE]
    rates = 1 / (1 + np.exp(-(intercept + slope * odds[:, 0])))
    assert rates.mean() == pytest.approx(reference.predict_proba(odds)[:, 1].mean(), abs=0.02)  # give or take the prior
    assert rates.mean() == pytest.approx(len(refusing) / len(both), abs=0.02)
    assert meanings[STOCK] != meanings[BASELINE]
    kinds = run.judged_anchors(BASELINE)[1]
    assert kinds[0] == run.anchors[0]
    assert replace(kinds[1], meaning=(0.0, 1.0)) == run.anchors[1]
    sides = [rates[: len(both) // 2].mean(), rates[len(both) // 2 :].mean()]
    assert directions.apart(run.model, kinds[1]) == pytest.approx(sides[0] - sides[1], abs=1e-5)
    run.run.leave()


def test_where_openings_say_nothing_of_answers_log_odds_are_taken_as_they_are(
    compared: Compared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a slope all candidates of a search would be alike, and the first be taken."""
    said = [{"refusal_log_odds": float(n), "refused": n < 5} for n in range(10)]  # refuses what opens otherwise
    monkeypatch.setattr("dcr_lite.compare.anchors.measure", lambda *given: said)
    assert meaning_of(SimpleNamespace(), SimpleNamespace(development=[]), 40) == Meaning(0.0, 1.0)  # type: ignore[arg-type]
    monkeypatch.setattr(
        "dcr_lite.compare.anchors.measure",
        lambda *given: [one | {"refused": one["refusal_log_odds"] > 6} for one in said],
    )
    assert meaning_of(SimpleNamespace(), SimpleNamespace(development=[]), 40).slope > 0.5  # type: ignore[arg-type]


def test_any_seed_of_a_comparison_can_come_first(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first seed began with settings to be found, the others with what that had found: each opens with the recipe's
    settings, and behind any other, and takes what was found. Another value than the found one is an error as ever."""
    answers = {"toxic": {"refusal_rate": 0.4}, "openings": ["Sorry"]}
    monkeypatch.setattr(found_settings, "_stock_answers", lambda *args: answers)
    monkeypatch.setattr(found_settings, "draw_found", lambda *args: None)
    unset: dict[str, Any] = {"refusals": None, "sft_learning_rate": 0.0, "layer": -1}
    shipped = SHIPPED_FILES["refusal_rows"]
    settings = resolved(small_settings(tiny, rows, tmp_path, refusal_rows=shipped, baseline_refusals=None, **unset))
    first = command.seed_run(settings, tmp_path, 0)
    found, folder = first.settings, first.run.path
    assert (found.refusals, found.baseline_refusals) == (24, 128)  # the methods beside DCR learn as many as ever
    assert METHODS[BASELINE].strengths(found) == (128, 64, 230)
    first.unload()
    first.run.leave()
    SeedRun(found, tmp_path / "seed1", 1, folder).run.leave()
    for seeds in ((1,), (1, 0)):
        runs = [source._run for source in sources_of_comparison(settings, tmp_path, (DCR,), seeds)]
        assert [run.settings for run in runs] == [replace(found, seed=s, run=tmp_path / f"seed{s}") for s in seeds]
        for run in runs:
            run.run.leave()
    for seed in (0, 1):
        with pytest.raises(UserError, match=f"layer: .* then, {found.layer + 1} now"):
            command.seed_run(replace(settings, layer=found.layer + 1), tmp_path, seed)
    SeedRun(found, tmp_path / "stock", 0, folder).run.leave()
    for seed in (0, 1):
        with pytest.raises(UserError, match=r"refusals: (None|24) then, 128 now"):
            command.seed_run(replace(settings, refusals=128), tmp_path, seed)
    older = {
        name: value for name, value in load_json(folder / "found.json").items() if name not in ("refusals", "sha256")
    }
    for name in ("seed0", "seed1", "stock"):
        began = load_json(tmp_path / name / "settings.json")
        began["settings"]["refusals"] = 128
        write_json(began, tmp_path / name / "settings.json")
        write_state(older, tmp_path / name / "found.json")
    for seed in (0, 1):  # of before refusals were found
        again = command.seed_run(settings, tmp_path, seed)
        assert again.settings.sizes["refusals"] == 128
        again.unload()
        again.run.leave()


def test_one_model_at_a_time(compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first seed's, by which settings are found and time is estimated, is given back before the stock model is
    loaded, and that before any other; none is left at the end."""
    made: list[SeedRun] = []
    loaded: list[list[int]] = []

    class Noted(SeedRun):
        def __init__(self, *args: Any):
            super().__init__(*args)
            made.append(self)

    def measure(run: SeedRun, *rest: Any) -> None:
        assert run.model is not None
        loaded.append([i for i, one in enumerate(made) if "_loaded" in vars(one)])

    monkeypatch.setattr(command, "SeedRun", Noted)
    monkeypatch.setattr(command, "measure_configuration", measure)
    settings = load_recipe(compared[0]).SETTINGS
    data = EvaluationData.read(settings.evaluation, None, None)
    methods = {name: METHODS[name] for name in (STOCK, BASELINE)}
    command.measured(methods, settings, data, (0, 1), (), tmp_path / "out")
    assert loaded == [[1], [0], [2]]  # made in the order seed 0, stock model, seed 1
    assert not any("_loaded" in vars(one) for one in made)


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


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"recipe": Path(__file__).parent / "helpers" / "tiny_models.py"}, "defines no SETTINGS"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "each once"),
        ({"seeds": (0, 2**63)}, f"--seeds {2**63}: it takes a number from 0 to"),
        ({"curve_seeds": (7,)}, "7 is not among --seeds"),
        ({"rows": 0}, "--rows 0"),
        ({"files": (Path("nowhere.jsonl"),)}, "nowhere.jsonl: no such file"),
        ({"benchmarks": ("xtest",)}, "--benchmarks xtest: no such benchmark"),
        ({"files": ("plain",)}, "0 toxic prompts to measure on; at least 2 of each label are needed"),
    ],
)
def test_errors_come_before_any_work(compared: Compared, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    if changes.get("files") == ("plain",):
        changes = {"files": (compared[0].parent / "rows" / "plain.jsonl",)}
    with pytest.raises(UserError, match=says):
        compare(**({"recipe": compared[0], "out": tmp_path} | changes))
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_has_stage_1(compared: Compared, tmp_path: Path) -> None:
    """What it is worth is compared, so it is never left out: where the model would, DCR has it, and the row of the dial
    alone has not."""
    settings = load_recipe(compared[0]).SETTINGS
    assert command.seed_run(settings, compared[2], 0).settings.stage1 == "yes"
    with pytest.raises(UserError, match="DCR is the method dial_alone"):
        command.seed_run(replace(settings, stage1="no"), tmp_path, 0)


@pytest.mark.parametrize("error", [MethodError("loss nan: lower the learning rate."), torch.OutOfMemoryError("full")])
def test_a_method_that_fails_ends_no_comparison(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception,
) -> None:  # fmt: skip
    """It is named with what its error says, at the end and on the page, and the others are in the tables; the same
    command tries it again. The stock model, or an error that nobody has foreseen, ends all."""
    recipe, out = compared[0], Path(shutil.copytree(compared[2], tmp_path / "out"))
    (scans,) = (out / "seed0" / "checkpoints").glob("measured_scans_1_*.json")
    (dcr,) = (out / "seed0" / "checkpoints").glob("measured_dcr_0_*.json")
    (stock,) = (out / "stock" / "checkpoints").glob("measured_base_0_*.json")
    of_scans, of_dcr = scans.read_bytes(), dcr.read_bytes()
    scans.unlink()
    dcr.unlink()
    errors = {"scans": error}

    def measuring(run: SeedRun, method: Any, one: Configuration, *rest: Any) -> None:
        if one.method in errors:
            raise errors[one.method]
        (scans if one.method == "scans" else dcr).write_bytes(of_scans if one.method == "scans" else of_dcr)

    monkeypatch.setattr(command, "measure_configuration", measuring)
    flags_of = ["--recipe", str(recipe), "--out", str(out), "--seeds", "0", "--curve-seeds"]
    monkeypatch.setattr(sys, "argv", ["dcr-lite", "compare", *flags_of, "--methods", "scans", "actor", "dcr"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    said = capsys.readouterr()
    assert "1 of the models could not be measured" in said.err
    reason = "loss nan" if isinstance(error, MethodError) else "memory runs out"
    assert f"SCANS, seed 0, at 1 is left out: {reason}" in said.out
    page = (out / "comparison.md").read_text(encoding="utf-8")
    assert f"**SCANS, seed 0, at 1 could not be measured**: {reason}" in page
    once = {"method": "scans", "strength": 0.0, "seed": None, "why": "torn"}  # as an added adapter
    assert failed_section([once]) == "\n**SCANS could not be measured**: torn\n"
    report = json.loads((out / "comparison.json").read_text(encoding="utf-8"))
    assert [(one["method"], one["strength"], one["seed"]) for one in report["failed"]] == [("scans", 1, 0)]
    assert [entry["method"] for entry in report["methods"]] == ["base", "actor", "dcr"]

    errors["scans"] = ValueError("unforeseen")
    with pytest.raises(ValueError, match="unforeseen"):
        cli.main()
    del errors["scans"]
    cli.main()
    assert "could not be measured" not in (out / "comparison.md").read_text(encoding="utf-8")
    stock.unlink()
    errors["base"] = MethodError("not the stock model")
    with pytest.raises(SystemExit):
        cli.main()
    assert "error: not the stock model" in capsys.readouterr().err


def test_memory_that_runs_out_is_of_one_method_alone() -> None:
    """As passes without gradients say it, and a training that can be cut no further."""

    def full(items: list[int]) -> list[int]:
        raise torch.OutOfMemoryError("full")

    cut: Any = SimpleNamespace(tokens_per_pass=1, halve_pass=lambda: False)
    sizes = PassSize(cut, "stage1")
    for runs_out in (lambda: in_halves(full, [1, 2]), lambda: [sizes.ran_out() for _ in range(2)]):
        with pytest.raises(MethodError, match="memory runs out"):
            runs_out()


def test_the_command_shows_the_table(
    compared: Compared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``dcr-lite compare`` on a finished comparison shows it, and measures nothing again."""
    recipe, out = compared[0], Path(shutil.copytree(compared[2], tmp_path / "out"))
    monkeypatch.setattr(command, "measure_configuration", None)
    argv = ["dcr-lite", "compare", "--recipe", str(recipe), "--out", str(out), "--seeds", "0"]
    monkeypatch.setattr(sys, "argv", argv)
    cli.main()
    shown = capsys.readouterr().out
    assert "SCANS" in shown
    assert str(out / "comparison.md") in shown
    assert "With a single seed it is over prompts" in (out / "comparison.md").read_text()
    apart = json.loads((out / "comparison.json").read_text())["differences"]
    assert all(apart[name][key]["ci95"] for name in apart for key in ("compliance", "safety", "j", "auroc"))
