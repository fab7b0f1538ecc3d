"""In which order tests run, and which of them go together. The fixtures are in helpers/shared_fixtures.py."""

import gc
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks the network fails instead of waiting
os.environ["TOKENIZERS_PARALLELISM"] = "false"
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
    os.environ.pop(name, None)  # with them a program would write otherwise than the tests read
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of what a test starts: the other core has tests of its own

gc.disable()  # until all is imported: what that makes is many, and stays

# Files that share what takes long to make: one worker takes them, one after the other.
TOGETHER = (
    # A process whose imports take a quarter of a minute, to fork from, and runs that were made so.
    {
        "test_benchmarks.py",
        "test_check.py",
        "test_distributed.py",
        "test_faults.py",
        "test_interrupts.py",
        "test_mending.py",
        "test_resume.py",
        "test_run_outputs.py",
        "test_windows.py",
    },
    {"test_added_methods.py", "test_contract.py", "test_verify.py"},  # a comparison by a contract
    {"test_conversation.py", "test_demo_api.py"},  # a run that is served
    {"test_dial.py", "test_export.py", "test_gguf.py", "test_merge.py"},  # the real SmolLM2
)
UNITS = {name: min(names) for names in TOGETHER for name in names}


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures, with torch and all else, but where workers are only started and waited for."""
    controls = config.getoption("dist", "no") != "no" and not config.option.collectonly
    if not controls:
        config.pluginmanager.import_plugin("shared_fixtures")


def unit_of(path: str | Path) -> str:
    """What a worker is given at once: the file, or what it goes together with."""
    return UNITS.get(Path(path).name, str(path))


class Scheduling(LoadFileScheduling):
    """A unit at a time to each worker."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling | None:
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


def slow_tests() -> set[str]:
    """The lines of slow.txt."""
    lines = Path(__file__).with_name("slow.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if line and not line.startswith("#")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that slow.txt lists: by file, by function or by one of its parameters. Units with most of
    them come first, then those with most tests, so that no worker is left with a long one at the end; the longest of
    all, the first of TOGETHER, before any other."""
    slow = slow_tests()
    for item in items:
        name = f"{item.path.name}::{item.nodeid.partition('::')[2]}"
        if slow & {item.path.name, name, name.partition("[")[0]}:
            item.add_marker(pytest.mark.slow)
    units = {item: unit_of(item.path) for item in items}
    marked = Counter(unit for item, unit in units.items() if item.get_closest_marker("slow"))
    size = Counter(units.values())
    longest = min(TOGETHER[0])
    items.sort(key=lambda item: (units[item] != longest, -marked[units[item]], -size[units[item]], units[item]))


def pytest_collection_finish() -> None:
    """Spare garbage collections the objects of all imported libraries."""
    gc.freeze()
    gc.enable()
