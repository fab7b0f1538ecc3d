"""A causal language model on its device: precision, quantisation, attention, and the size of a pass.

The only module that loads weights; everything else sees a ``Model``.
"""

import contextlib
import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

from dcr_lite.errors import MORE_MEMORY, MethodError, UserError, first_line, out_of_memory
from dcr_lite.files import exists
from dcr_lite.model import configuration, few_rows, unsloth
from dcr_lite.model.contrast import Contrast
from dcr_lite.model.dates import fix_day
from dcr_lite.model.free_memory import empty_cache
from dcr_lite.model.memory import LEAST_TOKENS, MOST_PROMPTS, MOST_TOKENS
from dcr_lite.model.packing import ATTENTION, ATTENTION_SHARE, Batch, pack, pad, passes, shared_prefix
from dcr_lite.model.prompt_cache import PromptCache
from dcr_lite.model.thinking import answer_at_once
from dcr_lite.model.unsloth import TRANSFORMERS, Choice

Item = TypeVar("Item")
Result = TypeVar("Result")

# How models begin a refusal. Their probabilities, summed over these disjoint beginnings, are the refusal probability.
# Rarer ones are left out: each needs tokens of its own after every prompt.
REFUSING_OPENINGS = (
    "Sorry", "I'm sorry", "I can't", "I cannot", "I won't", "I'm not able", "I'm unable", "That's not something",
)  # fmt: skip
FIRST_GRADIENT_SCALE = 2.0**15  # half of float16's largest number: the first overflows halve it to what fits
OUT_OF_MEMORY = f"memory runs out even with one row at a time. {MORE_MEMORY}"


def best_precision(device: str) -> torch.dtype:
    """bfloat16 where the processor multiplies it natively; else float16 on a card with units for it (a T4), and float32
    elsewhere (emulated bfloat16 is slower)."""
    if device == "mps":
        return torch.float32
    if device == "cuda":
        return precision_of_card(torch.cuda.get_device_capability())
    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def precision_of_card(capability: tuple[int, int]) -> torch.dtype:
    """The type that a card of this capability multiplies fast: bfloat16 from Ampere on, float16 from Volta on (a T4
    has 7.5)."""
    if capability >= (8, 0):
        return torch.bfloat16
    return torch.float16 if capability >= (7, 0) else torch.float32


@dataclass
class Model:
    """A causal language model with adapters, and how to compute with it.

    network: the peft model once it has adapters, before that the plain one.
    precision: the type of activations; adapter weights and geometry stay float32.
    backend: whose forward pass it is, transformers' or unsloth's, and why.
    tokens_per_pass: of one forward and backward pass; a larger batch goes through in several, with the same gradients.
    tokens_in: tokens_per_pass of the stages that were planned, by their names. longest_in: by the same names, the
        tokens of the longest row that fits alone, where that is known.
    prompts_at_once: answered together.
    gradient_scale: what stages multiply their losses by before the backward pass; 1 unless in float16.
    steering: None, or the function that gives for prompts, as rows of token ids, what decoder layers add to their
        output from a prompt's last token on: {layer: (rows, d_model)}. See compare/scans.py.
    openings: how it begins a refusal; of a run those that were found (run/found_settings.py).
    contrast: None, or what chooses the first tokens of answers with the help of second prompts. See compare/adacd.py.
    prompt_cache: None, or what keeps, while only later layers change, what earlier ones make of prompts.
    """

    network: Any
    tokenizer: Any
    device: str
    precision: torch.dtype
    four_bit: bool
    backend: Choice = TRANSFORMERS
    tokens_per_pass: int = MOST_TOKENS
    tokens_in: dict[str, int] = field(default_factory=dict)
    longest_in: dict[str, int] = field(default_factory=dict)
    prompts_at_once: int = MOST_PROMPTS
    gradient_scale: float = 1.0
    steering: Callable[[list[list[int]]], dict[int, Tensor]] | None = None
    openings: tuple[str, ...] = field(default_factory=lambda: REFUSING_OPENINGS)
    contrast: Contrast | None = None
    prompt_cache: PromptCache | None = None

    def __post_init__(self) -> None:
        self.gradient_scale = self.first_gradient_scale

    @property
    def first_gradient_scale(self) -> float:
        """What a stage begins with."""
        return FIRST_GRADIENT_SCALE if self.precision == torch.float16 else 1.0

    def plan_passes(self, stage: str) -> None:
        """From here on as many tokens go through at once as there is memory for in this stage; gradients are scaled
        anew, whatever an earlier stage has come down to."""
        self.tokens_per_pass = self.tokens_in.get(stage, MOST_TOKENS)
        self.gradient_scale = self.first_gradient_scale

    def halve_pass(self) -> bool:
        """Halve ``tokens_per_pass``; False where it is no more than a short row already."""
        if self.tokens_per_pass <= LEAST_TOKENS // 4:
            return False
        self.tokens_per_pass //= 2
        return True

    def set_training(self, training: bool) -> None:
        """Put the network into the mode of training or of evaluation. Where it is in it already, none of its modules,
        which are thousands, is visited."""
        if self.network.training != training:
            self.network.train(training)

    @property
    def window(self) -> int:
        """The longest row that the model was made for, in tokens."""
        longest = configuration.longest_row(configuration.of_decoder(self.network.config))
        if self.backend.name == "unsloth":
            return min(longest, unsloth.longest_row(self.network.config))
        return longest

    @property
    def packs(self) -> bool:
        """Whether rows can share one packed sequence: plain softmax attention that our function can replace."""
        return self.network.config._attn_implementation == ATTENTION

    def passes(self, rows: Sequence[list[int]], most: int | None = None, shared: int | None = None) -> list[list[int]]:
        """The numbers of the rows that go through together in each pass, of at most ``tokens_per_pass`` tokens and of
        ``most``. shared: the prefix of all rows that a packed pass computes once, by default the longest."""
        lengths = [len(row) for row in rows]
        most = self.tokens_per_pass if most is None else min(most, self.tokens_per_pass)
        if not self.packs:
            return passes(lengths, most, attention=1.0)
        shared = shared_prefix(rows) if shared is None else shared
        # On a CPU passes are as large as they are fast, far below its memory.
        return passes(lengths, most, shared, 0.0 if self.device == "cpu" else ATTENTION_SHARE)

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
    """The results of ``work`` for the items, computed in halves where memory does not suffice for all at once. For
    passes without gradients; the training loop halves its own.

    Raises MethodError where memory does not suffice for one item.
    """
    with contextlib.suppress(torch.OutOfMemoryError), memory_may_run_out():
        return work(items)
    if len(items) == 1:
        raise MethodError(OUT_OF_MEMORY)
    empty_cache()
    half = len(items) // 2
    return in_halves(work, items[:half]) + in_halves(work, items[half:])


