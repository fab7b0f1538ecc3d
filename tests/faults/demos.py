"""The demo, killed while it loads and while it serves: it writes nothing into the run, and starts again."""

import random
import shutil
import signal
import time
from pathlib import Path

from small_runs import contents

from tests.faults import forks
from tests.faults.kills import Killed
from tests.faults.scenes import World
from tests.faults.troubles import SECONDS_TO_END

SERVES = "Running on local URL"


def trial(world: World, folder: Path, chance: random.Random) -> Killed:
    """Start the demo in ``folder``, which is made, kill it, start it again and end it with SIGTERM."""
    folder.mkdir()
    shutil.copytree(world.finished, folder / "run")
    before = contents(folder)
    demo = forks.Trial(["demo", "--run", "run"], folder)
    if chance.random() < 0.5:
        _wait_until_it_serves(demo)
    demo.process.join(chance.uniform(0, 1))
    demo.signal(signal.SIGKILL)
    ended = demo.wait()
    problem = None if ended.code == -signal.SIGKILL else f"ended with {ended.code}: {ended.said[-800:]}"
    again = forks.Trial(["demo", "--run", "run"], folder)
    serves = _wait_until_it_serves(again)
    again.signal(signal.SIGTERM)
    ended = again.wait(SECONDS_TO_END)
    if not serves or ended.code not in (0, 130) or "Traceback" in ended.said:
        problem = f"again: ended with {ended.code}: {ended.said[-1500:]}"
    elif contents(folder) != before:
        problem = "the run has changed"
    return Killed("demo", ("clock",), problem)


def _wait_until_it_serves(demo: forks.Trial) -> bool:
    deadline = time.monotonic() + forks.PATIENCE
    while SERVES not in demo.said and time.monotonic() < deadline and demo.process.exitcode is None:
        time.sleep(0.02)
    return SERVES in demo.said
