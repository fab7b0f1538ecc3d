"""A run on a base whose weights lie off the steps of the 4-bit file that they come from.

    python benchmarks/off_grid.py --run RUN --out OUT
    python benchmarks/quantised.py --model OUT/run --out runs/quantised

Weights that were written out of a 4-bit file lie on its steps. Rounded to 4 bits again most of them come back all but
exactly, and take what an adapter has added with them, however large that is together, as long as it is less than half a
step at a time. A maker's 16-bit weights lie anywhere between two steps, and of a small change about as much is left on
average as was added. Here every weight is moved at random by up to half a step, evenly, which leaves it where a 16-bit
weight may have been that the file rounded to it. Writes OUT/base, and OUT/run, the adapters of the run and what opens
them.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import load_file, save_file
from torch import Tensor

from dcr_lite.data.sources import locate
from dcr_lite.errors import UserError
from dcr_lite.files import write_text
from dcr_lite.names import STOCK, models_of
from dcr_lite.run.opening import adapter_of, model_settings_of
from dcr_lite.run.run_folder import stored_settings
from dcr_lite.settings import Settings

BLOCK = 16  # weights with one scale in every type of a 4-bit file, or a part of those that have


@dataclass
class Choices:
    """What to copy."""

    run: Path
    """A finished run."""
    out: Path
    """A new folder."""
    seed: int = 0


def off_grid(weight: Tensor, generator: torch.Generator) -> Tensor:
    """Each weight of a matrix moved by up to half a step, evenly: as it is where a block has one value only. A step is
    the least distance of two different values of a block of BLOCK."""
    blocks = weight.float().reshape(-1, BLOCK)
    gaps = blocks.sort(1).values.diff(dim=1)
    step = gaps.where(gaps > 0, torch.inf).amin(1, keepdim=True)
    step = step.where(step.isfinite(), 0)
    moved = blocks + step * (torch.rand(blocks.shape, generator=generator) - 0.5)
    return moved.reshape(weight.shape).to(weight.dtype)


def main(choices: Choices) -> None:
    if choices.out.exists():
        raise UserError(f"{choices.out} exists already. Remove it, or choose another --out.")
    trained = models_of(stored_settings(choices.run, Settings, run=choices.run).compare_with)
    adapters = [adapter_of(choices.run, method) for method in trained if method != STOCK]
    model = model_settings_of(choices.run).model
    source, base, run = Path(locate(model)[0]), choices.out / "base", choices.out / "run"
    generator = torch.Generator().manual_seed(choices.seed)
    shutil.copytree(source, base)
    for file in sorted(base.glob("*.safetensors")):
        tensors = load_file(file)
        for name, tensor in tensors.items():
            if tensor.dim() == 2 and tensor.shape[1] % BLOCK == 0:
                tensors[name] = off_grid(tensor, generator)
        save_file(tensors, file, {"format": "pt"})
    for adapter in adapters:
        shutil.copytree(adapter, run / adapter.name)
    for file in (choices.run / "found.json", choices.run / "settings.json"):
        if file.exists():
            shutil.copyfile(file, run / file.name)
    for file in (run / "settings.json", *run.glob("*/adapter_config.json")):
        write_text(file, file.read_text(encoding="utf-8").replace(json.dumps(model), json.dumps(str(base))))


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
