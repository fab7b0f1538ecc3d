"""Ctrl-C, SIGTERM and SIGHUP end a command alike, and what must not be cut in half is finished first. What a command
prints, or whether anybody still reads it, does not end it in a traceback."""

import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SIGHUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if SIGHUP is None else [SIGHUP]))
CLOSED_PIPE = 141  # the exit status of a tool that SIGPIPE ends: 128 and its number


def sigterm_as_ctrl_c() -> None:
    """From here on SIGTERM, which batch systems and shutdowns send, raises KeyboardInterrupt as Ctrl-C does; so does
    SIGHUP, of a terminal that is closed, unless it is ignored (nohup)."""
    if _in_main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        if SIGHUP is not None and signal.getsignal(SIGHUP) == signal.SIG_DFL:
            signal.signal(SIGHUP, signal.default_int_handler)


@contextmanager
def printing() -> Iterator[None]:
    """Within the block characters that the encoding of the output lacks become question marks, and a closed pipe ends
    the command without a word, with CLOSED_PIPE as its exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    try:
        try:
            yield
        finally:
            if sys.stdout:  # there is none where it was closed from the start
                sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as end:  # rich makes an exit of the one
        if not any(isinstance(error, BrokenPipeError) for error in (end, end.__context__)):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed when Python ends
        raise SystemExit(CLOSED_PIPE) from None


@contextmanager
def held() -> Iterator[None]:
    """Within the block Ctrl-C, SIGTERM and SIGHUP wait for its end, where they raise KeyboardInterrupt; a second one
    does not wait. Signals that end the process in another way, or not at all, stay as they are."""
    waiting: list[int] = []

    def wait(number: int, _frame: Any) -> None:
        if waiting:
            raise KeyboardInterrupt
        waiting.append(number)

    ours = [number for number in SIGNALS if callable(signal.getsignal(number))] if _in_main_thread() else []
    before = {number: signal.signal(number, wait) for number in ours}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if waiting:
        raise KeyboardInterrupt


def _in_main_thread() -> bool:
    """Python lets no other thread set what a signal does."""
    return threading.current_thread() is threading.main_thread()
