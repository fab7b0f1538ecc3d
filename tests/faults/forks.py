"""The command dcr-lite in forked processes: what imports take is spent once, in the process that all are forked from.

Each trial is the real command with the real files, on a tiny model, in a process of its own that can be killed, or
limited, without harm to others.
"""

import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
STARTED = "(the command begins)\n"
PATIENCE = 120  # seconds after which a trial hangs: an undisturbed one takes a few
HUNG = 124  # the status of one that was killed for it, as that of timeout(1)
CHECKPOINT_SECONDS = 0.05  # in place of minutes, so that a trial of a second has many


@dataclass(frozen=True)
class Ended:
    """How a trial ended. code: its exit status, negative for the signal that ended it; HUNG where it did and was
    killed for that. said: what it printed."""

    code: int
    said: str
    seconds: float

    @property
    def in_a_sentence(self) -> bool:
        """Whether it ended with an error message for a user, and without a traceback."""
        return self.code == 1 and "error: " in self.said and "Traceback" not in self.said


class Trial:
    """dcr-lite with ``argv`` in the folder ``cwd``, started now. before: called in the new process before the command,
    to bring in a fault; it has to be picklable."""

    def __init__(self, argv: Sequence[object], cwd: Path, before: Sequence[Callable[[], Any]] = ()):
        start_server()
        reader, writer = CONTEXT.Pipe(duplex=False)
        words = [str(word) for word in argv]
        self.process = CONTEXT.Process(target=_command, args=(words, str(cwd), before, writer))
        self.process.start()
        writer.close()
        self.output = bytearray()
        self.has_started = threading.Event()
        self.listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self.listener.start()
        self.has_started.wait(PATIENCE)
        self.started = time.monotonic()

    def _listen(self, reader: Any) -> None:
        while part := os.read(reader.fileno(), 65536):
            self.output += part
            self.has_started.set()
        self.has_started.set()  # or it has ended before
        reader.close()

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self.output.decode(errors="replace").removeprefix(STARTED)

    def signal(self, which: signal.Signals) -> None:
        """Send a signal, where the process is still there."""
        if self.process.pid is not None and self.process.exitcode is None:
            with suppress(ProcessLookupError):  # it ended this moment
                os.kill(self.process.pid, which)

    def wait(self, seconds: float = PATIENCE) -> Ended:
        """Wait for the end."""
        self.process.join(seconds)
        hung = self.process.exitcode is None
        if hung:
            self.process.kill()
            self.process.join()
        spent = time.monotonic() - self.started
        self.listener.join(PATIENCE)
        code = HUNG if hung or self.process.exitcode is None else self.process.exitcode
        self.process.close()
        return Ended(code, self.said, spent)


def run(argv: Sequence[object], cwd: Path, *before: Callable[[], Any]) -> Ended:
    """The command to its end."""
    return Trial(argv, cwd, before).wait()


def start_server() -> None:
    """Start the process that trials are forked from, once."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        CONTEXT.set_forkserver_preload(["tests.faults.preloaded"])
        multiprocessing.forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _command(argv: list[str], cwd: str, before: Sequence[Callable[[], Any]], said: Any) -> None:
    """In the new process."""
    import tests.faults.preloaded  # noqa: F401  (its columns and threads, where another's server forked this)

    os.chdir(cwd)
    os.dup2(said.fileno(), 1)
    os.dup2(said.fileno(), 2)
    said.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["dcr-lite", *argv]
    _make_small()
    for fault in before:
        fault()
    from dcr_lite import cli

    os.write(1, STARTED.encode())
    try:
        cli.main()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # what is left to be done is the trial's, not the command's
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _make_small() -> None:
    """What makes a trial on a tiny model a matter of a second, and its checkpoints many."""
    from drawing import draw_nothing
    from small_comparison import make_small

    from dcr_lite.evaluate import command as evaluate
    from dcr_lite.measure import answers, metrics, openings, trade_off
    from dcr_lite.method import loop
    from dcr_lite.model import loading
    from dcr_lite.run import plan

    metrics.RESAMPLES = trade_off.RESAMPLES = 10  # of bootstraps, whose widths nothing here looks at
    plan.matrix_rate = lambda device, precision: 1e10  # measuring it takes a second
    make_small(setattr)
    draw_nothing()
    answers.is_refusal = lambda text: sum(map(ord, text)) % 3 != 0  # of babble, which has no words for it
    evaluate.CHUNK = 4
    loading.REFUSING_OPENINGS = openings.REFUSING_OPENINGS = tuple("ISTWabcdefg")  # whole ones are hardly likely here
    loop.CHECKPOINT_SECONDS = CHECKPOINT_SECONDS
