"""The run folder: what a run has done so far, so that it can be stopped anywhere and continued."""

import hashlib
import json
import math
import shutil
import time
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from dcr_lite.data.rows import read_bytes
from dcr_lite.errors import UserError
from dcr_lite.files import (
    SHIPPED,
    OnlyOne,
    damaged,
    damaged_line,
    exists,
    load_json,
    load_jsonl,
    read_state,
    remove_partials,
    require_disk,
    write_json,
    write_jsonl,
    write_state,
)
from dcr_lite.model import distributed
from dcr_lite.run.obstacles import LOCK, is_finished, is_new, require_folder
from dcr_lite.run.tracking import Tracking
from dcr_lite.settings import ModelSettings, Settings

DISK_BYTES = 1_000_000_000  # asked for before the model is known; opening.will_it_fit asks for what its run writes

NUMBERS = "numbers"  # the note of precision and 4-bit weights (same_numbers.py)
OF_MACHINE = {"device", "precision", "quantization"}  # may be given otherwise where that note tells what they come to
FOUND_FILE = "found.json"  # what a run has found of its settings (found_settings.py)
FOUND_NAMES = ("layer", "contrastive_learning_rate", "contrastive_share", "sft_learning_rate", "stage1", "stage2",
               "answers", "dial", "refusals")  # fmt: skip
LATER = {"refusals"}  # of these: not in the file of an older run, which goes on with those that it was begun with

AnySettings = TypeVar("AnySettings", bound=ModelSettings)


class RunFolder:
    """``runs/NAME``: settings.json, metrics.jsonl, checkpoints/, adapters, answers/, report.json, report.md, PNGs. Of
    several processes only the first writes."""

    def __init__(self, settings: Settings):
        """Open a new folder, or one to continue. Raises UserError for an existing run without ``resume``, for other
        settings or data than it was begun with, or with too little disk."""
        self.path = settings.run
        self.metrics = self.path / "metrics.jsonl"
        self._tracking = Tracking(settings)
        self._started = time.monotonic()
        self._before = 0.0  # seconds before the last --resume, up to the last finished part
        # A folder that was moved, or is reached by another path, holds the same run.
        chosen = {k: v for k, v in settings.for_json().items() if k != "run"}
        state = {"settings": chosen, "data": _fingerprints(settings)}
        self._held: OnlyOne | None = None
        try:
            self._open(settings, state)
        except BaseException:
            self.leave()
            raise

    def _open(self, settings: Settings, state: dict[str, Any]) -> None:
        if (self.path / "settings.json").exists() and not is_new(self.path):
            return self._continue(settings, state)
        require_folder(settings)
        # New, or stopped by an error before anything was done: nothing to continue, so it begins anew.
        require_disk(self.path, DISK_BYTES)
        self._lock()
        if distributed.is_main():
            write_json(state, self.path / "settings.json")
        return None

    def _lock(self) -> None:
        """From here on no other run works in the folder, until this one ends."""
        if distributed.is_main():
            self._held = OnlyOne(self.path / LOCK, "choose another folder with --run")

    def _continue(self, settings: Settings, state: dict[str, Any]) -> None:
        finished = is_finished(self.path)
        if not finished or (self.path / LOCK).exists():  # one that was killed at its very end has left it
            self._lock()
        if finished:
            self._remove_checkpoints()  # which that has left, too
        require_folder(settings)
        begun = _stored(self.path)
        for part, now in state.items():
            before = begun[part]
            free = OF_MACHINE if self.note(NUMBERS).exists() else set()
            changed = [k for k in sorted({*before, *now} - free) if before.get(k) != now.get(k)]
            if changed:
                details = "; ".join(f"{k}: {before.get(k)} then, {now.get(k)} now" for k in changed)
                raise UserError(
                    f"{self.path} was begun with other {part} ({details}). Restore them, or use a new --run."
                )
        self._before = float((self.finished("elapsed") or {}).get("seconds", 0.0))
        if distributed.is_main():
            remove_partials(self.path)
            for checkpoint in self.checkpoint("stage").parent.glob("*.pt"):
                if self.note(checkpoint.stem).exists():  # killed between the note and the removal
                    checkpoint.unlink()
            self.tidy_metrics()  # a line cut off must not run into the next one

    def checkpoint(self, stage: str) -> Path:
        """Where a stage keeps its checkpoint."""
        return self.path / "checkpoints" / f"{stage}.pt"

    @property
    def layer_states(self) -> Path:
        """Where the states after stage 1 are kept (stored_states.py)."""
        return self.path / "checkpoints" / "layer_states.safetensors"

    def finished(self, stage: str) -> dict[str, Any] | None:
        """The facts that a finished part was noted with; None where it is not finished. Raises UserError where
        that note is damaged, and as ``note``."""
        path = self.note(stage)
        cure = "Delete it to have that part done again."
        facts = read_state(path, cure) if path.exists() else None
        if facts is not None and not _is(facts.get("seconds", 0.0), float):
            raise damaged(path, cure)
        return facts

    def note(self, stage: str) -> Path:
        """The file that says that a part is finished. Raises UserError where the whole run is by now."""
        if is_finished(self.path):
            raise UserError(f"{self.path}: this run is finished. Give `run` another name to begin another.")
        return self.path / "checkpoints" / f"{stage}.json"

    def finish(self, stage: str, result: dict[str, Any]) -> None:
        """Note that a part is finished, with the facts that later ones need; its checkpoint is removed."""
        if not distributed.is_main():
            return
        self._require_there()
        write_state(result, self.note(stage))
        write_state({"seconds": self.seconds()}, self.note("elapsed"))
        self.checkpoint(stage).unlink(missing_ok=True)
        self.tidy_metrics()

    def _require_there(self) -> None:
        if not (self.path / "settings.json").exists():
            raise UserError(f"{self.path} was moved or removed while the run worked in it. Put it back, or begin anew.")

    def seconds(self) -> float:
        """Wall time of the run so far, without the time between a stop and its --resume."""
        return self._before + time.monotonic() - self._started

    def log(self, row: dict[str, Any]) -> None:
        """Append a step or an observation to metrics.jsonl, and send it to the tracker if there is one."""
        if not distributed.is_main():
            return
        try:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            self._require_there()
            raise OSError(error.errno, error.strerror, str(self.metrics)) from None
        self._tracking.log(row, self.metrics)

    def tidy_metrics(self) -> None:
        """One line a step and one an observation: a continued run takes the steps since its checkpoint again, and a
        killed one can leave half a line."""
        if not self.metrics.exists():
            return
        rows: dict[tuple[str, int, bool], dict[str, Any]] = {}
        for number, row in enumerate(load_jsonl(self.metrics), start=1):
            try:
                rows[row["stage"], row["step"], "loss" in row] = row
            except (KeyError, TypeError):
                raise damaged_line(self.metrics, number) from None
        write_jsonl(rows.values(), self.metrics)

    def close(self, report: dict[str, Any]) -> None:
        """Write report.json; after that nothing is left to continue."""
        self.tidy_metrics()
        write_json(report, self.path / "report.json")
        self._remove_checkpoints()
        self.leave()

    def leave(self) -> None:
        """Let other runs work in the folder."""
        self._tracking.finish()
        if self._held is not None:
            self._held.leave()

    def _remove_checkpoints(self) -> None:
        if distributed.is_main():
            shutil.rmtree(self.path / "checkpoints", ignore_errors=True)


