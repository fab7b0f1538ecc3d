"""Claims about following a run elsewhere: the tracker sees the rows of metrics.jsonl, and a run needs none."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from accelerate import tracking as accelerate_tracking
from recipe_runs import small_settings
from small_runs import flags, run_here, save_rows

from dcr_lite.model import distributed
from dcr_lite.run import obstacles, tracking
from dcr_lite.run.run_folder import RunFolder

ROWS: list[dict[str, Any]] = [
    {"stage": "stage1", "step": 0, "development_auroc": 0.5},
    {"stage": "stage1", "step": 1, "loss": 2.0, "gradient_norm": 1.0},
    {"stage": "stage1", "step": 2, "loss": 1.0, "gradient_norm": 0.5},
    {"stage": "stage2", "step": 0, "toxic": 0.9},
    {"stage": "stage2", "step": 1, "loss": 3.0, "gradient_norm": 1.0},
]
# The same as a tracker is to see them: steps of the whole run, never behind the last.
SEEN: list[tuple[dict[str, float], int]] = [
    ({"stage1/development_auroc": 0.5}, 0),
    ({"stage1/loss": 2.0, "stage1/gradient_norm": 1.0}, 1),
    ({"stage1/loss": 1.0, "stage1/gradient_norm": 0.5}, 2),
    ({"stage2/toxic": 0.9}, 2),
    ({"stage2/loss": 3.0, "stage2/gradient_norm": 1.0}, 3),
]


class StandIn(accelerate_tracking.GeneralTracker):
    """A tracker that keeps what it is given. begun: how each was begun. fails: at what."""

    name = "stand_in"
    requires_logging_directory = False
    main_process_only = False
    begun: ClassVar[list[dict[str, Any]]] = []
    seen: ClassVar[list[tuple[dict[str, float], int]]] = []
    finished = 0
    fails = ""

    def __init__(self, run_name: str, **kwargs: Any):
        super().__init__()
        StandIn.begun.append({"project": run_name, **kwargs})

    @property
    def tracker(self) -> None:
        return None

    def _may_fail(self, part: str) -> None:
        if StandIn.fails == part:
            raise ConnectionError(f"no {part}")

    def start(self) -> None:
        self._may_fail("start")

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        self._may_fail("log")
        StandIn.seen.append((values, step if step is not None else -1))

    def finish(self) -> None:
        self._may_fail("finish")
        StandIn.finished += 1


@pytest.fixture
def stand_in() -> Iterator[type[StandIn]]:
    """Registered with accelerate, as a package's own tracker would be."""
    StandIn.begun, StandIn.seen, StandIn.finished, StandIn.fails = [], [], 0, ""
    accelerate_tracking.register_tracker_class(StandIn)
    yield StandIn
    del accelerate_tracking.LOGGER_TYPE_TO_CLASS["stand_in"]


@pytest.fixture
def open_run(tmp_path: Path) -> Iterator[Callable[..., RunFolder]]:
    """open_run(resume=) -> a run folder that the stand-in follows."""
    rows, opened = save_rows(tmp_path / "rows"), []

    def open_(track: str = "stand_in", resume: bool = False) -> RunFolder:
        opened.append(RunFolder(small_settings("model", rows, tmp_path / "run", track=track, resume=resume)))
        return opened[-1]

    yield open_
    for run in opened:
        run.leave()


def test_a_tracker_sees_the_rows(stand_in: type[StandIn], open_run: Callable[..., RunFolder]) -> None:
    """Every row of metrics.jsonl, with its stage's name before each number, at the step of the whole run; it is begun
    with the first row, knows the settings, and ends with the run."""
    run = open_run()
    assert stand_in.begun == []
    for row in ROWS:
        run.log(row)
    assert stand_in.seen == SEEN
    assert [json.loads(line) for line in run.metrics.read_text().splitlines()] == ROWS
    (begun,) = stand_in.begun
    assert begun["project"] == "dcr-lite"
    assert begun["config"]["contrastive_steps"] == 4
    run.close({})
    assert stand_in.finished == 1


def test_a_run_that_goes_on_is_the_same_one(stand_in: type[StandIn], open_run: Callable[..., RunFolder]) -> None:
    """Stopped and resumed, it has the same name and goes on at the steps of an undisturbed one; a new run in a folder
    of that name has another."""
    run = open_run()
    for row in ROWS[:3]:
        run.log(row)
    run.finish("stage1", {})
    run.leave()
    again = open_run(resume=True)
    for row in ROWS[3:]:
        again.log(row)
    assert stand_in.seen == SEEN
    first, second = stand_in.begun
    assert first == second
    assert first["resume"] == "allow"
    again.leave()
    (again.path / "settings.json").touch()
    other = open_run(resume=True)
    other.log(ROWS[0])
    assert stand_in.begun[2]["name"] != first["name"]


def test_only_the_first_process_is_followed(
    stand_in: type[StandIn], open_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others begin no tracker."""
    run = open_run()
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    run.log(ROWS[1])
    assert (stand_in.begun, stand_in.seen) == ([], [])


@pytest.mark.parametrize("part", ["start", "log", "finish"])
def test_a_tracker_that_fails_ends_no_run(
    part: str, stand_in: type[StandIn], open_run: Callable[..., RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    """It is said once, with the reason, and every row is in metrics.jsonl."""
    stand_in.fails = part
    run = open_run()
    for row in ROWS:
        run.log(row)
    run.close({})
    out = " ".join(capsys.readouterr().out.split())
    assert out.count(f"--track stand_in fails (no {part}). The run goes on without it.") == 1
    assert len(run.metrics.read_text().splitlines()) == len(ROWS)


@pytest.mark.parametrize("name", obstacles.PACKAGES)
def test_a_package_that_is_not_there_is_named_before_any_work(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error with the cure, and not even a run folder."""
    monkeypatch.setattr(obstacles, "find_spec", lambda package: None)
    done = run_here(flags("model", save_rows(tmp_path / "rows"), tmp_path / "run", track=name))
    assert done.code == 1
    assert f"--track {name}: {name} is not installed. pip install {name}" in done.err
    assert not (tmp_path / "run").exists()


def test_by_default_nothing_is_asked_for(open_run: Callable[..., RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    """No package is looked for, and no tracker begun."""

    def never(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(obstacles, "find_spec", never)
    monkeypatch.setattr(tracking.Tracking, "_begun", never)
    run = open_run(track="none")
    for row in ROWS:
        run.log(row)
    run.close({})


def test_accelerate_knows_every_tracker() -> None:
    """Each name is that of a class of accelerate, which takes what it is begun with."""
    for name in obstacles.PACKAGES:
        kind = accelerate_tracking.LOGGER_TYPE_TO_CLASS[name]
        assert kind.name == name
        assert kind.requires_logging_directory == (name == "tensorboard")


def test_tensorboard_writes_what_it_reads_back(open_run: Callable[..., RunFolder]) -> None:
    """The real writer's files are in the run folder, and one of them holds each number's name."""
    run = open_run(track="tensorboard")
    for row in ROWS:
        run.log(row)
    run.close({})
    (file,) = (run.path / "tensorboard").glob("events.out.*")
    written = file.read_bytes()
    assert all(key.encode() in written for values, _ in SEEN for key in values)
