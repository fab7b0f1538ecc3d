"""Ctrl-C and SIGTERM end a command alike, within seconds, and with what was done saved."""

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import run_and_stop
from small_runs import flags, run_here

from dcr_lite import cli
from dcr_lite.interrupts import held, sigterm_as_ctrl_c
from dcr_lite.run.launch import launch
from dcr_lite.settings import Settings


@pytest.fixture(autouse=True)
def _handlers() -> object:
    """The signals as Python sets them, whatever started the tests."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    sigterm_as_ctrl_c()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_waits_for_the_end_of_the_block(number: signal.Signals) -> None:
    """The block is finished, and then KeyboardInterrupt is raised."""
    done: list[str] = []

    def block() -> None:
        with held():
            os.kill(os.getpid(), number)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["all of it"]
    assert signal.getsignal(number) is signal.default_int_handler


def test_a_second_signal_does_not_wait() -> None:
    """Who presses Ctrl-C twice means it."""
    done: list[str] = []

    def block() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            done.append("half of it")
            os.kill(os.getpid(), signal.SIGINT)
            done.append("all of it")

    with pytest.raises(KeyboardInterrupt):
        block()
    assert done == ["half of it"]


def test_an_error_in_the_block_is_not_hidden() -> None:
    """An error goes before the signal that waited."""

    def block() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()


def test_ignored_signals_stay_ignored() -> None:
    """A run in the background of a shell, which ignores Ctrl-C, is not ended by it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with held():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    """nohup goes on without its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    sigterm_as_ctrl_c()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_sigterm_saves_the_step_it_interrupts(
    tiny: Path, rows: Path, tmp_path: Path, logged: list[tuple[str, int]]
) -> None:
    """SIGTERM in the middle of a step, long before a checkpoint is due: the step is finished and saved, the command to
    go on is named, and the run goes on with the next step."""
    run, few = tmp_path / "run", {"contrastive_steps": 9, "stage2": "no", "compare_with": []}
    seen = run_and_stop(("log", "stage1", 7), signal.SIGTERM, flags(tiny, rows, run, **few), tmp_path / "mark")
    assert seen.code == 130
    assert "Continue with:" in seen.err
    assert "Traceback" not in seen.err
    assert run_here(flags(tiny, rows, run, resume=True, **few)).code == 0
    assert logged[0] == ("stage1", 8)


@pytest.mark.parametrize("words", [["train"], ["--help"], ["--version"]])
def test_a_closed_pipe_ends_a_command_quietly(words: list[str]) -> None:
    """Whoever reads the output has gone, as head does: no word, and the status of a tool that SIGPIPE ends. tyro and
    rich, which write the help, end so too."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "dcr_lite.cli", *words]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False, timeout=120)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["dcr-lite", "train"], ["a_recipe.py"]])
def test_what_an_output_cannot_write_is_replaced(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Work that is done does not end in an error for an arrow in a table, by either way into the kit."""
    out = io.TextIOWrapper(io.BytesIO(), "cp1252")

    def work(_: Any) -> None:
        print("J \N{UPWARDS ARROW} 0.5")

    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setitem(cli.COMMANDS, "train", work)
    if words[1:]:
        cli.main()
    else:
        launch(work, Settings(model="m", run=Path("r")), [], about="A test.")
    assert out.buffer.getvalue().split() == [b"J", b"?", b"0.5"]  # type: ignore[attr-defined]


def test_sigterm_ends_a_command_that_computes_nothing() -> None:
    """The command line turns it into Ctrl-C before anything else, so that no command ends with a half file."""
    code = "import os, signal; from dcr_lite import cli; cli.judge = lambda *a: None\n" + (
        "cli.COMMANDS['judge'] = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "import sys; sys.argv = ['dcr-lite', 'judge']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr
