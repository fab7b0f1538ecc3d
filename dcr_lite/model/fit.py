"""Will it fit? What each stage of a run needs, against the memory that is free, and how many tokens may go through the
model at once so that it does. A batch that is cut into passes keeps its size, its negatives and its exact gradients
(see gradcache), it only takes longer."""

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.model import memory
from dcr_lite.model.memory import Shape
from dcr_lite.settings import Settings

MOST_TOKENS = 4096  # of one pass: more fill neither two cores nor one card any better
LEAST_TOKENS = 128  # about one row; a longer row goes through alone
MOST_PROMPTS = 128  # answered together
PROMPT_TOKENS, ROW_TOKENS = 64, 512  # of a prompt in the chat template, and of a long training row: for the estimate
LOGITS = 128  # answer tokens whose logits exist at once


@dataclass(frozen=True)
class Need:
    """The memory of one part of a run: ``fixed`` bytes, and ``each`` for every unit (a token of a training pass, a
    prompt being answered) of which there are at most ``most`` at once and at least ``least``."""

    name: str
    fixed: float
    each: float
    most: int
    least: int

    def units(self, free: float) -> int | None:
        """How many units fit into ``free`` bytes, a power of two times ``least``; None where not even the least."""
        room = (free - self.fixed) / self.each
        if room < self.least:
            return None
        return min(self.most, self.least * 2 ** int(math.log2(room / self.least)))

    def total(self, units: int) -> float:
        """Bytes with so many units at once."""
        return self.fixed + self.each * units


def needs(shape: Shape, settings: Settings, four_bit: bool, value_bytes: int) -> list[Need]:
    """What the parts of a run need, in their order: stage1, stage2, safety_sft, evaluation."""
    base = memory.weights(shape, four_bit, value_bytes) + memory.RESERVE
    base += memory.largest_map(shape, four_bit, value_bytes)
    answers = memory.logits(shape, LOGITS, value_bytes)

    def training(name: str, trained: int, batch: int, row_tokens: int, extra: float) -> Need:
        fixed = base + extra + memory.adapters(shape, settings.rank, 2, trained, value_bytes)
        # One layer more than keeps its activations: the gradients that are being computed in it.
        each = (trained + 1) * memory.activations(shape, settings.rank, value_bytes, row_tokens)
        return Need(name, fixed, each, min(MOST_TOKENS, max(batch * row_tokens, LEAST_TOKENS)), LEAST_TOKENS)

    above = shape.layers - settings.layer - 1 if settings.sft_layers == "above" else shape.layers
    prompt = memory.cache(shape, value_bytes) * (PROMPT_TOKENS + settings.answer_tokens)
    prompt += memory.logits(shape, 1, value_bytes)
    return [
        training("stage1", settings.layer + 1, settings.contrastive_batch, PROMPT_TOKENS, 0),
        training("stage2", above, settings.sft_batch, ROW_TOKENS, answers),
        training("safety_sft", shape.layers, settings.sft_batch, ROW_TOKENS, answers),
        Need("evaluation", base + memory.adapters(shape, settings.rank, 2, 0, value_bytes), prompt, MOST_PROMPTS, 1),
    ]


@dataclass(frozen=True)
class Fit:
    """What fits; nothing where a model's need is unknown. units: for each part the tokens of a pass, or the prompts
    answered together. needs: by the same names. free: bytes that were free."""

    units: dict[str, int]
    needs: dict[str, Need]
    free: float

    def lines(self) -> dict[str, str]:
        """The estimate for a person, a line each."""
        if not self.needs:
            return {"memory": f"{self.free / 1e9:.1f} GB free; what this model needs its config.json does not tell"}
        said = {"memory": f"{self.free / 1e9:.1f} GB free; estimated need, and what goes through the model at once:"}
        for name, need in self.needs.items():
            n, what = self.units[name], "prompts" if name == "evaluation" else "tokens"
            lowered = f", lowered from {need.most:,} to fit" if n < need.most else ""
            said[f"  {TITLES[name]}"] = f"{need.total(n) / 1e9:.1f} GB with {n:,} {what}{lowered}"
        return said


TITLES = {
    "stage1": "stage 1",
    "stage2": "stage 2",
    "safety_sft": "safety SFT alone",
    "evaluation": "evaluation",
}


def fit(parts: list[Need], free: float, model: str, insist: bool = True) -> Fit:
    """What fits into ``free`` bytes. Raises UserError naming what does not even with the least at once; without
    ``insist`` it goes on with the least (a computer's memory has swap behind it, a card's has not)."""
    units = {}
    for need in parts:
        n = need.units(free)
        if n is None and insist:
            raise UserError(
                f"{model} needs at least {need.total(need.least) / 1e9:.1f} GB for {TITLES[need.name]} and "
                f"{free / 1e9:.1f} GB are free. Close what else uses the card, lower --rank, load it with "
                "--quantization nf4, or take the recipe of a smaller model; --plan shows what fits which card."
            )
        units[need.name] = n or need.least
    return Fit(units, {need.name: need for need in parts}, free)


def shape_of(model: str) -> Shape:
    """The shape of a model: of a folder, of one of the recipes' models, or of one on the Hub (its config.json alone).

    Raises UserError where there is no config.json to be had or it describes another kind of model.
    """
    if Path(model).exists():
        try:
            text = (Path(model) / "config.json").read_text(encoding="utf-8")
        except OSError:
            raise UserError(f"{model}: not a model folder (no config.json in it)") from None
    elif model in memory.KNOWN:
        return memory.KNOWN[model]
    else:
        text = _config_from_hub(model)
    try:
        return Shape.of(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{model}: its config.json describes no decoder whose memory can be told ({error})") from None


def _config_from_hub(model: str) -> str:
    import httpx
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(hf_hub_download(model, "config.json")).read_text(encoding="utf-8")
    except (HfHubHTTPError, HFValidationError, OSError, httpx.HTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{model}: no config.json to be had ({reason}). Give --model a folder that holds it.") from None


def free_memory(device: str) -> float:
    """Bytes free on the device now, that of this computer for its processor."""
    import torch

    if device == "cuda":
        return float(torch.cuda.mem_get_info()[0])
    if device == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return _free_on_this_computer()


def _free_on_this_computer() -> float:
    import os

    meminfo = Path("/proc/meminfo")
    if sys.platform == "linux" and meminfo.exists():
        for line in meminfo.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return 0.7 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # the rest is in use, on most days
    return 8e9
