"""From the command line to a recipe: flags that exclude each other, and how an interrupted run is continued."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tyro
from command_line import run_command
from small_runs import RECIPE, recipe_module, run_here

from dcr_lite.errors import UserError
from dcr_lite.mend.settings import MendSettings
from dcr_lite.run import launch
from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import find_recipe, load_recipe, model_in
from dcr_lite.run.void_flags import require_effect
from dcr_lite.settings import Settings

OF_STAGE_2 = [
    "--refusals=9",
    "--no-discerned-refusals",
    "--begun-refusals",
    "2",
    "--second-turns=0.1",
    "--sft-layers=all",
]
OF_SAFETY_SFT = ["--answers=given", "--sft-epochs=2", "--sft-batch=4", "--sft-learning-rate=1e-3"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--paper", "--contrastive-loss", "info_nce"], "--paper replaces --contrastive-loss"),
        (["--paper", "--contrastive_loss=circle"], "--paper replaces --contrastive-loss"),
        (["--centre", "batch", "--paper"], "--paper replaces --centre"),
        (["--paper", "--whiten"], "--paper replaces --whiten"),
        (["--paper", "--no-whiten"], "--paper replaces --no-whiten"),
        (["--paper", "--whiten", "--centre=none"], "--paper replaces --centre, --whiten"),
        (["--from-base-model", "--model", "mine"], "--from-base-model replaces --model"),
        (["--from_base_model", "--chat_format=llama3"], "--from-base-model replaces --chat-format"),
        (
            ["--stage1", "no", "--contrastive-steps", "9", "--margin", "0", "--patience=3"],
            "--stage1 no replaces --contrastive-steps, --margin, --patience",
        ),
        (["--contrastive-loss=circle", "--temperature=1"], "--contrastive-loss circle replaces --temperature"),
        (["--stage2=no", "--refusals=9"], "--stage2 no replaces --refusals"),
        (["--stage2=no", "--refusal-rows", "mine.jsonl"], "--stage2 no replaces --refusal-rows"),
        (
            ["--stage2=no", *OF_SAFETY_SFT],
            "--stage2 no replaces --answers, --sft-batch, --sft-epochs, --sft-learning-rate",
        ),
        (
            ["--stage2=no", "--compare-with=safety_sft", *OF_STAGE_2],
            "--stage2 no replaces --begun-refusals, --no-discerned-refusals, --refusals, --second-turns, --sft-layers",
        ),
    ],
)
def test_a_flag_that_another_setting_replaces_is_an_error(flags: list[str], said: str) -> None:
    """Both flags are named, also where the value given is the default, and nothing is run."""
    done = run_here(flags, RECIPE.with_name("llama3_8b.py"))
    assert done.code == 1
    assert done.err == f"\nerror: {said}: give one or the other\n"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scale=2", "--margin=0"], "without --contrastive-loss circle or --paper nothing uses --margin, --scale"),
        (["--base-model", "mine"], "without --from-base-model nothing uses --base-model"),
        (["--no-from-base-model", "--base-format=llama3"], "without --from-base-model nothing uses --base-format"),
        (["--baseline-refusals=9"], "without --compare-with safety_sft nothing uses --baseline-refusals"),
    ],
)
def test_a_flag_that_needs_another_is_an_error_without_it(flags: list[str], said: str) -> None:
    """Both are named, and nothing is run."""
    done = run_here(flags, RECIPE.with_name("llama3_8b.py"))
    assert (done.code, done.err) == (1, f"\nerror: {said}: give both or neither\n")


@pytest.mark.parametrize(
    "flags",
    [
        ["--no-paper", "--centre", "none"],
        ["--no-from-base-model", "--model", "mine"],
        ["--stage1", "yes", "--contrastive-loss", "circle", "--scale", "2"],
        ["--paper", "--margin", "0.3"],
        ["--from-base-model", "--base-model", "mine", "--base-format", "llama3"],
        ["--baseline-refusals", "9", "--stage2", "no", *OF_SAFETY_SFT, "--refusal-rows", "mine.jsonl"],
        [*OF_STAGE_2, *OF_SAFETY_SFT, "--stage2", "auto"],
    ],
)
def test_a_flag_that_nothing_replaces_is_accepted(flags: list[str]) -> None:
    """--no-paper, --no-from-base-model and --stage1 yes replace nothing, and the baseline, which this recipe trains
    itself, learns what stage 2 would."""
    recipe = recipe_module().SETTINGS
    assert not recipe.paper
    assert not recipe.from_base_model
    assert recipe.compare_with
    require_effect(tyro.cli(Settings, default=recipe, args=flags), flags)


def test_a_run_goes_on_with_a_flag_that_had_no_effect(tmp_path: Path) -> None:
    """Whatever flags it was begun with, as an older version took them: what comes next is said, here that its folder is
    damaged, and not the flag. Where nothing was begun --resume excuses no flag."""
    run = tmp_path / "run"
    flags = ["--scale", "2", "--run", str(run), "--model", str(tmp_path / "no-model")]
    assert "nothing uses --scale" in run_here(flags, RECIPE).err
    assert "nothing uses --scale" in run_here([*flags, "--resume"], RECIPE).err
    run.mkdir()
    for name in ("settings.json", "metrics.jsonl"):
        (run / name).write_text("")
    done = run_here([*flags, "--resume"], RECIPE)
    assert done.code == 1
    assert "--scale" not in done.err
    assert "its settings.json cannot be read" in done.err


def test_what_a_recipe_sets_is_no_flag() -> None:
    """A recipe may set what another of its settings, or a flag, makes void."""
    recipe = replace(recipe_module().SETTINGS, compare_with=(), scale=2.0, refusals=9, sft_epochs=2, patience=5)
    flags = ["--stage1=no", "--stage2=no"]
    require_effect(tyro.cli(Settings, default=recipe, args=flags), flags)


def test_mending_draws_from_refusals_without_a_stage_2() -> None:
    """Their prompts stand beside the user's: the file is read, what stage 2 learns of it is not."""
    settings = replace(MendSettings.of_model("m"), stage2="no")
    require_effect(settings, ["--stage2", "no", "--refusal-rows", "mine.jsonl"])
    with pytest.raises(UserError, match="--stage2 no replaces --refusals"):
        require_effect(settings, ["--stage2", "no", "--refusals", "9"])


