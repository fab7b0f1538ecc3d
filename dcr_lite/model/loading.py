"""A causal language model on its device: precision, quantisation, attention, and how much goes through it at once.

The only module that loads weights; everything else sees a ``Model``.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from dcr_lite.errors import UserError
from dcr_lite.model import unsloth
from dcr_lite.model.fit import LEAST_TOKENS, MOST_PROMPTS, MOST_TOKENS
from dcr_lite.model.packing import ATTENTION, Batch, pack, pad
from dcr_lite.model.unsloth import TRANSFORMERS, Choice

Item = TypeVar("Item")
Result = TypeVar("Result")


def best_precision(device: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively; else float16 on a card with units for it (a T4), and float32
    elsewhere (emulated bfloat16 is slower)."""
    if device == "mps":
        return torch.float32
    if device == "cuda":
        return precision_of_card(torch.cuda.get_device_capability())
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


NO_ROOM = (
    "memory runs out even with one row at a time. Close what else uses it, lower --rank, load the model with "
    "--quantization nf4, or take a smaller one; --plan shows what fits which card."
)
FIRST_GRADIENT_SCALE = 2.0**15  # half of float16's largest number: the first overflows halve it to what fits


def precision_of_card(capability: tuple[int, int]) -> torch.dtype:
    """What a card of this capability multiplies fast: bfloat16 from Ampere on, float16 from Volta on (a T4 is 7.5)."""
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


@dataclass
class Model:
    """A causal language model with adapters, and how to compute with it.

    network: the peft model once it has adapters, before that the plain one.
    precision: the type of activations; adapter weights and everything geometric stay float32.
    tokens_per_pass: of one forward and backward pass; a larger batch goes through in several, with the same gradients.
    gradient_scale: what stages multiply their losses by before the backward pass; 1 unless in float16.
    backend: whose forward pass it is, transformers' or unsloth's, and why.
    tokens_in: tokens_per_pass of the stages that were planned, by their names. prompts_at_once: answered together.
    steering: for prompts as rows of token ids, what each decoder layer named by its number adds to its output from a
        prompt's last token on, {layer: (rows, d_model)}. While one is set, answers are steered; see scans.py.
    """

    network: Any
    tokenizer: Any
    device: str
    precision: torch.dtype
    four_bit: bool
    steering: Callable[[list[list[int]]], dict[int, Tensor]] | None = None
    tokens_per_pass: int = MOST_TOKENS
    tokens_in: dict[str, int] = field(default_factory=dict)
    prompts_at_once: int = MOST_PROMPTS
    backend: Choice = TRANSFORMERS
    gradient_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.precision == torch.float16:
            self.gradient_scale = FIRST_GRADIENT_SCALE

    def narrow(self) -> bool:
        """From now on half as many tokens go through at once; False where it is no more than a short row already."""
        if self.tokens_per_pass <= LEAST_TOKENS // 4:
            return False
        self.tokens_per_pass //= 2
        return True

    @property
    def window(self) -> int:
        """The longest row that the model was made for, in tokens."""
        longest = int(getattr(self.network.config, "max_position_embeddings", 2048))
        if self.backend.name == "unsloth":
            return min(longest, unsloth.longest_row(self.network.config))
        return longest

    @property
    def packs(self) -> bool:
        """Whether rows can share one packed sequence: plain softmax attention that our function can replace."""
        return self.network.config._attn_implementation == ATTENTION

    def batch(self, rows: list[list[int]], prefix: int | None = None) -> Batch:
        """Lay out rows of token ids for this model, packed where it can be."""
        if self.packs:
            return pack(rows, prefix, self.device)
        return pad(rows, self.tokenizer.pad_token_id, self.device)

    @contextmanager
    def compute(self) -> Iterator[None]:
        """Every forward and backward pass runs in here. One block per pass: autocast keeps the weights that it has
        cast until the block ends, so a block must not outlive the optimizer's step."""
        with torch.autocast(self.device, dtype=self.precision, enabled=self.precision != torch.float32):
            yield


def in_halves(work: Callable[[list[Item]], list[Result]], items: list[Item]) -> list[Result]:
    """What ``work`` gives for the items, or for their halves one after the other where memory does not suffice for all
    at once: for passes without gradients. Those that train are halved by their loop.

    Raises UserError where memory does not suffice for one item.
    """
    with contextlib.suppress(torch.OutOfMemoryError):
        return work(items)
    if len(items) == 1:
        raise UserError(NO_ROOM)
    torch.cuda.empty_cache()  # nothing holds the tensors of the failed pass any more: their blocks can be had again
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])


def keep_freed_memory() -> None:
    """Tell glibc to keep freed blocks up to 32 MB: it would hand each step's tensors back to the system and fault them
    in again, page by page. Larger ones still go back, or the heap would only grow. A no-op off Linux with glibc."""
    if sys.platform != "linux":
        return
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_mmap_threshold, 32 * 2**20)
        libc.mallopt(m_trim_threshold, 2**30)


def load(
    path: str | Path, device: str, precision: torch.dtype, four_bit: bool, backend: Choice = TRANSFORMERS
) -> Model:
    """Load a causal chat model and its tokenizer from a folder or a Hub name, with transformers or with unsloth."""
    if backend.name == "unsloth":
        network, tokenizer = unsloth.load(path, precision, four_bit, unsloth.LONGEST)
        network.requires_grad_(False)
        return Model(network, _settled(tokenizer), device, precision, four_bit, backend=backend)
    quantization = None
    if four_bit:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=precision,
        )
    if device == "cpu":
        keep_freed_memory()
    tokenizer = _settled(AutoTokenizer.from_pretrained(path))
    network = AutoModelForCausalLM.from_pretrained(
        path, dtype=precision, device_map=device, quantization_config=quantization
    )
    if _plain_attention(network.config):
        network.set_attn_implementation(ATTENTION)
    elif _softcapped(network.config):
        network.set_attn_implementation("eager")  # the fused kernels leave the cap out without a word
    if four_bit and device == "cpu":
        _keep_weights_unpacked(network)
    network.requires_grad_(False)
    return Model(network, tokenizer, device, precision, four_bit, backend=backend)


def _settled(tokenizer: Any) -> Any:
    """The tokenizer with what both stages rely on, whoever loaded it."""
    tokenizer.clean_up_tokenization_spaces = False  # it is ignored anyway, with a long warning
    tokenizer.padding_side = "right"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _plain_attention(config: Any) -> bool:
    """Packed attention knows softmax attention over the whole row: no softcapping, no window, nothing but attention."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    windowed = getattr(config, "sliding_window", None) is not None and not hasattr(config, "layer_types")
    return not _softcapped(config) and kinds == {"full_attention"} and not windowed


def _softcapped(config: Any) -> bool:
    return getattr(config, "attn_logit_softcapping", None) is not None


def _keep_weights_unpacked(network: nn.Module) -> None:
    """bitsandbytes 0.50 repacks 4-bit weights for AVX512-BF16 in the first evaluation pass; training after that loses
    the gradient through the base weights without a word (measured: norm at layer 0 falls from 0.715 to 0.028)."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types every attribute a tensor
