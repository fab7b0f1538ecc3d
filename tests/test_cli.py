"""The command dcr-lite: its commands, its errors, and flags that mean the same everywhere."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from small_runs import RECIPE, Outcome

import dcr_lite
from dcr_lite import cli
from dcr_lite.data.benchmarks import BENCHMARKS
from dcr_lite.settings import ModelSettings, Settings


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """run("score", "--help") -> what the user of dcr-lite sees."""

    def run_command(*argv: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dcr-lite", *argv])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run_command


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_help_lists_every_command(argv: list[str], run: Any) -> None:
    """Without a command, too."""
    seen = run(*argv)
    assert (seen.code, seen.err) == (0, "")
    for command in cli.COMMANDS:
        assert f"• {command} " in seen.out


def test_version_is_that_of_the_package(run: Any) -> None:
    """dcr-lite --version."""
    assert run("--version") == Outcome(0, f"dcr-lite {dcr_lite.__version__}\n", "")


@pytest.mark.parametrize("argv", [["nosuchcommand"], ["nosuchcommand", "--help"]])
def test_an_unknown_command_is_an_error(argv: list[str], run: Any) -> None:
    """It is named with the commands that there are, also before --help."""
    seen = run(*argv)
    assert (seen.code, seen.out) == (2, "")
    assert "nosuchcommand" in seen.err
    assert ", ".join(cli.COMMANDS) in seen.err


@pytest.mark.parametrize("argv", [["train"], ["train", "--help"]])
def test_train_lists_the_recipes(argv: list[str], run: Any) -> None:
    """Each with the first line of its docstring, in the order of their names, and nothing else."""
    seen = run(*argv)
    assert (seen.code, seen.err) == (0, "")
    recipes = []
    for path in sorted(RECIPE.parent.glob("*.py")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].strip('"')
        assert "aligned on one GPU" in title
        recipes.append([path.stem, title])
    assert [line.split(maxsplit=1) for line in seen.out.split("\n\n")[2].splitlines()] == recipes


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["train", "nosuchrecipe"], "nosuchrecipe: no such recipe"),
        (["train", "--seed", "1"], "dcr-lite train --seed: name a model with --model, or a recipe before its flags"),
        (["compare", "--recipe", "nosuchrecipe"], "nosuchrecipe: no such recipe"),
        (["compare", "--recipe", "llama3_8b", "--model", "m"], "--recipe and --model stand for each other: give one"),
    ],
)
def test_an_unknown_recipe_is_an_error(argv: list[str], said: str, run: Any) -> None:
    """One line on standard error."""
    seen = run(*argv)
    assert seen.code == 1
    assert seen.err.startswith(f"error: {said}")
    assert seen.err.count("\n") == 1


def test_help_of_a_recipe_answers_without_torch() -> None:
    """dcr-lite train NAME --help shows the docstring and the flags of that recipe before anything heavy is imported."""
    command = [sys.executable, "-X", "importtime", "-m", "dcr_lite.cli", "train", "llama3_8b", "--help"]
    done = subprocess.run(command, env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True, check=True)
    assert "usage: dcr-lite train llama3_8b" in done.stdout
    assert "Llama 3 8B, aligned on one GPU" in done.stdout
    assert "--from-base-model" in done.stdout
    assert "(default: runs/llama3_8b)" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "tyro" in imported
    assert not imported & {"torch", "transformers", "peft", "matplotlib", "numpy", "datasets", "sklearn", "gradio"}


def test_a_flag_offers_the_same_in_every_command() -> None:
    """Flags of one name take the same in every command and in every recipe, and say the same."""
    hints = [get_type_hints(one) for one in (Settings, *cli.COMMANDS.values())]
    for name in ("device", "precision", "quantization", "rows", "multiple_choice", "benchmarks", "chat_format"):
        assert len({str(hint[name]) for hint in hints if name in hint}) == 1, name
    for name in ("device", "rows", "multiple_choice"):
        said = [re.findall(f" {name}: .*", inspect.getdoc(command) or "") for command in cli.COMMANDS.values()]
        assert sum(map(bool, said)) > 1
        assert len({text[0] for text in said if text}) == 1, name
    for name in ("run", "model", "chat_format"):  # of which other commands take the first two for something else
        said = [re.findall(f"\n +{name}: .*", inspect.getdoc(command) or "") for command in (cli.demo, cli.score)]
        assert said[0] == said[1] != [], name
    assert re.findall("chat_format: (.*)", inspect.getdoc(cli.demo) or "")[0] in inspect.getsource(ModelSettings)


@pytest.mark.parametrize(
    "argv", [["judge", "a.jsonl", "--out", "b.jsonl"], ["evaluate", "--model", "x", "--out", "x.json"]]
)
def test_a_key_that_no_judge_asks_for_is_an_error(
    argv: list[str], run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The judges that are asked for, or the cue judge where none is, are no endpoints: the key would do nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"prompt": "a", "response": "b"}')
    seen = run(*argv, "--judge-key", "MINE")
    assert (seen.code, seen.out) == (1, "")
    assert seen.err == "error: without an endpoint in --judge nothing uses --judge-key: give both or neither\n"
    assert not list(tmp_path.glob("[bx].json*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "argv",
    [
        ["score", "Hello"],
        ["score", "Hello", "--model", "x"],
        ["demo"],
        ["evaluate", "--model", "x", "--out", "x.json"],
        ["evaluate", "--model", "x", "--out", "x.json", "--judge", "learned"],
    ],
)
def test_a_device_that_is_not_there_is_an_error(
    argv: list[str], run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """--device reaches the place where the model is loaded."""
    if argv == ["demo"]:
        pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x").mkdir()
    seen = run(*argv, "--device", "cuda")
    assert seen.code == 1
    assert "--device cuda: torch sees no CUDA GPU" in seen.err


def test_help_of_evaluate_names_every_benchmark(run: Any) -> None:
    """The names come from the list itself."""
    words = run("evaluate", "--help").out.replace("│", " ").replace(",", " ").replace(".", " ").split()
    assert set(BENCHMARKS) <= set(words)