@contextmanager
def memory_may_run_out() -> Iterator[None]:
    """Within the block a failed allocation is a torch.OutOfMemoryError on every device: on a CPU torch raises a plain
    RuntimeError, and Python a MemoryError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(first_line(error)) from None


def require_finite(model: Model, values: Tensor, what: str) -> Tensor:
    """The values. Raises MethodError, in which they are called ``what``, where one of them is not a finite number."""
    if bool(values.isfinite().all()):
        return values
    raise MethodError(not_finite(model, what))


def not_finite(model: Model, what: str) -> str:
    """What to say where ``what`` holds a number that is not finite."""
    precision = str(model.precision).removeprefix("torch.")
    cures = [f"--precision {other}" for other in ("bfloat16", "float32") if other != precision]
    if model.precision == torch.float16 and model.device == "cuda" and best_precision("cuda") == torch.float16:
        cures = ["--precision float32"]  # the card has no bfloat16
    if model.precision == torch.float32:
        cures = []
    return (
        f"{what}: not finite in {precision}. Either numbers overflow, or training has gone astray: try "
        f"{' or '.join([*cures, 'a lower learning rate'])}."
    )


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


def load_tokenizer(path: str | Path) -> Any:
    """The tokenizer in a folder. Raises UserError where it is damaged, or has code of its own, which is never run."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # transformers raises errors of every kind for a folder that is not as it should be
        raise UserError(f"{path}: its tokenizer cannot be loaded ({first_line(error)})") from None
    fix_day(tokenizer)
    answer_at_once(tokenizer)
    return tokenizer


def load(
    path: str | Path, device: str, precision: torch.dtype, four_bit: bool, backend: Choice = TRANSFORMERS
) -> Model:
    """Load a causal chat model and its tokenizer from a folder or a Hub name, with transformers or with unsloth.

    Raises UserError for a folder with an adapter in it or without an end token, and errors of many kinds for one that
    is damaged.
    """
    if exists(Path(path) / "adapter_config.json"):
        # transformers would load the base that it names, and unpickle an adapter of the old form.
        raise UserError(f"{path} holds an adapter (adapter_config.json). Give --model the base model or a merged one.")
    if backend.name == "unsloth":
        network, tokenizer = unsloth.load(path, precision, four_bit)
    else:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        network = _load_with_transformers(path, device, precision, four_bit)
    network.requires_grad_(False)
    fix_day(tokenizer)
    answer_at_once(tokenizer)
    configuration.set_up_tokenizer(tokenizer, network)
    return Model(network, tokenizer, device, precision, four_bit, backend)


def _load_with_transformers(path: str | Path, device: str, precision: torch.dtype, four_bit: bool) -> Any:
    if device == "cpu":
        keep_freed_memory()
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=precision,
    )
    # Left open, transformers would ask whether to run the folder's own code, and unpickle weights of the old form.
    network = AutoModelForCausalLM.from_pretrained(
        path, dtype=precision, device_map=device, quantization_config=quantization if four_bit else None,
        trust_remote_code=False, use_safetensors=True,
    )  # fmt: skip
    prepare(network, device, four_bit)
    return network


def prepare(network: Any, device: str, four_bit: bool) -> None:
    """Set up a network of transformers as the kit computes with it: its attention, with kernels that are right, and
    4-bit weights on a CPU."""
    config = configuration.of_decoder(network.config)
    if configuration.plain_attention(config):
        network.set_attn_implementation(ATTENTION)
    elif configuration.softcapped(config):
        network.set_attn_implementation("eager")  # the fused kernels leave the cap out, and do not warn
    if device == "cuda":
        # With a mask its gradients are NaN on H100 and later (torch 2.11 to 2.13: issue 196678 of pytorch/pytorch).
        torch.backends.cuda.enable_cudnn_sdp(False)
    if device == "cpu":
        few_rows.speed_up(network)
        if four_bit:
            _keep_weights_unpacked(network)


def _keep_weights_unpacked(network: nn.Module) -> None:
    """Switch off a fault of bitsandbytes 0.50, which repacks 4-bit weights for AVX512-BF16 in the first evaluation
    pass: training after that silently loses the gradient through the base weights (measured: the norm at layer 0 falls
    from 0.715 to 0.028)."""
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - torch types every attribute a tensor
