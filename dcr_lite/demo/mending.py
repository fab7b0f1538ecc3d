"""dcr-lite mend started from the demo: a process of its own, which is watched by what it writes. Where it stands is
read from its folder and its log, so that a page, or a demo, that is opened later shows the same.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from dcr_lite.data.marks import Mark, read_marks
from dcr_lite.data.near import normalised
from dcr_lite.demo.scoring import stock_of_no_run
from dcr_lite.demo.texts import BASE_MODEL, MARKS_FIRST, UNFORESEEN, WORKS_ALREADY
from dcr_lite.errors import UserError
from dcr_lite.files import exists, load_json
from dcr_lite.mend import prompts
from dcr_lite.mend.prompts import Wish
from dcr_lite.mend.results import read_check
from dcr_lite.mend.settings import MendSettings
from dcr_lite.model.compiled_code import unlimited
from dcr_lite.names import repository_of
from dcr_lite.run.joined import has_joined
from dcr_lite.run.opening import model_settings_of
from dcr_lite.run.terminal import StageProgress, estimate_in, progress_in
from dcr_lite.settings import ChatFormat, Device, ModelSettings, Settings

# unchecked: there may be marks, and nothing has been done with them. stopped: it had begun to train.
Step = Literal["unchecked", "checking", "checked", "mending", "stopped", "mended"]
COMMAND = (sys.executable, "-m", "dcr_lite.cli", "mend")
ERROR = "error: "  # begins what the command line says of an error


@dataclass(frozen=True)
class Status:
    """Where mending stands.

    stages: those of the process that works, so far. left: seconds that the last of them still takes. whole: seconds
    that mending still takes by its plan, all of them while the marks are checked; None before there is a plan.
    stopping: the process has been asked to end. error: what the last process ended with, in a sentence; empty where it
    ended well or was stopped. changed: whether the marks are others than those that the run has.
    """

    step: Step
    run: Path
    stages: tuple[StageProgress, ...] = ()
    left: float = 0.0
    whole: float | None = None
    stopping: bool = False
    error: str = ""
    changed: bool = False

    @property
    def works(self) -> bool:
        """Whether a process works."""
        return self.step in ("checking", "mending")


class Mending:
    """Mends ``model``, a folder or a Hub name, with the marks in a file. Its runs lie in ``home``, the marks too if
    ``marks`` names no other file. flags: further ones of dcr-lite mend. command: what they are given to. obstacle: why
    this model cannot be mended; empty where it can. trained: the run that the page shows, whose DCR is marked too."""

    def __init__(
        self, model: str, home: Path, marks: Path | None = None, flags: Sequence[str] = (),
        command: Sequence[str] = COMMAND, obstacle: str = "", trained: Path | None = None,
    ):  # fmt: skip
        self.trained = trained
        self.model, self.home, self.flags, self.obstacle = model, home, tuple(flags), obstacle
        self.marks = marks or home / f"{Settings.of_model(model).run.name}_marks.jsonl"
        self._command = tuple(command)
        self._changing = threading.RLock()  # one starts, stops or looks at a time
        self._process: subprocess.Popen[bytes] | None = None
        self._checks = self._stopped = False  # of the process
        self._began = 0.0  # when it did, by time.monotonic(), earlier by what the run had worked before a stop
        self._run = self._newest() or self._free()

    # --- the marks ----------------------------------------------------------------------------------------------------

    def read_marks(self) -> list[Mark]:
        """The marks so far, of each prompt the last. Raises UserError with file and line for a damaged file."""
        return [mark for mark, _ in read_marks(self.marks)] if self.marks.exists() else []

    def wishes(self) -> list[Wish]:
        """The prompts that the run has, with their parts; none before it has any."""
        return prompts.kept(self._run)

    # --- the process --------------------------------------------------------------------------------------------------

    def status(self) -> Status:
        """Where mending stands. Raises UserError where marks or run are damaged."""
        with self._changing:
            if self.works:
                said = self._said()
                stages = progress_in(said)
                left = stages[-1].left - (time.time() - self._log.stat().st_mtime) if stages else 0.0
                step: Step = "checking" if self._checks else "mending"
                whole = self._whole(estimate_in(said), left)
                return Status(step, self._run, tuple(stages), max(0.0, left), whole, self._stopped)
            if (self._run / "report.json").exists():
                step = "mended"
            elif has_joined(self._run):
                step = "stopped"
            else:
                step = "unchecked" if read_check(self._run) is None else "checked"
            return Status(step, self._run, error=self._error(), changed=self._changed())

    def check(self) -> None:
        """Start the check of the marks: in the run that there is if nothing has been trained in it, else in a new one.

        Raises UserError for marks that cannot be mended with, and where a process works already.
        """
        with self._changing:
            self._require_idle()
            run = self._run
            if has_joined(run) or (run / "report.json").exists():
                run = self._free()
            prompts.asked(replace(MendSettings.of_model(self.model), run=run, marks=self.marks, check=True))
            self._run = run
            self._start("--check")

    def mend(self, sure: Sequence[int] = ()) -> None:
        """Start to train, or go on with it. sure: numbers of doubtful prompts that are to be answered all the same.

        Raises UserError where these marks have not been checked, and where a process works already.
        """
        with self._changing:
            self._require_idle()
            status = self.status()
            if status.step not in ("checked", "stopped") or (status.step == "checked" and status.changed):
                raise UserError(MARKS_FIRST)
            self._start(*(["--sure", *map(str, sure)] if sure else []))

    def stop(self) -> bool:
        """Ask the process to end: what it has done is kept, and it can go on. Returns whether there was one to ask."""
        with self._changing:
            if not self._process or not self.works or self._stopped:
                return False  # a second signal would not let it save
            self._stopped = True
            self._process.send_signal(signal.SIGTERM)
            return True

    @property
    def works(self) -> bool:
        """Whether a process works."""
        return self._process is not None and self._process.poll() is None

    def _require_idle(self) -> None:
        if self.obstacle:
            raise UserError(self.obstacle)
        if self.works:
            raise UserError(WORKS_ALREADY)

    def _start(self, *flags: str) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        # A run goes on with what it was begun with, letter by letter.
        given = {"model": self.model, "marks": self.marks} | self._begun_with(self._run)
        words = ["--model", given["model"], *self.flags, "--marks", given["marks"]]
        words += [*self._dial_of(self._run), "--run", self._run, "--resume", *flags]
        self._began = time.monotonic() - _worked(self._run)
        with self._log.open("wb") as log:
            # In a session of its own: Ctrl-C in the demo's terminal reaches it once, by stop(), and not twice.
            self._process = subprocess.Popen(
                [*self._command, *map(str, words)], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, env=unlimited(os.environ) | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
        self._checks, self._stopped = "--check" in flags, False

    def _whole(self, minutes: int | None, left: float) -> float | None:
        """Seconds that mending still takes, of which its plan says so many ``minutes``: no fewer than are ``left`` of
        the present part."""
        if minutes is None:
            return None
        passed = 0.0 if self._checks else time.monotonic() - self._began
        return max(0.0, left, 60 * minutes - passed)

    # --- what is on the disk ------------------------------------------------------------------------------------------

    @property
    def _log(self) -> Path:
        """Beside the run, whose folder has to be empty when it begins."""
        return self._run.with_name(f"{self._run.name}.log")

    def _said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")

    def _error(self) -> str:
        if not self._process or self._process.returncode == 0 or self._stopped:
            return ""
        said = self._said()
        if (at := f"\n{said}".rfind(f"\n{ERROR}")) >= 0:
            return said[at:].removeprefix(ERROR).strip()
        last = said.strip().splitlines()[-1:] or [f"exit status {self._process.returncode}"]
        return UNFORESEEN.format(last=last[0], log=self._log.name)

    def _changed(self) -> bool:
        marks = {(normalised(mark.prompt), mark.wanted == "answer") for mark in self.read_marks()}
        return marks != {(normalised(wish.prompt), wish.answered) for wish in self.wishes()}

    def _runs(self) -> list[Path]:
        """The folders of mended runs that are there, and the first that is not."""
        name = MendSettings.of_model(self.model).run.name
        runs = [self.home / name]
        while runs[-1].exists():
            runs.append(self.home / f"{name}_{len(runs) + 1}")
        return runs

    def _free(self) -> Path:
        return self._runs()[-1]

    def _newest(self) -> Path | None:
        """The last run of this model with these marks; None where there is none."""
        return next((run for run in reversed(self._runs()) if self._is_ours(run)), None)

    def _is_ours(self, run: Path) -> bool:
        begun = self._begun_with(run)
        try:
            return bool(begun) and _known(**begun) == _known(self.model, self.marks)
        except (OSError, ValueError):  # no path, in a file that somebody has damaged
            return False

    def _begun_with(self, run: Path) -> dict[str, str]:
        """Model and marks of a run, as they were given; nothing where it is none."""
        try:
            settings = load_json(run / "settings.json")["settings"]
            return {name: str(settings[name]) for name in ("model", "marks")}
        except (OSError, ValueError, LookupError, TypeError):
            return {}

    def _dial_of(self, run: Path) -> list[str]:
        """The flag for the dial's goal that a run was begun with: the default was another one once."""
        try:
            return ["--dial", str(load_json(run / "settings.json")["settings"]["dial"])]
        except (OSError, ValueError, LookupError, TypeError):
            return []


