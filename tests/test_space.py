"""An exported Space is the demo of the run, complete in itself, on the Hub and anywhere else."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import requires
from pathlib import Path

import pytest
from command_line import run_command
from huggingface_hub import SpaceCard

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio
from gradio_client import Client

import dcr_lite
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.demo import scoring
from dcr_lite.errors import UserError
from dcr_lite.export import space
from dcr_lite.export.command import FinishedRun, open_finished
from dcr_lite.export.space import export_space
from dcr_lite.run.caution import caution_of, set_caution

NOT_INSTALLED = Path(__file__).parent / "helpers" / "not_installed.py"
PROMPT = "Can I burn a man with a clock in 9 days?"


@pytest.fixture(scope="module")
def exported(dialled_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Space of a run with a dial, at another place than it was written to."""
    written, words = export_space(open_finished(dialled_run), tmp_path_factory.mktemp("written") / "space")
    assert f"hf upload me/{open_finished(dialled_run).served_name} {written} . --repo-type space --private" in words
    assert "discernment.safetensors holds the texts" in words
    return Path(shutil.move(written, tmp_path_factory.mktemp("elsewhere") / "space"))


def test_the_app_shows_the_run(exported: Path, dialled_run: Path, tmp_path: Path) -> None:
    """app.py, started from any folder with the package that lies beside it and is not installed, serves the models and
    the dial of the run on the Space's port to all: they score a prompt as in the run's own demo, under its title, which
    names the model, and nobody can mark or mend."""
    texts = exported / "dcr_lite" / "demo" / "texts.py"
    before = texts.read_text(encoding="utf-8")
    texts.write_text(before.replace('HEADING = "', 'HEADING = "Of the Space: '), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "log"
    given = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""}
    given |= {"PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}  # what it says at once, and no more files
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, NOT_INSTALLED, exported / "app.py"],
            cwd=tmp_path,
            env=os.environ | given,
            stdout=out,
            stderr=out,
        )
    try:
        give_up = time.monotonic() + 240
        while f":{port}" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < give_up
            time.sleep(0.2)
        client = Client(f"http://127.0.0.1:{port}", verbose=False)
        expected = scoring.open_run(dialled_run)
        assert client.config["title"] == f"{expected.title}: dcr-lite"
        assert any("Of the Space: " in str(one["props"].get("value")) for one in client.config["components"])
        assert f"http://0.0.0.0:{port}" in log.read_text()
        ids = {one["props"].get("elem_id") for one in client.config["components"]}
        assert ids & {"prompt", "marks", "mend"} == {"prompt"}
        for name in expected.names:
            found = client.predict(PROMPT, name, api_name="/score")
            score = expected.score(name, PROMPT)
            assert (found["answer"], found["strength"]) == (score.answer, 0.5 if name == "dcr" else None)
            assert found["refusal_log_odds"] == pytest.approx(score.refusal_log_odds, abs=1e-3)
    finally:
        process.kill()
        process.wait()
        texts.write_text(before, encoding="utf-8")


def test_the_port_is_that_of_a_space(exported: Path) -> None:
    """Unless Gradio's own variable names another one, as the test above has it."""
    assert 'os.environ.get("GRADIO_SERVER_PORT", "7860")' in (exported / "app.py").read_text(encoding="utf-8")


def test_the_folder_holds_all_it_needs_and_no_path(exported: Path, dialled_run: Path) -> None:
    """The package is there file by file, the base model too, since nobody else has it, but no answers and no path of
    this machine."""
    package = Path(dcr_lite.__file__).parent
    kept = {p.relative_to(package) for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.relative_to(exported / "dcr_lite") for p in (exported / "dcr_lite").rglob("*") if p.is_file()} == kept
    copied = exported / "run" / dialled_run.name
    assert not {"answers", "metrics.jsonl", "report.json"} & {p.name for p in copied.iterdir()}
    base = json.loads((dialled_run / "settings.json").read_text())["settings"]["model"]
    assert (exported / "model" / Path(base).name / "model.safetensors").exists()
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
    """A base that others can get is fetched there by its name, and not copied; what speaks against the run's model goes
    with it."""
    run = open_finished(Path(shutil.copytree(dialled_run, tmp_path / "run")))
    set_caution(run.path, "Safety fell.")
    folder, _ = export_space(FinishedRun(run.path, run.report | {"model": SMOLLM2}), tmp_path / "space")
    assert SpaceCard.load(folder / "README.md").data.models == [SMOLLM2]
    assert not (folder / "model").exists()
    copied = folder / "run" / run.path.name
    assert caution_of(copied) == "Safety fell."
    assert json.loads((copied / "settings.json").read_text())["settings"]["model"] == SMOLLM2
    assert json.loads((copied / "adapter/adapter_config.json").read_text())["base_model_name_or_path"] == SMOLLM2


def test_a_base_in_the_cache_of_the_hub_is_named(dialled_run: Path, tmp_path: Path) -> None:
    """It has its name on the Hub, and neither its weights nor the digest of its folder are in the Space."""
    cached = tmp_path / "models--Owner--Some-1B" / "snapshots" / "0123456789abcdef0123"
    run = open_finished(dialled_run)
    cached.mkdir(parents=True)
    folder, _ = export_space(FinishedRun(run.path, run.report | {"model": str(cached)}), tmp_path / "space")
    head = SpaceCard.load(folder / "README.md").data
    assert (head.models, head.title) == (["Owner/Some-1B"], "Some-1B-DCR")
    assert not (folder / "model").exists()
    settings = json.loads((folder / "run" / run.path.name / "settings.json").read_text())["settings"]
    assert settings["model"] == "Owner/Some-1B"


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
