"""Claims about several processes: the same gradients as of one, the same run, one of them writing."""

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import two_processes
from accelerate.commands import accelerate_cli
from small_runs import RECIPE, Outcome, contents, flags, run_here
from tiny_models import assert_close
from two_processes import CASES
from warm import Warm, run_script, script

from dcr_lite.model import distributed


def free_port() -> str:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return str(listening.getsockname()[1])


def start(function: Callable[[], Any], processes: int, folder: Path) -> list[Outcome]:
    """Start one function in so many processes with torchrun's environment, and wait for them."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_PORT": free_port(), "MASTER_ADDR": "127.0.0.1"}
    started = [
        Warm(function, folder, f"rank{rank}", **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(processes)
    ]
    return [Outcome(*process.wait(240)) for process in started]


@pytest.fixture(scope="module")
def computed(rows: Path, tiny_folder: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """What one process computed, and what two did: {number of processes: [{case: result} of each process]}."""
    found = {}
    for processes in (1, 2):
        out = tmp_path_factory.mktemp("computed")
        for done in start(partial(two_processes.main, tiny_folder("llama"), rows, out), processes, out):
            assert done.code == 0, done.err[-3000:]
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


LAUNCHED = """
import sys
from pathlib import Path
from dcr_lite.model import distributed
from dcr_lite.run.launch import _several

assert _several()
with distributed.joined("cpu"):
    said = distributed.gathered([distributed.rank()]), distributed.total(distributed.rank() + 1.0), distributed.world()
    Path(sys.argv[1], f"{distributed.rank()}.txt").write_text(repr(said))
"""


def test_accelerate_launches_what_is_joined(tmp_path: Path) -> None:
    """`accelerate launch` with two processes gives both what they find each other by: a gathered list and a sum have
    the parts of both."""
    file = tmp_path / "launched.py"
    file.write_text(LAUNCHED)
    argv = ["launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    argv += ["--dynamo_backend", "no", "--main_process_port", free_port(), str(file), str(tmp_path)]
    cli = Path(accelerate_cli.__file__)
    paths = os.pathsep.join(filter(None, sys.path))
    done = Outcome(*run_script(cli, argv, tmp_path, PYTHONPATH=paths, OMP_NUM_THREADS="1"))
    assert done.code == 0, done.err[-3000:]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == ["([0, 1], 3.0, 2)"] * 2


def test_a_whole_run_in_two_processes(rows: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Two processes make the run that one process makes: the same rates and files, each line of metrics once, and
    output once."""
    few = {"contrastive_steps": 8, "sft_epochs": 1, "sft_learning_rate": 1e-2}
    folders = one, two = tmp_path / "one", tmp_path / "two"
    assert run_here(flags(tiny_folder("llama"), rows, one, **few)).code == 0
    both = start(partial(script, RECIPE, *flags(tiny_folder("llama"), rows, two, **few)), 2, tmp_path)
    assert [process.code for process in both] == [0, 0], both[0].err[-3000:]
    alone, report = (json.loads((run / "report.json").read_text()) for run in folders)
    assert (report["processes"], alone["processes"]) == (2, 1)
    assert report["methods"]["base"] == alone["methods"]["base"]
    for method in ("dcr", "safety_sft"):
        for a, b in zip(report["methods"][method]["sets"], alone["methods"][method]["sets"], strict=True):
            assert (a["name"], a["label"], a["n"]) == (b["name"], b["label"], b["n"])
            assert abs(a["refusal_rate"] - b["refusal_rate"]) <= 0.25  # one answer of four, where sums round otherwise
    assert contents(two).keys() == contents(one).keys()
    expected, metrics = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in folders
    )
    assert [(row["stage"], row["step"]) for row in metrics] == [(row["stage"], row["step"]) for row in expected]
    first = next(row for row in metrics if "loss" in row)
    assert first["loss"] == pytest.approx(next(row for row in expected if "loss" in row)["loss"], rel=1e-4)
    assert [process.out.count("estimated time") for process in both] == [1, 0]
    assert both[1].out + both[1].err == ""


def test_an_error_is_printed_once(rows: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """An error that a user can fix ends all processes with exit status 1, and its message is printed once."""
    argv = flags(tiny_folder("llama"), rows, tmp_path / "run", pairs=tmp_path / "none.jsonl")
    done = start(partial(script, RECIPE, *argv), 2, tmp_path)
    assert [process.code for process in done] == [1, 1]
    printed = "".join(process.out + process.err for process in done)
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
