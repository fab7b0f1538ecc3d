"""The campaign of faults: ``make faults``. Kills, trouble with disks, folders and memory, damaged files, and
generated inputs, all with a fixed seed; prints a table for docs/reliability.md; exits with 1 where a promise broke.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from tests.faults import damage, demos, inputs, kills, troubles
from tests.faults.scenes import World


@dataclass(frozen=True)
class Row:
    """A row of the table: what was done, how often, and how often it ended as promised."""

    part: str
    fault: str
    tried: int
    kept: int


@dataclass(frozen=True)
class Ground:
    """Where a part works: a folder of its own, a tiny world, its undisturbed scenes; and how much it does."""

    folder: Path
    world: World
    scenes: list[kills.Undisturbed]
    seed: int
    size: float


def kill_rows(ground: Ground) -> Iterator[Row]:
    """kill -9, 320 times, by command, and of the demo 24 times."""
    found = list(kills.campaign(ground.scenes, round(320 * ground.size), ground.seed, ground.folder / "trials"))
    chance = random.Random(ground.seed)
    for number in range(max(1, round(24 * ground.size))):
        found.append(_told(demos.trial(ground.world, ground.folder / f"demo{number}", chance)))
    for scene in dict.fromkeys(one.scene for one in found):
        of_scene = [one for one in found if one.scene == scene]
        good = sum(len(one.moments) for one in of_scene if one.problem is None)
        yield Row("kill -9", scene, sum(len(one.moments) for one in of_scene), good)


def trouble_rows(ground: Ground) -> Iterator[Row]:
    """Every fault of disks, folders, clock, signals and memory, 48 times each, over the commands in turn."""
    each = max(1, round(48 * ground.size))
    return _counted(troubles.campaign(ground.scenes, each, ground.seed, ground.folder / "trials"))


def damage_rows(ground: Ground) -> Iterator[Row]:
    """120 damaged files."""
    each = max(1, round(120 * ground.size))
    return _counted(troubles.campaign(ground.scenes, each, ground.seed, ground.folder / "trials", (damage.damaged,)))


def _counted(trials: Iterable[troubles.Tried]) -> Iterator[Row]:
    found = list(map(_told, trials))
    counted, kept = Counter(one.fault for one in found), Counter(one.fault for one in found if one.problem is None)
    for fault, n in counted.items():
        yield Row("fault", fault, n, kept[fault])


def input_rows(ground: Ground) -> Iterator[Row]:
    """Generated inputs for every reader (inputs.py, which prints a table of its own)."""
    rows = inputs.run_inputs(round(103_000 * ground.size), ground.seed)
    print(inputs.table(rows), flush=True)
    for row in rows:
        if row.failure:
            print(row.failure, flush=True)
    yield Row("input", "generated inputs", sum(r.inputs for r in rows), sum(r.inputs for r in rows if not r.failure))


PARTS = {"kills": kill_rows, "troubles": trouble_rows, "damage": damage_rows, "inputs": input_rows}


def _told(one: Any) -> Any:
    """The trial, which is printed where it did not end as promised."""
    if one.problem:
        print(one, flush=True)
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", type=float, default=1.0, help="of the campaign: 0.1 is a tenth of it")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    started, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch)
        (folder / "world").mkdir()
        world = World(folder / "world")
        scenes = [kills.Undisturbed.of(scene, folder / f"without {name}") for name, scene in world.scenes.items()]
        for number, name in enumerate(given.parts, start=1):
            (folder / name).mkdir()
            rows += PARTS[name](Ground(folder / name, world, scenes, given.seed, given.size))
            minutes = (time.monotonic() - started) / 60
            print(f"part {number} of {len(given.parts)}, {name}: done after {minutes:.1f} min", flush=True)
    print("\n| | fault | tried | as promised |\n|---|---|--:|--:|")
    for row in rows:
        print(f"| {row.part} | {row.fault} | {row.tried:,} | {row.kept:,} |")
    print(f"\nSeed {given.seed}, {(time.monotonic() - started) / 60:.1f} minutes.")
    raise SystemExit(any(row.kept < row.tried for row in rows))


if __name__ == "__main__":
    main()
