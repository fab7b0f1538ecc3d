"""unsloth's fast kernels: whether they can be used, and loading with them. The only module that imports unsloth.

They change how a model behaves; the rest of the kit allows for the following.

- In training the attention mask is dropped, so rows are padded on the right, where a causal model sees no padding.
- Layers return tuples; the decoder takes no cache object, so answers are computed without one.
- Gemma 2's layers with a window are told from those without by their place, which shifts in a decoder that was cut:
  rows stay within the window, where the two kinds do the same.
- Loading and patching make adapters trainable and pad on the left: both are set again afterwards.
- The compiled forward pass keeps state that a pass by hand can spoil, so compilation is off; so is checkpointing,
  which passes of fewer tokens make unnecessary.
- unsloth has to be imported before transformers: ``prepare`` is called before any heavy import.
- Its backward pass overwrites what the forward pass has kept, so no graph can be replayed: diagnose loads the model
  with transformers, and so do compare, whose steered answers need a cache, and the demo.
- Its MLP with adapters reads the weights of its maps and calls none of them, so hooks on them see nothing.
- A longer maximum than the model's own window changes its rotary embedding: the smaller of the two is asked for.
- That rows padded on the right need no mask rests on this version's forward pass: another one is refused.

Not yet run on a card, and so only taken with --backend unsloth: tested against a stub that behaves so
(tests/test_unsloth.py), and the calls against the signatures in the pinned version's source.
"""

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError, first_line
from dcr_lite.model import configuration

PACKAGE = "unsloth"
LEAST_CAPABILITY = (7, 0)  # Volta and later; a T4 has 7.5
ARCHITECTURES = ("gemma", "gemma2", "llama", "mistral", "qwen2", "qwen3")  # that its fast forward serves
LONGEST = 8_192  # tokens of a row: its tables of positions and masks are as long
VERSION = "2026.10.7"  # that pyproject.toml pins
INSTALL = "pip install 'dcr-lite[gpu]'"
UNTRIED = "unsloth, which has not been run on a card yet, is taken with --backend unsloth"


@dataclass(frozen=True)
class Choice:
    """A backend. name: "unsloth" or "transformers". why: the reason, for the plan of a run."""

    name: str
    why: str


TRANSFORMERS = Choice("transformers", "asked for")


def choose(wanted: str, device: str, architecture: str) -> Choice:
    """The backend for a model of this architecture (config.json's model_type) on this device.

    Raises UserError where unsloth is ``wanted`` and cannot work here.
    """
    if wanted == "transformers":
        return TRANSFORMERS
    obstacle = _obstacle(device, architecture)
    if wanted == "auto":
        return Choice("transformers", obstacle or UNTRIED)
    if obstacle:
        raise UserError(f"--backend unsloth: {obstacle}. Leave the flag out to use transformers with peft.")
    return Choice("unsloth", "asked for")


def _obstacle(device: str, architecture: str) -> str | None:
    """Why unsloth cannot be used; None where it can. It is not imported: without a GPU that fails."""
    if device != "cuda":
        return f"unsloth needs a CUDA GPU, and this run is on {device}"
    if (capability := _capability()) is None:
        return "unsloth needs a CUDA GPU, and torch sees none"
    if capability < LEAST_CAPABILITY:
        return f"unsloth needs a GPU of capability 7.0, and this one has {capability[0]}.{capability[1]}"
    if (installed := _installed()) is None:
        return f"unsloth is not installed ({INSTALL})"
    if installed != VERSION:
        return f"unsloth {installed} is installed, and the kit works with {VERSION} alone ({INSTALL})"
    if architecture not in ARCHITECTURES:
        return f"unsloth has no fast path for {architecture or 'this architecture'}"
    return None


def _installed() -> str | None:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


def _capability() -> tuple[int, int] | None:
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def architecture_of(folder: str | Path) -> str:
    """model_type of a model folder's config.json; "" where there is none."""
    return str(configuration.in_folder(folder).get("model_type", ""))


def prepare(wanted: str, device: str) -> None:
    """Import unsloth, before transformers, where the run may use it. What keeps it from being used is reported when the
    model is loaded."""
    if wanted == "unsloth" and device in ("auto", "cuda") and _obstacle("cuda", ARCHITECTURES[0]) is None:
        _import()


def _import() -> Any:
    os.environ.setdefault("UNSLOTH_COMPILE_DISABLE", "1")
    try:
        return importlib.import_module(PACKAGE)
    except (ImportError, NotImplementedError, RuntimeError, OSError) as error:  # a torchvision that does not match, ...
        raise UserError(
            f"unsloth is installed but cannot be imported ({first_line(error)}). Use --backend transformers."
        ) from None


def longest_row(config: Any) -> int:
    """The most tokens of a row, by a model's configuration (see above)."""
    return min(LONGEST, getattr(config, "sliding_window", None) or LONGEST)


def load(folder: str | Path, precision: Any, four_bit: bool) -> tuple[Any, Any]:
    """(network, tokenizer) of a model folder. Raises UserError for one without weights in safetensors: others would be
    unpickled."""
    if not any(Path(folder).glob("*.safetensors")):
        raise UserError(f"{folder} holds no weights in safetensors. Choose a model that does.")
    network, tokenizer = _import().FastLanguageModel.from_pretrained(
        model_name=str(folder),
        max_seq_length=min(LONGEST, int(configuration.in_folder(folder).get("max_position_embeddings") or LONGEST)),
        dtype=precision,
        load_in_4bit=four_bit,
        use_gradient_checkpointing=False,
        trust_remote_code=False,
    )
    return network, tokenizer


@contextmanager
def hookable(mlp: Any) -> Iterator[None]:
    """Within the block an MLP calls its maps, and so the hooks on them."""
    kernel = mlp.__dict__.pop("forward", None)
    try:
        yield
    finally:
        if kernel is not None:
            mlp.forward = kernel


def speed_up_adapters(network: Any) -> Any:
    """The peft model with unsloth's kernels in its adapters. All adapter weights are trainable afterwards."""
    return _import().FastLanguageModel.patch_peft_model(network, use_gradient_checkpointing=False)
