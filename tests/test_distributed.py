"""Claims about several processes: the same gradients as of one, the same run, one of them writing."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import RECIPE, contents, flags
from tiny_models import assert_close
from two_processes import CASES

from dcr_lite.model import distributed

TESTS = Path(__file__).parent / "helpers"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def start(command: list[str], processes: int) -> list[subprocess.CompletedProcess[str]]:
    """Start one command in so many processes with torchrun's environment, and wait for them."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1"}

    def run(rank: int) -> subprocess.CompletedProcess[str]:
        environment = ENVIRONMENT | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=240)

    with ThreadPoolExecutor(processes) as pool:
        return list(pool.map(run, range(processes)))


@pytest.fixture(scope="module")
def computed(rows: Path, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What one process computed, and what two did: {number of processes: [{case: result} of each process]}."""
    found = {}
    for processes in (1, 2):
        out = tmp_path_factory.mktemp("computed")
        command = [sys.executable, str(TESTS / "two_processes.py"), str(tiny_folder("llama")), str(rows), str(out)]
        for done in start(command, processes):
            assert done.returncode == 0, done.stderr[-3000:]
        found[processes] = [torch.load(out / f"{rank}.pt") for rank in range(processes)]
    return found


@pytest.mark.parametrize("what", CASES)
def test_two_processes_have_the_gradients_of_one(what: str, computed: dict[int, Any]) -> None:
    """Every gradient of every step that two processes take, half of each batch in each, is that of one process with
    the whole batch, in both stages, with uneven halves, with a batch of one row, and where a half goes through in
    several parts; so are the losses, and both processes end with the same weights, bit for bit."""
    one, first, second = computed[1][0][what], computed[2][0][what], computed[2][1][what]
    assert one["gradients"].abs().max() > 1e-3
    # Relative to each step's own size: whatever is missing or counted twice is a matter of tens of per cent.
    for a, b in zip(first["gradients"], one["gradients"], strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()
    assert_close(torch.tensor(first["losses"]), torch.tensor(one["losses"]), 1e-5)
    assert_close(list(first["weights"].values()), list(one["weights"].values()), 1e-3)
    assert torch.equal(first["gradients"], second["gradients"])
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])
    assert first["observed"] == second["observed"]


def test_a_whole_run_in_two_processes(
    rows: Path, demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """`accelerate launch` with two processes makes the run that one process makes: the same rates and files, each line
    of metrics once, and output once."""
    argv = flags(tiny_folder("llama"), rows, tmp_path / "run", sft_learning_rate=1e-2)
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    command = [*launcher, "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", free_port(), str(RECIPE), *argv]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    report, alone = (json.loads((run / "report.json").read_text()) for run in (tmp_path / "run", demo_run))
    assert (report["processes"], alone["processes"]) == (2, 1)
    assert report["methods"]["base"] == alone["methods"]["base"]
    for method in ("dcr", "safety_sft"):
        for a, b in zip(report["methods"][method]["sets"], alone["methods"][method]["sets"], strict=True):
            assert (a["name"], a["label"], a["n"]) == (b["name"], b["label"], b["n"])
            assert abs(a["refusal_rate"] - b["refusal_rate"]) <= 0.25  # one answer of four, where sums round otherwise
    assert contents(tmp_path / "run").keys() == contents(demo_run).keys()
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in (demo_run / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in metrics] == [(row["stage"], row["step"]) for row in expected]
    first = next(row for row in metrics if "loss" in row)
    assert first["loss"] == pytest.approx(next(row for row in expected if "loss" in row)["loss"], rel=1e-4)
    assert done.stdout.count("estimated time") == 1


def test_an_error_is_printed_once(rows: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """An error that a user can fix ends all processes with exit status 1, and its message is printed once."""
    argv = flags(tiny_folder("llama"), rows, tmp_path / "run", pairs=tmp_path / "none.jsonl")
    done = start([sys.executable, str(RECIPE), *argv], 2)
    assert [process.returncode for process in done] == [1, 1]
    printed = "".join(process.stdout + process.stderr for process in done)
    assert printed.count("none.jsonl: no such file") == 1
    assert "Traceback" not in printed
    assert not (tmp_path / "run").exists()


def test_one_process_alone_changes_nothing() -> None:
    """Without a launcher every function gives back what it was given, the tensor with its graph."""
    states = torch.randn(3, 2, requires_grad=True)
    assert distributed.gathered_rows(states) is states
    assert distributed.share([1, 2, 3]) == distributed.gathered([1, 2, 3]) == [1, 2, 3]
    assert (distributed.world(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert distributed.on_main(lambda: 7) == 7
    assert distributed.total(0.5) == 0.5


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_shares_are_a_partition(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shares of all processes, one behind the other, are the batch; they differ by one item at most."""
    monkeypatch.setattr(distributed, "world", lambda: processes)
    for size in range(8):
        parts: list[list[Any]] = []
        for rank in range(processes):
            monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(distributed.share(range(size)))
        assert [item for part in parts for item in part] == list(range(size))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("device", "gpus", "backend"), [("cpu", 2, "gloo"), ("auto", 0, "gloo"), ("auto", 2, "cpu:gloo,cuda:nccl")]
)
def test_a_run_on_the_cpu_talks_without_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, gpus: int, backend: str
) -> None:
    """With --device cpu on a machine with GPUs, processes exchange tensors of the CPU: NCCL, torch's choice there, has
    none of them. Between GPUs both are at hand, since what is gathered besides tensors lies on the CPU."""
    asked: list[str] = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", lambda own: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, timeout: asked.append(name))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with distributed.joined(device):
        pass
    assert asked == [backend]