def stored_settings(folder: Path, kind: type[AnySettings], **more: Any) -> AnySettings:
    """What a run folder keeps of the fields of ``kind``, as they were given or found, with ``more`` in place of those.

    Raises UserError for a folder that is no run of this kit, or a damaged one.
    """
    if not exists(folder):
        raise UserError(f"{folder}: no such run folder. `dcr-lite train smollm2_135m` makes one.")
    values = _stored(folder)["settings"]
    try:
        found = read_found(folder) or {}
        values |= {name: found[name] for name in FOUND_NAMES if name in found}
        hints = get_type_hints(kind)
        values = {name: value for name, value in values.items() if name in hints}
        for name in values:
            if hints[name] in (Path, Path | None):
                values[name] = Path(values[name])
            elif get_origin(hints[name]) is tuple:
                values[name] = tuple(map(Path if Path in get_args(hints[name]) else str, values[name]))
        values |= more
        if not all(_is(value, hints[name]) for name, value in values.items()):
            raise _damaged(folder)
        return kind(**values)
    except (ValueError, TypeError):
        raise _damaged(folder) from None


def read_found(folder: Path) -> dict[str, Any] | None:
    """What a run has found of its settings, with the evidence: RUN/found.json. None where it has not looked yet. Raises
    UserError where the file is damaged."""
    path, cure = folder / FOUND_FILE, "Restore it, or delete it and add --resume to have it found again."
    if not path.exists():
        return None
    found = read_state(path, cure)
    openings = found.get("openings")
    are_texts = isinstance(openings, list) and all(isinstance(one, str) and one for one in openings)
    if not set(FOUND_NAMES) - LATER <= found.keys() or not are_texts:
        raise damaged(path, cure)
    return found


def _is(value: object, hint: Any) -> bool:
    """Whether a value is of the type that a setting has."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return value in kinds
    if get_origin(hint) is tuple:  # tuple[Path, ...]
        return isinstance(value, tuple) and all(_is(one, kinds[0]) for one in value)
    if kinds:
        return any(_is(value, one) for one in kinds)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, Path) if hint is Path else type(value) is hint


def _stored(folder: Path) -> dict[str, dict[str, Any]]:
    """{settings, data} in a run folder's settings.json, shipped files where they are today: a run outlives the place at
    which its kit was installed. Raises UserError where it cannot be read."""
    try:
        found = load_json(folder / "settings.json")
        parts = {"settings": found["settings"], "data": found.get("data", {})}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise _damaged(folder) from None
    if not all(isinstance(part, dict) for part in parts.values()):
        raise _damaged(folder)
    return {
        part: {
            _here(key): [*map(_here, value)] if isinstance(value, list) else _here(value) for key, value in of.items()
        }
        for part, of in parts.items()
    }


def _here(value: Any) -> Any:
    """The path of a shipped file in this installation, for its path in any; every other value as it is."""
    is_shipped = isinstance(value, str) and Path(value).parts[-4:-1] == SHIPPED.parts[-3:]
    return str(SHIPPED / Path(value).name) if is_shipped else value


def _damaged(folder: Path) -> UserError:
    return UserError(
        f"{folder} is no run of this kit, or a damaged one: its settings.json cannot be read. Choose another --run."
    )


def read_settings(folder: Path) -> Settings:
    """The settings of a run folder. Raises UserError where it is none, or where a data file is not what it was: the
    split into training and development pairs would be another."""
    settings = stored_settings(folder, Settings, run=folder)
    known = _stored(folder)["data"]
    changed = [file for file, print_ in _fingerprints(settings).items() if known.get(file, print_) != print_]
    if changed:
        raise UserError(f"{folder} was made with other rows in {', '.join(changed)}. Restore them, or run it anew.")
    return settings


def _fingerprints(settings: Settings) -> dict[str, str]:
    """SHA-256 of every data file, so that a run is never continued on other rows."""
    files = (*settings.files.values(), settings.augmentation_rows, *settings.evaluation)
    return {str(file): hashlib.sha256(read_bytes(file)).hexdigest()[:16] for file in files}
