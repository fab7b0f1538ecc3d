"""Faults, brought into a trial's process before its command begins: plain functions, for functools.partial."""

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
OPERATIONS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


def note_steps() -> None:
    """Write every training step that is taken, and every checkpoint that is saved, to steps.jsonl in the folder."""
    from dcr_lite.method import loop
    from dcr_lite.run.run_folder import RunFolder

    log, save = RunFolder.log, loop.save_checkpoint

    def note(*what: object) -> None:
        with open("steps.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(what) + "\n")

    def log_and_note(run: RunFolder, row: dict[str, Any]) -> None:
        log(run, row)
        if "loss" in row:
            note("taken", row["stage"], row["step"])

    def save_and_note(path: Path, *args: Any, **kwargs: Any) -> None:
        save(path, *args, **kwargs)
        note("saved", path.stem, next(a for a in (*args, *kwargs.values()) if isinstance(a, loop.Progress)).step)

    RunFolder.log, loop.save_checkpoint = log_and_note, save_and_note


def count_operations(file: str) -> None:
    """Keep the number of file operations so far in ``file``."""
    done = 0
    fd = os.open(file, os.O_WRONLY | os.O_CREAT)

    def count() -> None:
        nonlocal done
        done += 1
        os.pwrite(fd, str(done).encode(), 0)

    _at_operations(count)


def kill_at_operation(number: int) -> None:
    """SIGKILL before the file operation of this number: to open a file to write, to rename, remove or make one."""

    def kill() -> None:
        nonlocal number
        number -= 1
        if not number:
            os.kill(os.getpid(), signal.SIGKILL)

    _at_operations(kill)


def kill_in_write(number: int, size: int) -> None:
    """From the file operation of this number on, the kernel kills the process in the first write that takes a file
    beyond ``size`` bytes: what is written up to there stays, in whatever language the writer is."""

    def limit() -> None:
        nonlocal number
        number -= 1
        if not number:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    _at_operations(limit)


def _at_operations(call: Any) -> None:
    """Call ``call`` before each operation on files in the folder of the trial."""
    folder = os.getcwd() + os.sep
    busy = False

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal busy
        if busy or not (event in OPERATIONS or (event == "open" and isinstance(args[2], int) and args[2] & WRITING)):
            return
        path = args[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return
        busy = True
        try:
            if os.path.abspath(os.fsdecode(path)).startswith(folder) and not os.fsdecode(path).endswith("steps.jsonl"):
                call()
        finally:
            busy = False

    sys.addaudithook(hook)


def refuse_writes(number: int, size: int) -> None:
    """From the file operation of this number on, no file can be made larger than ``size`` bytes: whoever writes, in
    whatever language, is refused by the kernel as on a full disk."""

    def limit() -> None:
        nonlocal number
        number -= 1
        if not number:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    _at_operations(limit)


def obey_permissions() -> None:
    """Permissions bind this process, though it may be root's: its capabilities are given up."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2): version 3, this process
    if libc.capset(header, (ctypes.c_uint32 * 6)()):
        raise OSError(ctypes.get_errno(), "capset")


def at_operation(number: int, call: Callable[[], object]) -> None:
    """``call`` before the file operation of this number."""

    def count() -> None:
        nonlocal number
        number -= 1
        if not number:
            call()

    _at_operations(count)


def forbid_writing(folder: str) -> None:
    """Take from every folder in ``folder`` the right to write there."""
    for path in (Path(folder), *Path(folder).rglob("*")):
        if path.is_dir():
            path.chmod(0o500)


def remove(folder: str) -> None:
    """Remove a folder and what is in it."""
    shutil.rmtree(folder, ignore_errors=True)


def move_clock(seconds: float) -> None:
    """The wall clock, as Python reads it, is off by so much."""
    clock = time.time
    time.time = lambda: clock() + seconds


def no_disk_is_asked_for() -> None:
    """A disk that has room when it is asked, and fills up later."""
    from dcr_lite.export import command as export
    from dcr_lite.run import opening, run_folder

    for module in (run_folder, opening, export):
        module.require_disk = lambda *args: None


def limit_memory(more: int) -> None:
    """The process may take ``more`` bytes of address space beyond what it has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
