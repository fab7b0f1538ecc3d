"""A model by any name, a run folder, an adapter, a model folder or a name on the Hub, loaded where it fits.

Nothing is loaded before the memory that it needs is known; docs/families.md says how that is estimated.
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging as transformers_logging

from dcr_lite.data.sources import locate
from dcr_lite.errors import MORE_MEMORY, UserError, first_line, out_of_memory
from dcr_lite.files import exists, load_json, require_disk, sha256_of, size_of
from dcr_lite.model import adapters, configuration, cuda, distributed, loading, unsloth
from dcr_lite.model.architectures import require_known
from dcr_lite.model.chat import set_format
from dcr_lite.model.free_memory import free_memory, within_limits
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import Fit, disk_need, evaluation_need, fit, needs
from dcr_lite.model.shapes import KNOWN, shape_of
from dcr_lite.names import BASELINE, DCR, STOCK, ModelName
from dcr_lite.run.obstacles import require_layer
from dcr_lite.run.run_folder import read_found, stored_settings
from dcr_lite.run.same_numbers import in_begun_numbers
from dcr_lite.run.terminal import console
from dcr_lite.settings import ModelSettings, Settings

ADAPTER = "opened"  # the name of the adapter on the opened model
LARGE = 1e9  # weights: on a CPU such a model takes hours, and swapping would make them days


@dataclass(frozen=True)
class Machine:
    """Where a run computes, and in which numbers."""

    device: str
    precision: torch.dtype
    four_bit: bool


def machine(settings: ModelSettings) -> Machine:
    """The machine that the settings choose. Raises UserError for a device that is not there, and for an NVIDIA card
    that cannot be used: eight billion weights must not begin on the CPU because a driver is old."""
    if settings.device in ("auto", "cuda") and (obstacle := cuda.obstacle()):
        raise UserError(obstacle)
    device = cuda.device_of(settings.device)
    auto = settings.precision == "auto"
    precision = _best_precision(device, settings.model) if auto else getattr(torch, settings.precision)
    four_bit = device == "cuda" if settings.quantization == "auto" else settings.quantization == "nf4"
    return Machine(device, precision, four_bit)


def _best_precision(device: str, model: str) -> torch.dtype:
    """What the device computes best in, but float32 instead of float16 for a model that outgrows it."""
    precision = loading.best_precision(device)
    if precision == torch.float16:
        with contextlib.suppress(UserError):  # whether it can be used at all is for loading it to say
            return torch.float32 if shape_of(model).exceeds_float16 else precision
    return precision


def _locate(model: str) -> tuple[str, str]:
    """As sources.locate; of several processes the first alone fetches what is not here yet, and each looks for itself,
    once: weights are read whole for their digest."""
    found = distributed.on_main(lambda: locate(model))
    return found if distributed.is_main() else locate(model)


def will_it_fit(settings: Settings) -> dict[str, str]:
    """The memory that each part of the run is estimated to take and what is free, as lines to show. Nothing is loaded.

    Raises UserError where the model does not fit a card even with one row at a time.
    """
    settings = in_begun_numbers(settings)
    known = settings.model in KNOWN  # then not even its weights have to be fetched to know
    path = settings.model if known else _locate(settings.model)[0]
    fitting = what_fits(path, settings, machine(settings))
    if fitting.needs:
        written = size_of(settings.run)  # before a stop
        require_disk(settings.run, round(disk_need(shape_of(path), settings.rank)) - written)
    return fitting.lines()


def what_fits(model: str, settings: ModelSettings, on: Machine) -> Fit:
    """What fits into the memory that is free now, of a model by its folder or name; empty where its need is unknown.

    Raises UserError where the estimate decides and not even the least fits.
    """
    free = free_memory(on.device)
    try:
        shape = shape_of(model)
    except UserError:  # a model of another kind: whether it can be used is for loading it to say
        return Fit({}, {}, {}, free)
    if isinstance(settings, Settings):
        parts = needs(shape, settings, on.four_bit, on.precision.itemsize, on.device == "cpu")
    else:  # no run: the model only answers
        parts = [evaluation_need(shape, on.four_bit, on.precision.itemsize)]
    # A computer can swap, and a small model soon fits: only for others, and within limits, the estimate decides.
    insist = on.device != "cpu" or shape.parameters > LARGE or within_limits() < float("inf")
    return fit(parts, free, settings.model, insist)


def load_base(settings: ModelSettings) -> tuple[Model, str]:
    """The base model alone, and where it came from in words."""
    on = machine(settings)
    path, source = _locate(settings.model)
    choice = unsloth.choose(settings.backend, on.device, unsloth.architecture_of(path))
    fitting = what_fits(path, settings, on)
    if not console.is_terminal:
        transformers_logging.disable_progress_bar()  # one long line of them in a file
    try:
        model = loading.load(path, on.device, on.precision, on.four_bit, choice)
        set_format(model.tokenizer, settings.chat_format)
        model.tokenizer("a")  # a damaged one can load, and fail at every text
        require_known(model, isinstance(settings, Settings))
    except UserError:
        raise
    except Exception as error:  # transformers raises errors of every kind for a folder that is not as it should be
        if out_of_memory(error):
            raise UserError(f"memory runs out while {settings.model} is loaded. {MORE_MEMORY}") from None
        raise UserError(f"{settings.model} cannot be loaded as a chat model: {first_line(error)}") from None
    model.tokens_in, model.longest_in = fitting.units, fitting.longest
    model.prompts_at_once = fitting.units.get("evaluation", model.prompts_at_once)
    return model, source


def load_model(settings: Settings) -> tuple[Model, str]:
    """The base model with an adapter for each model to be trained, and where it came from in words."""
    model, source = load_base(in_begun_numbers(settings))
    knows_openings(model, settings.run)
    require_layer(settings, depth(model.network))
    for name in (DCR, *settings.compare_with):
        adapters.add_adapter(model, name, settings.rank, settings.seed)
    for config in model.network.peft_config.values():
        config.base_model_name_or_path = settings.model  # not this machine's cache: the adapter travels
    return model, source


def knows_openings(model: Model, run: Path) -> None:
    """Tell the model how it begins its refusals, where the run in this folder has found that."""
    if found := read_found(run):
        model.openings = tuple(found["openings"])


# --- what was trained before ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Opened:
    """A model, ready to be measured.

    base: the folder or Hub name of its base model; source: where that came from, in words.
    adapter: the folder of its adapter, None where it has none; adapter_sha256: the digest of those weights.
    """

    model: Model
    base: str
    source: str
    adapter: Path | None
    adapter_sha256: str | None


def open_model(name: str, method: ModelName = "dcr", **changes: Any) -> Opened:
    """Open ``name``. Of a run, ``method`` says which of its models. ``changes``: device, precision, quantization; a
    run's own stand unless others than "auto" are asked for.

    Raises UserError for what is nothing of the kind, a run that is not finished, or an adapter of another base.
    """
    folder = Path(name)
    if is_run_folder(folder):
        run, settings = folder, model_settings_of(folder)
        adapter = None if method == STOCK else adapter_of(folder, method)
    elif method != DCR:
        raise UserError(f"--method {method} chooses among the models of a run, and {name} is no run folder")
    else:
        adapter = _adapter_folder(name)
        run = (adapter or folder).resolve().parent  # of an adapter in a run folder; another has found no openings
        settings = ModelSettings(model=name if adapter is None else _base_of(adapter))
    settings = replace(settings, **{key: value for key, value in changes.items() if value != "auto"})
    model, source = load_base(settings)
    knows_openings(model, run)
    if adapter is None:
        return Opened(model, settings.model, source, None, None)
    if (adapter / "tokenizer_config.json").exists():
        own = loading.load_tokenizer(adapter)
        if own.chat_template:  # prompts as in its training, which may have had another format than its base brings
            configuration.set_up_tokenizer(own, model.network)
            model.tokenizer = own
    adapters.load_adapter(model, ADAPTER, adapter)
    return Opened(model, settings.model, source, adapter, sha256_of(adapter / adapters.WEIGHTS))


def is_run_folder(folder: Path) -> bool:
    """Whether there is a run in a folder, and no model."""
    return exists(folder / "settings.json") and not exists(folder / "config.json")


def require_finished(run: Path) -> None:
    """Raises UserError where the run in a folder has not ended."""
    if not (run / "report.json").exists():
        raise UserError(f"{run} holds a run that is not finished: --resume it first.")


def model_settings_of(run: Path) -> ModelSettings:
    """What has to be known to load the base model of a run; the device and the backend are this machine's."""
    return stored_settings(run, ModelSettings, device="auto", backend="auto")


