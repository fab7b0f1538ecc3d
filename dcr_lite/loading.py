"""From settings to a model: the machine that computes, whether the model fits into its memory, and the weights on it.

Nothing is loaded before the memory that it needs is known; docs/families.md says how that is estimated.
"""

from dataclasses import dataclass

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from dcr_lite import backend, distributed, unsloth_backend
from dcr_lite.backend import Model
from dcr_lite.chat_formats import set_format
from dcr_lite.errors import UserError
from dcr_lite.fit import Fit, fit, free_memory, needs, shape_of
from dcr_lite.memory import KNOWN
from dcr_lite.settings import Settings
from dcr_lite.terminal import console
from dcr_lite.weights import locate


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and in which numbers."""

    device: str
    precision: torch.dtype
    four_bit: bool


def machine(settings: Settings) -> Machine:
    """The machine that the settings choose. Raises UserError for a device that is not there."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU. Use --device cpu, or install a CUDA build of torch.")
    elif device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no GPU of a Mac. Use --device cpu.")
    precision = backend.best_precision(device) if settings.precision == "auto" else getattr(torch, settings.precision)
    four_bit = device == "cuda" if settings.four_bit is None else settings.four_bit
    return Machine(device, precision, four_bit)


def _locate(model: str) -> tuple[str, str]:
    """As weights.locate; of several processes the first alone fetches what is not here yet."""
    distributed.on_main(lambda: locate(model))
    return locate(model)


def will_it_fit(settings: Settings) -> dict[str, str]:
    """The memory that each part of the run is estimated to take and what is free, as lines to show. Nothing is loaded.

    Raises UserError where the model does not fit a card even with one row at a time.
    """
    known = settings.model in KNOWN  # then not even its weights have to be fetched to know
    return _fit(settings.model if known else _locate(settings.model)[0], settings, machine(settings)).lines()


def _fit(model: str, settings: Settings, on: Machine) -> Fit:
    free = free_memory(on.device)
    try:
        shape = shape_of(model)
    except UserError:  # a model of another kind: whether it can be used is for loading it to say
        return Fit({}, {}, free)
    parts = needs(shape, settings, on.four_bit, on.precision.itemsize)
    return fit(parts, free, settings.model, insist=on.device != "cpu")


def load_base(settings: Settings) -> tuple[Model, str]:
    """The base model alone, and where it came from in words."""
    on = machine(settings)
    path, source = _locate(settings.model)
    choice = unsloth_backend.choose(settings.backend, on.device, unsloth_backend.architecture_of(path))
    fitting = _fit(path, settings, on)
    if not console.is_terminal:
        transformers_logging.disable_progress_bar()  # one long line of them in a file
    try:
        model = backend.load(path, on.device, on.precision, on.four_bit, choice)
        set_format(model.tokenizer, settings.chat_format)
    except torch.OutOfMemoryError:
        raise UserError(
            f"memory runs out while {settings.model} is loaded. Close what else uses it, load the model with "
            "--four-bit True, or take the recipe of a smaller one; --plan shows what fits which card."
        ) from None
    except (OSError, ValueError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{settings.model} cannot be loaded as a chat model: {reason}") from None
    model.tokens_in = fitting.units
    model.prompts_at_once = fitting.units.get("evaluation", model.prompts_at_once)
    return model, source
