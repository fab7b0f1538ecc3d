"""In which numbers a run computes: one that goes on, on another machine perhaps, does so in the same. States and
answers that it has kept would else be those of another model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.files import read_state
from dcr_lite.model.loading import Model
from dcr_lite.run.run_folder import NUMBERS, RunFolder, read_found
from dcr_lite.settings import Settings


def in_begun_numbers(settings: Settings) -> Settings:
    """The settings with the precision and the quantization that their run folder was begun in, where they leave these
    to the machine."""
    begun = _noted(settings.run)
    left = {name: value for name, value in begun.items() if getattr(settings, name) == "auto"}
    return replace(settings, **left)


def require_same_numbers(run: RunFolder, model: Model) -> None:
    """Raises UserError where the run was begun in other numbers than its model's. One that has its settings from
    elsewhere, as further seeds and reruns of a comparison have, begins here."""
    now, begun = _numbers(model), _noted(run.path)
    if asked := [f"--{name} {begun[name]}" for name in begun if begun[name] != now[name]]:
        flags = " ".join(asked)
        raise UserError(f"{run.path} was begun in other numbers: go on with {flags}, or begin anew with another --run.")
    if read_found(run.path):
        note_numbers(run, model)


def note_numbers(run: RunFolder, model: Model) -> None:
    """Note in which numbers the run computes, where that is not known yet."""
    if not _noted(run.path):
        run.finish(NUMBERS, _numbers(model))


def take_numbers(run: RunFolder, other: Path) -> None:
    """Begin in the numbers that another run folder was begun in."""
    if (begun := _noted(other)) and not _noted(run.path):
        run.finish(NUMBERS, begun)


def _numbers(model: Model) -> dict[str, str]:
    quantization = "nf4" if model.four_bit else "none"
    return {"precision": str(model.precision).removeprefix("torch."), "quantization": quantization}


def _noted(run: Path) -> dict[str, Any]:
    """What a run folder notes of them; nothing before it does, and when it is finished."""
    path = run / "checkpoints" / f"{NUMBERS}.json"
    found = read_state(path, "Delete it to go on in this machine's numbers.") if path.exists() else {}
    return {name: found[name] for name in ("precision", "quantization") if name in found}
