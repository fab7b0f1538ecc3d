"""Runs of SmolLM2's recipe on a tiny model as a user makes them: undisturbed, or stopped at a given moment."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_runs import RECIPE, Outcome, contents, flags, save_rows, small_values
from torch import Tensor
from warm import Moment, run_script, stop_script

from dcr_lite.run import discernment
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def run_and_stop(moment: Moment, how: signal.Signals, argv: list[str], mark: Path) -> Outcome:
    """Start the recipe in a process of its own, wait until it has come to ``moment``, and send it a signal."""
    seen = Outcome(*stop_script(moment, how, RECIPE, argv, mark))
    assert mark.exists(), f"the run never came to {moment}: {seen.out[-500:]}{seen.err[-2000:]}"
    return seen


def small_settings(model: Path | str, rows: Path, run: Path, **changes: Any) -> Settings:
    """The settings that ``flags`` gives on the command line, with fewer steps, for tests of parts of a run."""
    fewer = {"contrastive_steps": 4, "sft_epochs": 1, "margin": 0.25, "scale": 16.0}
    return Settings(**{"model": str(model), "run": run} | small_values(rows) | fewer | changes)


@dataclass(frozen=True)
class Finished:
    """An undisturbed run with its pictures, the recipe as a script in a process of its own."""

    path: Path
    seen: Outcome

    @property
    def report(self) -> dict[str, Any]:
        return json.loads((self.path / "report.json").read_text(encoding="utf-8"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]


@dataclass(frozen=True)
class Stopped:
    """A run that Ctrl-C stopped in its third stage, in the middle of its third step."""

    path: Path
    seen: Outcome

    def copy(self, folder: Path) -> Path:
        return Path(shutil.copytree(self.path, folder / "run"))


@pytest.fixture(scope="session")
def tiny(tiny_folder: Callable[..., Path]) -> Path:
    return tiny_folder("llama")


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="session")
def finished(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("finished") / "run"
    seen = Outcome(*run_script(RECIPE, flags(tiny, rows, path), path.parent, PICTURES="drawn"))
    assert seen.code == 0, seen.err[-3000:]
    return Finished(path, seen)


@pytest.fixture(scope="session")
def stopped(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    folder = tmp_path_factory.mktemp("stopped")
    argv = flags(tiny, rows, folder / "a run")
    return Stopped(folder / "a run", run_and_stop(("log", "safety_sft", 3), signal.SIGINT, argv, folder / "mark"))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(stage, step) of every training step that runs in this process take."""
    steps: list[tuple[str, int]] = []
    log = RunFolder.log

    def log_here(run: RunFolder, row: dict[str, Any]) -> None:
        if "loss" in row:
            steps.append((row["stage"], row["step"]))
        log(run, row)

    monkeypatch.setattr(RunFolder, "log", log_here)
    return steps


def adapter(run: Path, part: str = "adapter") -> dict[str, Tensor]:
    return load_file(run / part / "adapter_model.safetensors")


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def assert_same_findings(run: Path, undisturbed: Finished) -> None:
    """Adapters, answers and metrics are bit for bit those of the undisturbed run."""
    found, expected = contents(run), contents(undisturbed.path)
    exact = {name for name in expected if name.endswith(("model.safetensors", ".jsonl"))}
    assert {"metrics.jsonl", "answers/dcr.jsonl", "adapter/adapter_model.safetensors"} <= exact
    assert [name for name in sorted(exact) if found.get(name) != expected[name]] == []
    readings = [load_file(path / "adapter" / discernment.FILE) for path in (run, undisturbed.path)]
    assert same(*readings)  # the file's own bytes hold its metadata in any order
    assert found.keys() == expected.keys()  # nothing half-written is left


def layer_of(key: str) -> int:
    found = re.search(r"\.layers\.(\d+)\.", key)
    assert found is not None
    return int(found[1])
