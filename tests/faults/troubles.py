"""Trouble with disks, folders, clocks, neighbours and memory: each trial ends in a sentence or as if nothing had been,
nothing of the user's is lost, and once the trouble is over the same command ends where an undisturbed one does."""

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from small_runs import contents

from tests.faults import faults, forks
from tests.faults.kills import DONE, Undisturbed, differences
from tests.faults.scenes import left

SECONDS_TO_END = 5.0  # after Ctrl-C or SIGTERM


@dataclass(frozen=True)
class Tried:
    """A trial. fault: its kind, a row of the table. problem: what was not as promised; None where all was."""

    fault: str
    scene: str
    problem: str | None


Before = Sequence[Callable[[], Any]]


def tried(
    fault: str, undisturbed: Undisturbed, folder: Path, before: Before, over: Callable[[Path], None] = lambda _: None
) -> Tried:
    """A trial in ``folder``, which is made: the command with a fault; ``over`` ends the trouble; the command again."""
    scene = undisturbed.scene
    folder.mkdir()
    scene.prepare(folder)
    kept = contents(folder)
    ended = forks.run(scene.argv, folder, *before)
    over(folder)
    problem = None
    if ended.code and not ended.in_a_sentence:
        problem = f"ended with {ended.code}: {ended.said[-1500:]}"
    else:
        if not _same_still({name: data for name, data in kept.items() if not name.startswith(scene.changes)}, folder):
            for name in {Path(name).parts[0] for name in kept}:  # the trouble took it away
                shutil.rmtree(folder / name, ignore_errors=True)
            scene.prepare(folder)
        problem = goes_on(undisturbed, folder)
    return Tried(fault, scene.name, problem)


def goes_on(undisturbed: Undisturbed, folder: Path) -> str | None:
    """What is not as promised once the command has gone on to its end; None where all is."""
    scene = undisturbed.scene
    ended = forks.run(scene.again, folder)
    if ended.code and not (ended.in_a_sentence and any(said in ended.said for said in DONE)):
        return f"goes on with {ended.code}: {ended.said[-1500:]}"
    different = differences(left(folder, scene), undisturbed.left)
    return f"other files: {different}" if different else None


def _same_still(kept: dict[str, bytes], folder: Path) -> bool:
    return all((folder / name).exists() and (folder / name).read_bytes() == data for name, data in kept.items())


# --- disks and folders ------------------------------------------------------------------------------------------------


