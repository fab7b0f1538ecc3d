"""A run followed elsewhere: every row of metrics.jsonl goes to trackio, Weights & Biases or TensorBoard as well,
through the trackers of accelerate.

A tracker is a guest. It begins with the first row, on the first process alone, and a run goes on without one that
fails: whatever it lost is in metrics.jsonl.
"""

import hashlib
from pathlib import Path
from typing import Any

from dcr_lite.errors import first_line
from dcr_lite.files import load_jsonl
from dcr_lite.run.obstacles import require_tracker
from dcr_lite.run.terminal import show_line
from dcr_lite.settings import Settings

PROJECT = "dcr-lite"


class Tracking:
    """What sends the rows of a run to the tracker of its settings."""

    def __init__(self, settings: Settings):
        """Raises UserError where the tracker's package is not installed. Nothing is imported or begun yet."""
        self._settings, self._on = settings, settings.track != "none"
        self._tracker: Any = None
        self._before: dict[str, int] = {}  # steps of the whole run before the first one of each stage
        self._last = 0
        require_tracker(settings)

    def log(self, row: dict[str, Any], metrics: Path) -> None:
        """Send a row, the last one of ``metrics``: its numbers under the name of its stage, at the step of the whole
        run. What goes wrong is said once."""
        if not self._on:
            return
        try:
            if self._tracker is None:
                self._tracker = self._begun(metrics)
            values = {f"{row['stage']}/{k}": v for k, v in row.items() if k != "step" and isinstance(v, int | float)}
            self._tracker.log(values, step=self._step(row))
        except Exception as error:  # of a package, a login or a network
            self._fails(error)

    def finish(self) -> None:
        """Let the tracker send what it still has."""
        tracker, self._tracker, on = self._tracker, None, self._on
        self._on = False
        if tracker is None or not on:
            return
        try:
            tracker.finish()
        except Exception as error:
            self._fails(error)

    def _fails(self, error: Exception) -> None:
        self._on = False
        show_line(f"--track {self._settings.track} fails ({first_line(error)}). The run goes on without it.")

    def _step(self, row: dict[str, Any]) -> int:
        """The step of the whole run: each stage counts from 0, and trackers take no step that is behind the last."""
        step = self._before.setdefault(row["stage"], self._last) + int(row["step"])
        self._last = max(self._last, step)
        return step

    def _begun(self, metrics: Path) -> Any:
        """The tracker, begun, or going on where the run goes on; steps are counted as far as ``metrics`` has them."""
        from accelerate import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # which accelerate's own log asks for, and which joins the processes that there are
        for row in load_jsonl(metrics):
            self._step(row)
        run = self._settings.run.resolve()
        kind = LOGGER_TYPE_TO_CLASS[self._settings.track]
        if kind.requires_logging_directory:
            tracker = kind(self._settings.track, run)  # TensorBoard goes on in a folder that is there: RUN/tensorboard
        else:
            tracker = kind(PROJECT, **self._identity(run))
        tracker.start()
        return tracker

    def _identity(self, run: Path) -> dict[str, Any]:
        """What the run is called in a project, the same when it goes on: settings.json is as old as the run."""
        made = f"{run.name} {(run / 'settings.json').stat().st_mtime_ns}"
        number = hashlib.sha256(made.encode()).hexdigest()[:8]
        known = {"resume": "allow", "config": self._settings.for_json()}
        if self._settings.track == "wandb":
            return {"name": run.name, "id": number, "dir": str(run), **known}
        return {"name": f"{run.name}-{number}", **known}
