"""What would end a run as it begins, in sentences: for the run itself, and for ``dcr-lite check``."""

from importlib.util import find_spec
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.settings import FOUND, Settings

LOCK = "run.lock"
# Of each tracker the packages of which it needs one; the first is the one to install.
PACKAGES = {"trackio": ("trackio",), "wandb": ("wandb",), "tensorboard": ("tensorboard", "tensorboardX")}


def is_new(folder: Path) -> bool:
    """Whether nothing was done in a folder: there is none, or its run was stopped by an error before anything was."""
    found = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    return not found - {"settings.json", "settings.json.partial", LOCK}


def is_finished(folder: Path) -> bool:
    """Whether the run in a folder has its report."""
    return (folder / "report.json").exists()


def require_folder(settings: Settings) -> None:
    """Raises UserError where what lies in the run's folder keeps it from beginning there, or from going on."""
    folder = settings.run
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file. Choose another folder with --run.")
    if is_new(folder):
        return
    if not (folder / "settings.json").exists():
        raise UserError(f"{folder} is not empty and no run of this kit. Choose another folder with --run.")
    if is_finished(folder):
        raise UserError(f"{folder} holds a finished run: look at its report.md, or choose another folder with --run.")
    if not settings.resume:
        raise UserError(f"{folder} holds a stopped run: add --resume, or choose another folder with --run.")


def require_tracker(settings: Settings) -> None:
    """Raises UserError where the tracker's package is not installed. Nothing is imported."""
    packages = PACKAGES.get(settings.track, ())
    if packages and not any(map(find_spec, packages)):
        raise UserError(
            f"--track {settings.track}: {packages[0]} is not installed. pip install {packages[0]}, or leave the flag "
            "out: every step is in the run's metrics.jsonl."
        )


def require_layer(settings: Settings, layers: int) -> None:
    """Raises UserError where L is none of a model with so many decoder layers."""
    if settings.layer != FOUND and not 0 <= settings.layer < layers - 1:
        raise UserError(
            f"--layer {settings.layer}: {settings.model} has {layers} layers, so L goes from 0 to {layers - 2} "
            "(stage 2 trains what is above). Half the depth is a good first choice."
        )