def disk_full(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """From a random operation on, no write succeeds."""
    number, size = chance.randint(1, undisturbed.operations), chance.choice((0, 1, 100, 1000))
    return tried("disk full", undisturbed, folder, (partial(faults.refuse_writes, number, size),))


def read_only(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """From a random operation on, or from the beginning, no folder there can be written to."""
    number = chance.choice((1, chance.randint(1, undisturbed.operations)))
    forbid = partial(faults.at_operation, number, partial(faults.forbid_writing, str(folder)))

    def over(folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o700)

    return tried("folder read-only", undisturbed, folder, (faults.obey_permissions, forbid), over)


def removed(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """At a random operation somebody removes the folder that is written to."""
    number = chance.randint(1, undisturbed.operations)
    away = partial(faults.at_operation, number, partial(faults.remove, str(folder / undisturbed.scene.leaves[0])))

    def over(folder: Path) -> None:
        """Of a run that was removed while it wrote, a file may stay, which only its user may remove."""
        unfinished = {"train": ("run",), "mend": ("run",), "compare": ("out/stock", "out/seed0")}
        for run in map(folder.joinpath, unfinished.get(undisturbed.scene.name, ())):
            if run.exists() and not (run / "settings.json").exists():
                shutil.rmtree(run)

    return tried("folder removed", undisturbed, folder, (away,), over)


def clock_set_back(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """Killed at a random operation; what goes on does so a day earlier."""
    number = chance.randint(1, undisturbed.operations)
    folder.mkdir()
    undisturbed.scene.prepare(folder)
    forks.run(undisturbed.scene.argv, folder, partial(faults.kill_at_operation, number))
    ended = forks.run(undisturbed.scene.again, folder, partial(faults.move_clock, -86400.0))
    problem = None
    if ended.code and not (ended.in_a_sentence and any(said in ended.said for said in DONE)):
        problem = f"goes on with {ended.code}: {ended.said[-1500:]}"
    elif different := differences(left(folder, undisturbed.scene), undisturbed.left):
        problem = f"other files: {different}"
    return Tried("clock set back", undisturbed.scene.name, problem)


def two_at_once(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """The same command twice, a moment apart: the first ends as if it had been alone, the second in a sentence."""
    scene = undisturbed.scene
    folder.mkdir()
    scene.prepare(folder)
    first = forks.Trial(scene.argv, folder)
    first.process.join(chance.uniform(0, undisturbed.seconds))
    second = forks.Trial(scene.again, folder)
    ended, other = first.wait(), second.wait()
    refused = sorted((ended, other), key=lambda e: e.code or 0)[1]
    problem = None
    if 0 not in (ended.code, other.code):
        problem = f"neither ended well: {ended.said[-800:]} {other.said[-800:]}"
    elif refused.code and not (
        refused.in_a_sentence and any(said in refused.said for said in (*DONE, "works in", "holds a stopped run"))
    ):
        problem = f"the other ended with {refused.code}: {refused.said[-1500:]}"
    elif different := differences(left(folder, scene), undisturbed.left):
        problem = f"other files: {different}"
    return Tried("two at once", scene.name, problem)


def ended_by_signal(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """Ctrl-C or SIGTERM at a random moment: the end comes within seconds, without a traceback."""
    scene, which = undisturbed.scene, chance.choice((signal.SIGINT, signal.SIGTERM))
    folder.mkdir()
    scene.prepare(folder)
    running = forks.Trial(scene.argv, folder)
    running.process.join(chance.uniform(0.05, undisturbed.seconds))
    running.signal(which)
    ended = running.wait(SECONDS_TO_END)
    problem = None
    if ended.code not in (0, 130) or "Traceback" in ended.said:
        problem = f"{which.name}: ended with {ended.code}: {ended.said[-1500:]}"
    else:
        problem = goes_on(undisturbed, folder)
    return Tried("Ctrl-C, SIGTERM", scene.name, problem)


def small_disk(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """A real disk, in memory, of a random size up to a little more than the command needs."""
    needed = sum(len(value) if isinstance(value, bytes) else 4096 for value in undisturbed.left.values())
    needed += sum(len(value[1]) for value in undisturbed.left.values() if isinstance(value, tuple))
    folder.mkdir()
    undisturbed.scene.prepare(folder)
    kept = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    shutil.rmtree(folder)
    folder.mkdir()
    size = kept + 300_000 + round(chance.uniform(0, 1.2) * needed)
    _mount("-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder)
    try:
        inner = folder / "disk"
        mend = lambda _: _mount("-o", "remount,size=256m", folder)  # noqa: E731
        return tried("disk full, a real one", undisturbed, inner, (faults.no_disk_is_asked_for,), mend)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def can_mount(folder: Path) -> bool:
    """Whether this user may mount a disk."""
    folder.mkdir(exist_ok=True)
    with suppress(OSError, subprocess.CalledProcessError):
        _mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", folder)
        subprocess.run(["umount", str(folder)], check=True)
        return True
    return False


def _mount(*words: object) -> None:
    subprocess.run(["mount", *map(str, words)], check=True, capture_output=True)


def little_memory(undisturbed: Undisturbed, folder: Path, chance: random.Random) -> Tried:
    """An address space that has room for a random part of what the command takes beyond its imports."""
    more = round(chance.uniform(0, 1) * 400e6)
    return tried("little memory", undisturbed, folder, (partial(faults.limit_memory, more),))


KINDS = (disk_full, read_only, removed, two_at_once, clock_set_back, ended_by_signal, little_memory)


def campaign(
    scenes: list[Undisturbed], each: int, seed: int, folder: Path, kinds: Sequence[Callable[..., Tried]] = KINDS
) -> Iterator[Tried]:
    """``each`` trials of every kind, over all scenes in turn."""
    chance = random.Random(seed)
    folder.mkdir()
    more = (small_disk,) if kinds is KINDS and can_mount(folder / "mount") else ()
    started, done, total = time.monotonic(), 0, each * len((*kinds, *more))
    for kind in (*kinds, *more):
        for number in range(each):
            done += 1
            minutes = (time.monotonic() - started) / done * (total - done) / 60
            print(f"{kind.__name__}: {done}/{total}, {minutes:.0f} min left", flush=True)
            place = folder / f"{kind.__name__}{number}"
            found = kind(scenes[number % len(scenes)], place, chance)
            if found.problem is None:
                shutil.rmtree(place)
            yield found
