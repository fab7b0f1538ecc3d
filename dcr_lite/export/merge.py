"""A base model's weights with a LoRA adapter added, one tensor at a time.

Merging a whole network, as peft does, asks for the memory of all its weights at once: 16 GB for 8 billion of them, more
than a free notebook has. The sum is the same tensor by tensor, straight from the base's files, and those are the base's
own 16 bits: an adapter added to 4-bit weights would be rounded away with them.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from dcr_lite.errors import UserError

ADAPTER_FILE = "adapter_model.safetensors"
PREFIX = "base_model.model."  # what peft puts before the name of a module
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


class Merged:
    """The tensors of ``base`` (a folder as transformers saves it) with the adapter in ``adapter`` (a folder as peft
    saves it) added.

    files: the names of the tensors in each of the base's safetensors files, in order.
    Raises UserError where the base is quantised, a file is missing or damaged, or the adapter belongs to another model.
    """

    def __init__(self, base: Path, adapter: Path):
        self.base = base
        if "quantization_config" in _read_json(base / "config.json"):
            raise UserError(f"{base} holds quantised weights, and an adapter is merged into 16-bit ones. Give --base.")
        self.files = _files(base)
        config = _read_json(adapter / "adapter_config.json")
        self._scale = config["lora_alpha"] / config["r"]
        self._factors = _factors(adapter / ADAPTER_FILE)
        known = {name for names in self.files.values() for name in names}
        if strange := sorted(self._factors.keys() - known):
            raise UserError(f"{adapter} belongs to another model than {base}, which has no {strange[0]}. Check both.")
        for name, (a, b) in self._factors.items():
            if self.shape(name) != (b.shape[0], a.shape[1]):
                raise UserError(
                    f"{adapter} belongs to another model than {base}: {name} has another shape. Check both."
                )

    def _file_of(self, name: str) -> Path:
        return self.base / next(file for file, names in self.files.items() if name in names)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        with safe_open(self._file_of(name), "pt") as file:
            return tuple(file.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """W + (alpha / r) B A, summed in float32 and rounded once to the base's own type; other tensors as they are."""
        with safe_open(self._file_of(name), "pt") as file:
            weight = file.get_tensor(name)
        if name not in self._factors:
            return weight
        a, b = self._factors[name]
        return torch.addmm(weight.float(), b.float(), a.float(), alpha=self._scale).to(weight.dtype)

    def __iter__(self) -> Iterator[str]:
        return (name for names in self.files.values() for name in names)

    def __len__(self) -> int:
        return sum(map(len, self.files.values()))

    @property
    def bytes(self) -> int:
        """Of the merged weights on the disk: those of the base."""
        return sum((self.base / file).stat().st_size for file in self.files)

    @property
    def largest_file_bytes(self) -> int:
        """Of the largest of the base's files."""
        return max((self.base / file).stat().st_size for file in self.files)

    @property
    def largest_tensor_bytes(self) -> int:
        """Of the largest tensor in float32, as which it is summed or quantised."""
        return 4 * max(torch.Size(self.shape(name)).numel() for name in self)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(f"{path} is missing or damaged. Get that folder anew.") from None


def _files(base: Path) -> dict[str, list[str]]:
    files = [SINGLE]
    if (base / INDEX).exists():
        files = sorted(set(_read_json(base / INDEX)["weight_map"].values()))
    names: dict[str, list[str]] = {}
    for file in files:
        try:
            with safe_open(base / file, "pt") as opened:
                names[file] = list(opened.keys())
        except (OSError, SafetensorError):
            raise UserError(f"{base / file} is missing or damaged. Get that model anew.") from None
    return names


def _factors(file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """(A: rank x inputs, B: outputs x rank) by the name of the weight that they add to."""
    try:
        weights = load_file(file)
    except (OSError, SafetensorError):
        raise UserError(f"{file} is missing or damaged. Restore the run folder, or choose another run.") from None
    return {
        key.removeprefix(PREFIX).replace(".lora_A.weight", ".weight"): (a, weights[key.replace("lora_A", "lora_B")])
        for key, a in weights.items()
        if "lora_A" in key
    }
