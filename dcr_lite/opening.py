"""A model under whatever name people have for it: a run folder, an adapter, a model folder, or a name on the Hub."""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer

from dcr_lite import backend, job, loading
from dcr_lite.backend import Model
from dcr_lite.errors import UserError
from dcr_lite.scoring import settings_of
from dcr_lite.settings import Settings
from dcr_lite.weights import locate

Method = Literal["dcr", "safety_sft", "base"]
ADAPTER = "opened"  # the name of the adapter on the opened model


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


def open_model(
    name: str,
    method: Method = "dcr",
    device: Literal["auto", "cpu", "cuda"] = "auto",
    precision: Literal["auto", "bfloat16", "float32"] = "auto",
    four_bit: bool | None = None,
) -> Opened:
    """Open ``name``. Of a run, ``method`` says which of its models. A run's precision and quantisation stand unless
    others are asked for.

    Raises UserError for what is nothing of the kind, a run that is not finished, or an adapter of another base.
    """
    folder = Path(name)
    adapter: Path | None = None
    if (folder / "settings.json").exists() and not (folder / "config.json").exists():
        settings = settings_of(folder)
        adapter = _adapter_of(folder, method)
    elif method != "dcr":
        raise UserError(f"--method {method} chooses among the models of a run, and {name} is no run folder")
    else:
        adapter = _adapter_folder(name)
        settings = Settings(model=name if adapter is None else _base_of(adapter), run=folder, layer=0)
    settings = replace(
        settings,
        device=device,
        precision=settings.precision if precision == "auto" else precision,
        four_bit=settings.four_bit if four_bit is None else four_bit,
    )
    model, source = loading.load_base(settings)
    if adapter is None:
        return Opened(model, settings.model, source, None, None)
    if not model.tokenizer.chat_template and (adapter / "tokenizer_config.json").exists():
        model.tokenizer = AutoTokenizer.from_pretrained(adapter)  # a base model, whose adapter brought a chat format
    backend.load_adapter(model, ADAPTER, adapter)
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    return Opened(model, settings.model, source, adapter, digest)


def _adapter_of(run: Path, method: Method) -> Path | None:
    if method == job.STOCK:
        return None
    adapter = run / ("adapter" if method == job.DCR else method)
    if not (adapter / "adapter_config.json").exists() or not (adapter / "adapter_model.safetensors").exists():
        raise UserError(f"{run} holds a run that is not finished ({adapter.name}/ is missing): --resume it first.")
    return adapter


def _adapter_folder(name: str) -> Path | None:
    """The folder of the adapter that ``name`` is, here or on the Hub; None for a whole model."""
    folder = Path(name)
    if not folder.exists():
        folder = Path(locate(name)[0])
    if not (folder / "adapter_config.json").exists():
        return None
    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"{folder}: an adapter without weights (no adapter_model.safetensors in it)")
    return folder


def _base_of(adapter: Path) -> str:
    try:
        return str(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (ValueError, KeyError):
        raise UserError(
            f"{adapter}: its adapter_config.json does not say what base model it belongs to (base_model_name_or_path)"
        ) from None