@pytest.mark.parametrize(
    ("words", "processes", "command"),
    [
        ([], 1, "python recipes/x.py"),
        ([], 2, "accelerate launch recipes/x.py"),
        (["train", "smollm2_135m"], 1, "dcr-lite train smollm2_135m"),
        (["train"], 1, "dcr-lite train"),
        (["train", "my recipe.py"], 1, "dcr-lite train 'my recipe.py'"),
        (["train", "smollm2_135m"], 2, "accelerate launch -m dcr_lite.cli train smollm2_135m"),
    ],
)
@pytest.mark.parametrize("flags", [["--seed", "1", "--run", "a b"], ["--seed", "1", "--run", "a b", "--resume"]])
def test_an_interrupted_run_names_the_command_that_continues_it(
    words: list[str],
    processes: int,
    command: str,
    flags: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In the form in which the run was started, with its flags, quoted for a shell, and --resume once."""

    def interrupted(main: Callable[..., None], settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_start", interrupted)
    monkeypatch.setattr("sys.argv", ["recipes/x.py"])
    for name, value in {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": str(processes)}.items():
        monkeypatch.setenv(name, value)
    module = recipe_module()
    with pytest.raises(SystemExit) as end:
        launch.launch(module.main, module.SETTINGS, flags, words)
    assert end.value.code == 130
    assert capsys.readouterr().err.endswith(f"Continue with:\n  {command} --seed 1 --run 'a b' --resume\n")


# --- a model without a recipe ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "model"),
    [
        (["--seed", "1", "--model", "a/b"], "a/b"),
        (["--model=a/b", "--plan"], "a/b"),
        (["--seed", "1"], None),
        (["--model"], None),
        (["--model="], None),
    ],
)
def test_the_model_is_found_among_flags(flags: list[str], model: str | None) -> None:
    """In both forms of a flag."""
    assert model_in(flags) == model


@pytest.mark.parametrize(
    ("model", "run"),
    [("Qwen/Qwen2.5-1.5B-Instruct", "Qwen2.5-1.5B-Instruct"), ("/models/my model/", "my_model"), ("tiny", "tiny")],
)
def test_a_model_without_a_recipe_has_a_run_folder_of_its_name(model: str, run: str) -> None:
    """All else is to be found, or as in every recipe."""
    assert Settings.of_model(model) == Settings(model=model, run=Path("runs") / run)


def test_folders_of_one_name_that_tells_nothing_have_run_folders_of_their_own(tmp_path: Path) -> None:
    """Called after the folders around them, since two runs are merged into folders of the same name."""
    for name in ("a", "b"):
        (folder := tmp_path / name / "merged").mkdir(parents=True)
        assert Settings.of_model(str(folder)).run == Path("runs") / f"{name}_merged"
        assert MendSettings.of_model(str(folder)).run == Path("runs") / f"{name}_merged_mended"
    assert Settings.of_model("merged").run == Path("runs/merged")


def test_a_folder_given_as_a_dot_has_its_own_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the run folder's name, and in the settings that a run, its report and its card go by."""
    (folder := tmp_path / "Tiny-0.5B").mkdir()
    monkeypatch.chdir(folder)
    for given, meant in ((".", folder), ("./", folder), ("..", tmp_path), ("../", tmp_path)):
        settings = Settings.of_model(given)
        assert settings.run == Path("runs") / meant.name
        assert resolved(settings).model == str(meant)
    assert resolved(Settings.of_model("../Tiny-0.5B")).model == "../Tiny-0.5B"


def test_a_model_or_a_recipe_has_to_be_named(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Flags alone are an error that says what is missing; --plan of a folder answers from its config.json."""
    assert run_command(monkeypatch, "train", "--seed", "1") == 1
    assert "name a model with --model, or a recipe before its flags" in capsys.readouterr().err


def test_a_model_without_a_recipe_can_be_planned(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path
) -> None:
    """In a folder, from its config.json; no run folder comes about."""
    monkeypatch.chdir(tmp_path)
    assert run_command(monkeypatch, "train", "--model", str(tiny_folder("qwen2")), "--plan") == 0
    assert "RTX 3060" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# --- recipes by name --------------------------------------------------------------------------------------------------


def test_a_recipe_is_found_by_its_name_and_by_its_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The kit's recipes by name, from any folder; any file by its path."""
    mine = tmp_path / "mine.py"
    mine.write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_recipe("smollm2_135m").samefile(RECIPE)
    assert find_recipe("mine.py").samefile(mine)
    with pytest.raises(UserError, match=r"mine: no such recipe. Give the path .* gemma2_2b, .*, smollm3_3b\."):
        find_recipe("mine")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.txt", "", "its name does not end in .py"),
        ("mine.py", "x = 1", "it defines no SETTINGS"),
        ("mine.py", "SETTINGS = {}\ndef main(settings): ...", "it defines no SETTINGS"),
        ("mine.py", RECIPE.read_text(encoding="utf-8").partition("def main")[0], "it defines no function main"),
    ],
)
def test_a_file_that_is_no_recipe_is_an_error(name: str, text: str, said: str, tmp_path: Path) -> None:
    """The message says what is missing."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"not a recipe \\({said}"):
        load_recipe(tmp_path / name)
