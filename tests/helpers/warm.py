"""Scripts and functions in processes of their own, forked from one that has imported torch and transformers already:
what imports take, eight seconds a process, is spent once. They can be killed, and have their own standard streams."""

import os
import runpy
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tests.faults.forks import CONTEXT, start_server

Moment = tuple[str, str, int]


class Warm:
    """``function`` in a new process that has begun now, in the folder of this one. It has to be picklable."""

    def __init__(self, function: Callable[[], Any], folder: Path, name: str = "process", **environment: str):
        start_server()
        self.files = [folder / f"{name}.{stream}" for stream in ("out", "err")]
        self.process = CONTEXT.Process(target=_call, args=(function, os.getcwd(), environment, self.files))
        self.process.start()

    def send_signal(self, which: signal.Signals) -> None:
        """Send a signal, where the process is still there."""
        if self.process.pid is not None and self.process.exitcode is None:
            with suppress(ProcessLookupError):  # it ended this moment
                os.kill(self.process.pid, which)

    @property
    def ended(self) -> bool:
        return self.process.exitcode is not None

    def wait(self, seconds: float = 300) -> tuple[int, str, str]:
        """Its exit status, negative for the signal that ended it, and what it printed on both streams."""
        self.process.join(seconds)
        hung = self.process.exitcode is None
        if hung:
            self.process.kill()
            self.process.join()
        assert not hung, f"still there after {seconds} s"
        assert self.process.exitcode is not None
        out, err = (file.read_text(encoding="utf-8", errors="replace") for file in self.files)
        return self.process.exitcode, out, err


class WarmPopen:
    """In the place of subprocess.Popen: the command is a function and the words that it is given."""

    def __init__(self, command: list[Any], stdout: Any, **options: Any):
        function, *words = command
        log = Path(stdout.name)
        self.warm = Warm(partial(_logged, log, function, *words), log.parent, log.name)

    def poll(self) -> int | None:
        """Its exit status; None before its end."""
        return self.warm.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.poll()


def _logged(log: Path, function: Callable[..., Any], *words: str) -> None:
    """In the new process: what is printed goes to the log."""
    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    function(*words)


def script(path: Path, *argv: str) -> None:
    """What ``python path argv`` runs."""
    sys.argv = [str(path), *argv]
    runpy.run_path(str(path), run_name="__main__")


def script_until(moment: Moment, mark: Path, path: Path, *argv: str) -> None:
    """The same of a recipe up to a moment, at which it leaves a mark and waits to be stopped.

    ("log", STAGE, STEP): after this step is logged, with half of the next line written, as a crash can leave it.
    ("save", STAGE, N): in the middle of writing the stage's N-th checkpoint.
    """
    import torch

    from dcr_lite.method import loop
    from dcr_lite.run.run_folder import RunFolder

    (what, stage, number), log, save, saved = moment, RunFolder.log, torch.save, []

    def wait() -> None:
        reader, writer = os.pipe()  # pause() would miss a signal that comes before it
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)
        mark.touch()
        os.read(reader, 1)

    def log_and_wait(run: RunFolder, row: dict[str, Any]) -> None:
        log(run, row)
        loop.CHECKPOINT_SECONDS = 0.0 if row["step"] % 4 == 0 else 1e9  # a checkpoint after every four steps
        if what == "log" and row["stage"] == stage and row["step"] == number and "loss" in row:
            with run.metrics.open("a") as file:
                file.write('{"stage": "sta')
            wait()

    def save_and_wait(value: Any, path: Path) -> None:
        save(value, path)
        if what == "save" and path.name.startswith(stage):
            saved.append(stage)
            if len(saved) == number:
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
                wait()

    RunFolder.log, torch.save = log_and_wait, save_and_wait  # type: ignore[method-assign]
    script(path, *argv)


def run_script(path: Path, argv: list[str], folder: Path, **environment: str) -> tuple[int, str, str]:
    """The script to its end; ``folder`` is for what it prints."""
    return Warm(partial(script, path, *argv), folder, **environment).wait()


def stop_script(
    moment: Moment, how: signal.Signals, path: Path, argv: list[str], mark: Path, patience: float = 600
) -> tuple[int, str, str]:
    """The recipe until it has come to ``moment`` and is sent a signal."""
    process = Warm(partial(script_until, moment, mark, path, *argv), mark.parent, mark.name)
    deadline = time.monotonic() + patience
    while not mark.exists() and not process.ended and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    return process.wait()


def _call(function: Callable[[], Any], folder: str, environment: dict[str, str], files: list[Path]) -> None:
    """In the new process."""
    import tests.faults.preloaded  # noqa: F401  (its columns and threads, where another's server forked this)

    os.chdir(folder)
    os.environ.update(environment)
    for number, file in enumerate(files, start=1):
        opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in a shell's background
    _make_small()
    function()


def _make_small() -> None:
    """What makes runs in this process as quick as those in the tests' own. With PICTURES=drawn pictures are drawn."""
    from drawing import draw_nothing
    from small_runs import CURVE_RESAMPLES, LETTERS, OBSERVATIONS, RESAMPLES

    from dcr_lite.measure import metrics, openings, trade_off
    from dcr_lite.method import safety_sft
    from dcr_lite.run import plan

    openings.REFUSING_OPENINGS, metrics.RESAMPLES, trade_off.RESAMPLES = LETTERS, RESAMPLES, CURVE_RESAMPLES
    safety_sft.OBSERVATIONS = OBSERVATIONS
    plan.matrix_rate = lambda device, precision: 1e10  # measuring it takes a second
    if os.environ.get("PICTURES") != "drawn":
        draw_nothing()
