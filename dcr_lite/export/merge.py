"""Adds a LoRA adapter to the weights of its base model, one tensor at a time.

peft merges the whole network in memory: 16 GB for 8 billion weights, more than a free notebook has. Here each tensor is
read from the base's files, which hold 16-bit weights; merged into 4-bit weights, the adapter would be lost in rounding.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_json, load_tensors, sha256_of
from dcr_lite.model.adapters import PREFIX, WEIGHTS

MADE_OF = "dcr_lite.adapter"  # in the metadata of an export: the digest of its adapter's weights
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Merged:
    """The tensors of ``base`` (a folder that transformers saved) plus ``adapter`` (a folder that peft saved, or None).

    files: the names of the tensors in each of the base's safetensors files, in order. made_of: what the metadata of an
    export says of the adapter.
    Raises UserError where the base is quantised, a file is missing or damaged, or the adapter belongs to another model.
    """

    def __init__(self, base: Path, adapter: Path | None):
        self.base = base
        if "quantization_config" in read_json(base / "config.json"):
            raise UserError(f"{base} holds quantised weights. Give the 16-bit base model with --base.")
        self.files = _files(base)
        factors = _factors(adapter / WEIGHTS) if adapter else {}
        self.made_of = {MADE_OF: sha256_of(adapter / WEIGHTS)} if adapter else {}
        known = {name for names in self.files.values() for name in names}
        stored = {name: _as_stored(name, known) for name in factors}
        self._factors = {stored[name]: pair for name, pair in factors.items()}
        for name, (a, b) in self._factors.items():
            fits = a.dim() == b.dim() == 2 and a.shape[0] == b.shape[1]
            if name not in known or not fits or self.shape(name) != (b.shape[0], a.shape[1]):
                raise UserError(f"{adapter} belongs to another model than {base}: {name} does not fit. Check both.")
        scales = _scales(read_json(adapter / "adapter_config.json"), factors, adapter) if adapter else {}
        self._scales = {stored[name]: scale for name, scale in scales.items()}

    def _file_of(self, name: str) -> Path:
        return self.base / next(file for file, names in self.files.items() if name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read."""
        with safe_open(self._file_of(name), "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    @property
    def changed(self) -> list[str]:
        """The names of the tensors to which the adapter adds something."""
        return list(self._factors)

    def first_rows(self, name: str, rows: int) -> Tensor:
        """Of a matrix of the base."""
        with safe_open(self._file_of(name), "pt") as file:
            found: Tensor = file.get_slice(name)[:rows]
        return found

    def tensor(self, name: str) -> Tensor:
        """W + (alpha / rank) B A, computed in float32 and rounded once to the base's type; other tensors unchanged."""
        with safe_open(self._file_of(name), "pt") as file:
            weight = file.get_tensor(name)
        if name not in self._factors:
            return weight
        a, b = self._factors[name]
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=self._scales[name]).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return (name for names in self.files.values() for name in names)

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def bytes(self) -> int:
        """Size of the merged weights on the disk, which is that of the base."""
        return sum((self.base / file).stat().st_size for file in self.files)

    @property
    def largest_file_bytes(self) -> int:
        """Size of the largest file of the base."""
        return max((self.base / file).stat().st_size for file in self.files)

    @property
    def largest_tensor_bytes(self) -> int:
        """Size of the largest tensor in float32, in which it is merged or quantised."""
        return 4 * max(torch.Size(self.shape(name)).numel() for name in self)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file of the base or of the adapter. Raises UserError where it is missing or damaged."""
    try:
        found = load_json(path)
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"{path} is missing or damaged. Get that folder again.")
    return found


def adapter_scales(adapter: Path) -> dict[str, float]:
    """alpha / rank of each weight that an adapter changes, by its name in the base."""
    return _scales(read_json(adapter / "adapter_config.json"), _factors(adapter / WEIGHTS), adapter)


def _as_stored(name: str, known: set[str]) -> str:
    """A weight's name in the base's files: models that read pictures as well (Gemma 3) keep older names there than the
    modules have."""
    older = re.sub(r"^model\.language_model\.", "language_model.model.", name)
    return older if older in known else name


def _scales(config: dict[str, Any], factors: dict[str, tuple[Tensor, Tensor]], adapter: Path) -> dict[str, float]:
    """alpha / rank of each weight that the adapter changes: a pattern may give some of them others than the usual."""
    try:
        scales = {name: _of(config, "lora_alpha", name) / _of(config, "r", name) for name in factors}
        if all(_of(config, "r", name) == len(a) and math.isfinite(scales[name]) for name, (a, _) in factors.items()):
            return scales
    except (KeyError, TypeError, AttributeError, ArithmeticError, re.error):
        pass
    raise UserError(f"{adapter / 'adapter_config.json'} is damaged. Restore the run folder, or choose another run.")


def _of(config: dict[str, Any], key: str, name: str) -> Any:
    """``key`` ("r" or "lora_alpha") for the weight ``name``, as peft finds it."""
    pattern = config.get({"r": "rank_pattern", "lora_alpha": "alpha_pattern"}[key]) or {}
    return pattern.get(get_pattern_key(pattern, name.removesuffix(".weight")), config[key])


def _files(base: Path) -> dict[str, list[str]]:
    files = [SINGLE]
    if (base / INDEX).exists():
        named = read_json(base / INDEX).get("weight_map")
        # A name that leads out of the folder would lead out of the exported one too.
        if not isinstance(named, dict) or not all(isinstance(f, str) and f == Path(f).name for f in named.values()):
            raise UserError(f"{base / INDEX} is damaged. Get that model again.")
        files = sorted(set(named.values()))
    names: dict[str, list[str]] = {}
    for file in files:
        try:
            with safe_open(base / file, "pt") as opened:
                names[file] = list(opened.keys())
        except (OSError, SafetensorError):
            raise UserError(f"{base / file} is missing or damaged. Get that model again.") from None
    return names


def _factors(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """(A: rank inputs, B: outputs rank) of each weight that the adapter changes, by its module's name in the base."""
    cure = "Restore the run folder, or choose another run."
    weights = load_tensors(file, cure)
    try:
        return {
            key.removeprefix(PREFIX).replace(".lora_A.weight", ".weight"): (a, weights[key.replace("lora_A", "lora_B")])
            for key, a in weights.items()
            if "lora_A" in key
        }
    except KeyError:
        raise damaged(file, cure) from None