def _worked(run: Path) -> float:
    """Seconds that a run which has begun to train had worked when it was stopped, its check included; else 0."""
    try:
        return float(load_json(run / "checkpoints" / "elapsed.json")["seconds"]) if has_joined(run) else 0.0
    except (OSError, ValueError, LookupError, TypeError):
        return 0.0


def _known(model: str, marks: str | Path) -> tuple[str, Path]:
    """A model and a file of marks, the same however their paths are written."""
    name = repository_of(model) or (str(Path(model).resolve()) if exists(model) else model)
    return name, Path(marks).resolve()


def mending_of(
    run: Path | None, marks: Path | None, device: Device, alone: str | None = None, chat_format: ChatFormat = "own"
) -> Mending:
    """Mends the model that a run began with, beside that run and as it was loaded; without a run the stock model that
    the demo shows, which is ``alone`` if not the kit's, in a chat format of its own or not. Raises UserError for a run
    that is damaged."""
    if run:
        settings = model_settings_of(run)
    else:
        settings = ModelSettings(model=alone, chat_format=chat_format) if alone else stock_of_no_run()[0]
    given = {"device": device, "precision": settings.precision, "quantization": settings.quantization}
    flags = [word for name, value in given.items() if value != "auto" for word in (f"--{name}", value)]
    obstacle = "" if settings.chat_format == "own" else BASE_MODEL
    home = run.parent if run else Path("runs")
    return Mending(settings.model, home, marks, flags, obstacle=obstacle, trained=run)
