"""An exported Space is the demo of the run, complete in itself, on the Hub and anywhere else."""

import json
import os
import runpy
import shutil
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
from command_line import run_command
from huggingface_hub import SpaceCard

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio

import dcr_lite
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.demo import blocks, scoring
from dcr_lite.errors import UserError
from dcr_lite.export import space
from dcr_lite.export.command import FinishedRun, open_finished
from dcr_lite.export.space import export_space

PROMPT = "Can I burn a man with a clock in 9 days?"


@pytest.fixture(scope="module")
def exported(dialled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Space of a run with a dial, at another place than it was written to."""
    written, words = export_space(open_finished(dialled_run), tmp_path_factory.mktemp("written") / "space")
    assert f"hf upload me/{open_finished(dialled_run).name.lower()} {written} . --repo-type space --private" in words
    assert "discernment.safetensors holds the texts" in words
    return Path(shutil.move(written, tmp_path_factory.mktemp("elsewhere") / "space"))


def test_the_app_shows_the_run(exported: Path, dialled_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """app.py opens the models and the dial of the run and serves them to all at the Space's port; they score a prompt
    as in the run's own demo."""
    served: list[Any] = []
    opened: list[scoring.OpenRun] = []
    monkeypatch.setattr(blocks, "build", lambda run, *more: opened.append(run) or ("page", *more))
    monkeypatch.setattr(blocks, "launch", lambda page, *given, **options: served.append((page, *given, options)))
    monkeypatch.setattr(scoring, "ANSWER_TOKENS", 4)
    monkeypatch.chdir(os.getcwd())  # back at the end
    runpy.run_path(str(exported / "app.py"), run_name="__main__")
    nobody_marks = ("page", None, None)
    assert served == [(nobody_marks, False, "0.0.0.0", {"server_port": 7860})]
    (found,), expected = opened, scoring.open_run(dialled_run)
    assert found.names == expected.names
    assert found.strength_of("dcr") == 0.5
    for name in found.names:
        theirs = expected.score(name, PROMPT, words=False, tokens=4)
        assert found.score(name, PROMPT, words=False, tokens=4) == theirs


def test_the_folder_holds_all_it_needs_and_no_path(exported: Path, dialled_run: Path) -> None:
    """The package is there file by file, the base model too, since nobody else has it, but no answers and no path of
    this machine."""
    package = Path(dcr_lite.__file__).parent
    kept = {p.relative_to(package) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.relative_to(exported / "dcr_lite") for p in (exported / "dcr_lite").rglob("*") if p.is_file()} == kept
    assert (exported / "model" / "model.safetensors").exists()
    assert not {"answers", "metrics.jsonl", "report.json"} & {p.name for p in (exported / "run").iterdir()}
    base = json.loads((dialled_run / "settings.json").read_text())["settings"]["model"]
    for file in filter(Path.is_file, exported.rglob("*")):
        content = file.read_bytes()
        assert base.encode() not in content, file
        assert str(dialled_run.parent).encode() not in content, file


def test_the_hub_can_read_what_it_is(exported: Path) -> None:
    """The front matter names gradio with its version here and the file to start; the requirements are those of the kit,
    without gradio."""
    head = SpaceCard.load(exported / "README.md").data
    assert (head.sdk, head.sdk_version, head.app_file) == ("gradio", gradio.__version__, "app.py")
    lines = (exported / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch") for line in lines)
    assert len(lines) == sum("extra ==" not in line for line in requires("dcr-lite") or ())
    assert not any(line.startswith(("gradio", "pytest", "unsloth")) for line in lines)


def test_a_base_on_the_hub_is_named(dialled_run: Path, tmp_path: Path) -> None:
    """A base that others can get is fetched there by its name, and not copied."""
    run = open_finished(dialled_run)
    folder, _ = export_space(FinishedRun(run.path, run.report | {"model": SMOLLM2}), tmp_path / "space")
    assert SpaceCard.load(folder / "README.md").data.models == [SMOLLM2]
    assert not (folder / "model").exists()
    assert json.loads((folder / "run" / "settings.json").read_text())["settings"]["model"] == SMOLLM2
    assert json.loads((folder / "run/adapter/adapter_config.json").read_text())["base_model_name_or_path"] == SMOLLM2


def test_the_command_says_what_is_next(
    dialled_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``--to space`` and ``--to vllm`` print where it is, and the command that goes on; a second export is an error,
    and so is one without gradio."""
    export: Callable[..., int] = lambda *argv: run_command(monkeypatch, "export", dialled_run, *argv)  # noqa: E731
    assert export("--to", "vllm") == 0
    assert "vllm serve" in capsys.readouterr().out
    assert export("--to", "space", "--out", tmp_path / "mine") == 0
    assert f"written: {tmp_path / 'mine'}\nnext:    hf upload" in capsys.readouterr().out
    assert export("--to", "space", "--out", tmp_path / "mine") == 1
    assert "exists already" in capsys.readouterr().err

    def missing(name: str) -> str:
        raise space.PackageNotFoundError(name)

    monkeypatch.setattr(space, "version", missing)
    with pytest.raises(UserError, match=r"pip install 'dcr-lite\[demo\]'"):
        export_space(open_finished(dialled_run), tmp_path / "none")
