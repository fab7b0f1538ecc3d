"""Where a stage stands, kept in a file that is whole or absent, so that a stopped run goes on from it."""

import math
import pickle
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.files import damaged, write_whole
from dcr_lite.model import distributed
from dcr_lite.model.adapters import adapter_weights, set_adapter_weights
from dcr_lite.model.loading import Model

NO_ARCHIVE = (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError)
CURE = "Delete it to have the stage begin anew."


@dataclass
class Progress:
    """Where a stage stands: what a checkpoint holds besides the adapter and the optimizer. gradient_scale,
    tokens_per_pass: those of the model, which a run that goes on takes over."""

    step: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] | None = None
    seconds: float = 0.0
    gradient_scale: float | None = None
    tokens_per_pass: int | None = None


def save_checkpoint(
    path: Path, model: Model, adapter: str, optimizer: torch.optim.Optimizer, progress: Progress
) -> None:
    """Write a checkpoint; of several processes only the first does. Raises UserError where the disk is full."""
    progress.gradient_scale, progress.tokens_per_pass = model.gradient_scale, model.tokens_per_pass
    if distributed.is_main():
        weights = adapter_weights(model, adapter)
        write({"weights": weights, "optimizer": optimizer.state_dict(), "progress": vars(progress)}, path)


def write(state: Any, path: Path) -> None:
    """torch.save that leaves the old file or the whole new one. Raises UserError where the disk is full."""
    try:
        write_whole(path, lambda partial: torch.save(state, partial))
    except (OSError, RuntimeError) as error:  # torch's own writer raises RuntimeError where the disk is full
        reason = getattr(error, "strerror", None) or "the disk took only a part"
        raise UserError(f"{path}: cannot be written ({reason}); free some disk, then go on with --resume") from None


def _read(path: Path) -> dict[str, Any]:
    """What a checkpoint holds. torch does not compare the digests that the file, a zip archive, has of its parts."""
    try:
        with zipfile.ZipFile(path) as parts:
            if parts.testzip() is not None:
                raise damaged(path, CURE)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, KeyError, EOFError, *NO_ARCHIVE):
        raise damaged(path, CURE) from None


def restore_checkpoint(path: Path | None, model: Model, adapter: str, optimizer: torch.optim.Optimizer) -> Progress:
    """The progress of a checkpoint, whose weights and optimizer state are put in place; a fresh one where there is
    none."""
    if path is None or not path.exists():
        return Progress()
    saved = _read(path)
    try:
        set_adapter_weights(model, adapter, saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        progress = Progress(**saved["progress"])
    except (KeyError, TypeError, ValueError, RuntimeError):  # of another version, or of another model
        raise damaged(path, CURE) from None
    model.gradient_scale = progress.gradient_scale or model.gradient_scale
    model.tokens_per_pass = min(progress.tokens_per_pass or model.tokens_per_pass, model.tokens_per_pass)
    return progress
