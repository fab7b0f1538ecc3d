"""The built wheel in an environment without a checkout: the commands, the recipes and the data come with it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import flags, save_rows

ROOT = Path(__file__).parent.parent
LEFT_OUT = shutil.ignore_patterns(".*", "runs", "build", "dist", "*.egg-info", "__pycache__")
ENVIRONMENT = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}

END = "(the command has ended)"
ONE_BY_ONE = f"""
import json, sys
from dcr_lite import cli

for words in json.loads(sys.argv[1]):
    sys.argv = ["dcr-lite", *words]
    try:
        cli.main()
    except SystemExit as end:
        if end.code:
            raise
    print({END!r})
"""

pytestmark = pytest.mark.slow


def call(command: list[str | Path], folder: Path) -> str:
    """The standard output of a command that succeeds in a folder."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources: setuptools leaves its work beside them."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "sources", ignore=LEFT_OUT)
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    call([*build, folder / "sources"], folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment with the wheel. Its dependencies are those of the running one; of
    that, .pth files are not processed, and so its editable install of the checkout is not seen."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    call([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel], folder)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder)})
    Path(packages, "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def test_the_wheel_holds_all_that_the_package_reads(wheel: Path) -> None:
    """Every module, the recipes, the shipped rows, and the files that stand beside modules; no test, no run, and no
    path of the machine that built it."""
    with zipfile.ZipFile(wheel) as archive:
        held = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
        every = {name: archive.read(name) for name in archive.namelist()}
    package = {path for path in (ROOT / "dcr_lite").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    expected = {str(path.relative_to(ROOT)): path for path in package}
    expected |= {f"dcr_lite/recipes/{path.name}": path for path in (ROOT / "recipes").glob("*.py")}
    assert held.keys() == expected.keys()
    assert all(content == expected[name].read_bytes() for name, content in held.items())
    here = [str(place).encode() for place in (ROOT, wheel.parent)]
    assert not [name for name, content in every.items() if any(place in content for place in here)]


def test_the_commands_answer_outside_a_checkout(installed: Path, tmp_path: Path) -> None:
    """dcr-lite lists its commands and its recipes, and the modules are those of the wheel."""
    assert "train" in call([installed / "dcr-lite", "--help"], tmp_path)
    assert "llama3_8b" in call([installed / "dcr-lite", "train"], tmp_path)
    assert "--contrastive-steps" in call([installed / "dcr-lite", "train", "smollm2_135m", "--help"], tmp_path)
    where = call([installed / "python", "-c", "import dcr_lite; print(dcr_lite.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(installed.parent)


def test_a_recipe_trains_and_its_run_is_scored_and_measured(
    installed: Path, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """dcr-lite train, score and evaluate, from an unrelated folder, with the run in its default place below it, in a
    Python that has imported nothing: other tests fork from one that has. One process runs all three, since each would
    spend most of its time on the same imports."""
    rows = save_rows(tmp_path / "rows")
    (tmp_path / "here").mkdir()
    run = Path("runs") / "smollm2_135m"
    argv = flags(tiny_folder("llama"), rows, run, contrastive_steps=1, sft_epochs=1, evaluation=rows / "plain.jsonl")
    measured = ["--prompts", rows / "held_out.jsonl", "--instructions", rows / "instructions.jsonl"]
    out = tmp_path / "result.json"
    commands = [
        ["train", "smollm2_135m", *argv],
        ["score", "Can I cut a man with a cake?", "--json"],
        ["evaluate", "--model", run, *measured, "--answer-tokens", "6", "--out", out],
    ]
    words = json.dumps([[str(word) for word in command] for command in commands])
    said = call([installed / "python", "-c", ONE_BY_ONE, words], tmp_path / "here").split(END)
    assert (tmp_path / "here" / run / "adapter" / "adapter_model.safetensors").exists()
    assert [score["model"] for score in json.loads(said[1])["scores"]] == ["dcr", "safety_sft", "base"]
    assert json.loads(out.read_text(encoding="utf-8"))["overall"].keys() == {"toxic", "seemingly_toxic"}
