"""kill -9 at random moments: by the clock, between two operations on files, and in the middle of a write.

After each kill no file of a finished part is half-written. After the command that goes on, perhaps killed again, every
file is what an undisturbed command leaves, and no step was repeated but those since the last checkpoint.
"""

import json
import random
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.faults import faults, forks
from tests.faults.scenes import Scene, left

KILLED = (-signal.SIGKILL, -signal.SIGXFSZ)
MOMENTS = ("clock", "operation", "write")
AGAIN = 0.3  # how often what goes on is killed too
DONE = ("holds a finished run", "holds a finished measurement", "exists already")  # the kill came after the last file


@dataclass(frozen=True)
class Undisturbed:
    """A scene without a fault: what it leaves, and how many seconds and operations on files it takes."""

    scene: Scene
    left: dict[str, Any]
    seconds: float
    operations: int

    @classmethod
    def of(cls, scene: Scene, folder: Path) -> "Undisturbed":
        """Run it in ``folder``, which is made."""
        folder.mkdir()
        scene.prepare(folder)
        ended = forks.run(scene.argv, folder, partial(faults.count_operations, str(folder / "count.txt")))
        assert ended.code == 0, ended.said
        return cls(scene, left(folder, scene), ended.seconds, int((folder / "count.txt").read_text()))


@dataclass(frozen=True)
class Killed:
    """A trial. moments: of each kill in it. problem: what was not as promised; None where all was."""

    scene: str
    moments: tuple[str, ...]
    problem: str | None


def trial(undisturbed: Undisturbed, folder: Path, chance: random.Random, moments: tuple[str, ...] = MOMENTS) -> Killed:
    """Kill the command in ``folder``, which is made, let it go on until it is finished, and look at what is left."""
    scene, kills = undisturbed.scene, []
    folder.mkdir()
    scene.prepare(folder)
    argv = scene.argv
    while not kills or chance.random() < AGAIN:
        moment = chance.choice(moments)
        ended = _disturbed(undisturbed, argv, folder, moment, chance)
        if ended.code not in KILLED:  # it had ended before
            if ended.code and not _was_done(ended):
                return Killed(scene.name, (*kills, moment), f"ended with {ended.code}: {ended.said[-800:]}")
            break
        kills.append(moment)
        if halves := half_written(folder, undisturbed):
            return Killed(scene.name, tuple(kills), f"half-written: {halves}")
        argv = scene.again
    repeated = _since_checkpoint(folder)
    ended = forks.run(scene.again, folder, faults.note_steps)
    problem = None
    if ended.code and not _was_done(ended):
        problem = f"goes on with {ended.code}: {ended.said[-1500:]}"
    elif different := differences(left(folder, scene), undisturbed.left):
        problem = f"other files: {different}"
    elif more := _repeated(folder) - repeated:
        problem = f"steps repeated before the last checkpoint: {sorted(more)}"
    return Killed(scene.name, tuple(kills), problem)


def _disturbed(
    undisturbed: Undisturbed, argv: list[str], folder: Path, moment: str, chance: random.Random
) -> forks.Ended:
    number = chance.randint(1, undisturbed.operations)
    if moment == "operation":
        return forks.run(argv, folder, faults.note_steps, partial(faults.kill_at_operation, number))
    if moment == "write":
        size = round(10 ** chance.uniform(0, 5))
        return forks.run(argv, folder, faults.note_steps, partial(faults.kill_in_write, number, size))
    running = forks.Trial(argv, folder, (faults.note_steps,))
    running.process.join(chance.uniform(0, undisturbed.seconds))
    running.signal(signal.SIGKILL)
    return running.wait()


def _was_done(ended: forks.Ended) -> bool:
    return ended.in_a_sentence and any(said in ended.said for said in DONE)