def adapter_of(run: Path, method: str) -> Path:
    """The folder of a method's adapter in a run. Raises UserError where the run has none, or is not finished."""
    if method == BASELINE and BASELINE not in stored_settings(run, Settings, run=run).compare_with:
        raise UserError(
            f"{run} trained no safety SFT alone to compare with: run it anew with --compare-with {BASELINE}"
        )
    adapter = run / ("adapter" if method == DCR else method)
    if not (adapter / "adapter_config.json").exists() or not (adapter / adapters.WEIGHTS).exists():
        raise UserError(f"{run} holds a run that is not finished ({adapter.name}/ is missing): --resume it first.")
    return adapter


def _adapter_folder(name: str) -> Path | None:
    """The folder of the adapter that ``name`` is, here or on the Hub; None for a whole model."""
    folder = Path(name)
    if not exists(folder):
        folder = Path(locate(name)[0])
    if not (folder / "adapter_config.json").exists():
        return None
    if not (folder / adapters.WEIGHTS).exists():
        raise UserError(f"{folder}: an adapter without weights (no {adapters.WEIGHTS} in it)")
    return folder


def _base_of(adapter: Path) -> str:
    try:
        return str(load_json(adapter / "adapter_config.json")["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(
            f"{adapter}: its adapter_config.json does not say what base model it belongs to (base_model_name_or_path)"
        ) from None