def half_written(folder: Path, undisturbed: Undisturbed) -> list[str]:
    """The files that something could take for whole ones and that are not; of folders that are whole or absent, those
    that lack a file. A last line of metrics.jsonl that is cut off is known to its reader."""
    found = []
    files = [path for name in undisturbed.scene.leaves for path in (folder / name).rglob("*") if path.is_file()]
    for path in files:
        name = str(path.relative_to(folder))
        if ".partial" in name or path.name == "run.lock":
            continue
        try:
            _read_whole(path, undisturbed.left.get(name))
        except (ValueError, RuntimeError, EOFError, OSError, AssertionError) as error:
            found.append(f"{name} ({str(error)[:200]})")
        except Exception as error:  # SafetensorError derives from nothing else
            found.append(f"{name} ({type(error).__name__} {str(error)[:200]})")
    folders = {Path(name).parent for name in undisturbed.left if name.endswith(("adapter_config.json", "config.json"))}
    for inner in folders:
        names = {name for name in undisturbed.left if Path(name).parent == inner}
        if (folder / inner).exists() and (lost := sorted(n for n in names if not (folder / n).exists())):
            found.append(f"{inner} lacks {lost}")
    return found


def _read_whole(path: Path, whole: Any) -> None:
    """Raises an error where the file is not a whole one."""
    data = path.read_bytes()
    if path.name == "metrics.jsonl":
        data = data[: data.rfind(b"\n") + 1]
    if path.suffix == ".jsonl":
        for line in data.split(b"\n")[:-1]:
            json.loads(line)
        assert data.endswith(b"\n") or not data, "the last line is cut off"
    elif path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".pt":
        torch.load(path, weights_only=True)
    elif path.suffix == ".png":
        assert data.endswith(b"IEND\xaeB`\x82"), "no end of a picture"
    elif path.suffix == ".gguf":
        assert data == whole, "not the bytes of an undisturbed one"


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names of files that are missing, that are too many, or that differ."""
    names = [f"{name} is missing" for name in expected.keys() - found.keys()]
    names += [f"{name} is left over" for name in found.keys() - expected.keys()]
    return sorted(names + [name for name in found.keys() & expected.keys() if found[name] != expected[name]])


def _notes(folder: Path, name: str = "steps.jsonl") -> list[tuple[str, str, int]]:
    path = folder / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    notes = []
    for line in lines:
        try:
            notes.append(tuple(json.loads(line)))
        except ValueError:  # the last one before a kill, with the first one after it
            continue
    return notes


def _since_checkpoint(folder: Path) -> set[tuple[str, int]]:
    """(stage, step) of the steps that may be taken again: those after the last checkpoint of their stage."""
    saved: dict[str, int] = {}
    taken = set()
    for what, stage, step in _notes(folder):
        if what == "saved":
            saved[stage] = step
        else:
            taken.add((stage, step))
    (folder / "steps.jsonl").rename(folder / "steps_before.jsonl") if (folder / "steps.jsonl").exists() else None
    return {(stage, step) for stage, step in taken if step > saved.get(stage, 0)}


def _repeated(folder: Path) -> set[tuple[str, int]]:
    """(stage, step) of the steps that were taken before and again."""
    now = {(stage, step) for what, stage, step in _notes(folder) if what == "taken"}
    before = {(stage, step) for what, stage, step in _notes(folder, "steps_before.jsonl") if what == "taken"}
    return now & before


def campaign(scenes: list[Undisturbed], kills: int, seed: int, folder: Path) -> Iterator[Killed]:
    """Trials until there were so many kills, over all scenes in turn."""
    chance = random.Random(seed)
    folder.mkdir()
    started, done, number = time.monotonic(), 0, 0
    while done < kills:
        number += 1
        place = folder / f"kill{number}"
        killed = trial(scenes[number % len(scenes)], place, chance)
        done += len(killed.moments)
        left_seconds = (time.monotonic() - started) * (kills - done) / max(1, done)
        if killed.problem is None:
            shutil.rmtree(place)
        print(f"{done}/{kills} kills, {left_seconds / 60:.0f} min left: {killed}", flush=True)
        yield killed
