"""A model of a given shape with random weights, and a tokenizer for which every word is a token. Neither weights nor
words change the time or the memory of a step, and nothing is fetched or written.

The network is built without memory and filled tensor by tensor, each linear map quantised as soon as it is there: 8
billion weights in 4 bits never take more than those 4 bits and one map.
"""

import json
import random
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitsandbytes
import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from dcr_lite.model import loading
from dcr_lite.model.loading import REFUSING_OPENINGS, Model
from dcr_lite.model.shapes import Shape

WINDOW = 1 << 20  # tokens: no row is too long to try
SPREAD = 0.02  # standard deviation of the weights, that of most models at their beginning
BLOCK = 1 << 20  # random numbers that are drawn; weights repeat them
END, TURN, UNKNOWN = "<|end|>", "<|turn|>", "<|unknown|>"
WORDS = [f"word{i}" for i in range(200)]
# A turn is a token, the words, a token; the answer ends with END. Tokens of the template around a prompt: 3.
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|turn|>' + message['content'] + ('<|end|>' if message['role'] == 'assistant' else '<|turn|>') }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|turn|>' }}{% endif %}"
)
AROUND_PROMPT, AROUND_ANSWER = 3, 1


def random_model(shape: Shape, device: str, precision: torch.dtype, four_bit: bool, seed: int = 0) -> Model:
    """A model of this shape on its device, set up as ``loading.load`` does."""
    if device == "cpu":
        loading.keep_freed_memory()
    with torch.device("meta"):
        network = AutoModelForCausalLM.from_config(config_of(shape), dtype=precision)
    if four_bit:
        _four_bits(network, precision)
    _fill(network, device, torch.Generator().manual_seed(seed))
    network.requires_grad_(False)
    loading.prepare(network, device, four_bit)
    return Model(network, word_tokenizer(), device, precision, four_bit)


def config_of(shape: Shape) -> Any:
    """A configuration of transformers with this shape: Gemma 2's where scores are capped, Gemma 3's with as many norms
    and no caps, Phi's with fused maps, Qwen3's with norms on queries and keys (OLMo's come behind the maps, and are as
    large), else Llama's (Mistral and Qwen2 differ by a thousandth of the weights)."""
    values: dict[str, Any] = {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "vocab_size": shape.vocabulary,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": WINDOW,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if shape.scores:
        return Gemma2Config(**values, query_pre_attn_scalar=shape.head_width)
    if shape.norms == 4:
        return Gemma3TextConfig(**values)
    if shape.fused:
        return Phi3Config(**values, pad_token_id=None)
    return Qwen3Config(**values) if shape.head_norms else LlamaConfig(**values)


def _four_bits(network: Any, precision: torch.dtype) -> None:
    """Put 4-bit maps in the place of the decoder's linear ones, as transformers does: the output matrix stays."""
    decoder = network.get_decoder()
    for name, module in list(decoder.named_modules()):
        if type(module) is nn.Linear:
            with torch.device("meta"):
                four_bit = bitsandbytes.nn.Linear4bit(
                    module.in_features,
                    module.out_features,
                    module.bias is not None,
                    compute_dtype=precision,
                    compress_statistics=True,
                    quant_type="nf4",
                )
            decoder.set_submodule(name, four_bit)
    network.is_loaded_in_4bit = True  # peft asks for it


def _fill(network: Any, device: str, generator: torch.Generator) -> None:
    """Give every parameter and buffer values on the device."""
    for module in network.modules():
        if module._buffers:  # rotary angles, the scale of embeddings: the library computes them
            module._buffers = {
                name: torch.empty_like(buffer, device=device) for name, buffer in module._buffers.items()
            }
            network._init_weights(module)
    block = (torch.randn(BLOCK, generator=generator) * SPREAD).to(device)
    filled: dict[int, nn.Parameter] = {}  # by the parameter without values: tied ones stay tied
    for module in network.modules():
        for name, empty in module._parameters.items():
            if empty is not None and id(empty) not in filled:
                dtype = module.compute_dtype if isinstance(empty, bitsandbytes.nn.Params4bit) else empty.dtype
                if empty.dim() == 1:
                    values = torch.ones(empty.shape, dtype=dtype, device=device)
                else:
                    values = _repeated(block, empty.shape, dtype)
                filled[id(empty)] = _parameter(empty, values, device)
            module._parameters[name] = filled.get(id(empty))


def _parameter(empty: nn.Parameter, values: Tensor, device: str) -> nn.Parameter:
    if not isinstance(empty, bitsandbytes.nn.Params4bit):
        return nn.Parameter(values, requires_grad=False)
    quantised = bitsandbytes.nn.Params4bit(values, requires_grad=False, compress_statistics=True, quant_type="nf4")
    return quantised.to(device)  # which quantises


def _repeated(block: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """A tensor of the shape that repeats the numbers of the block."""
    n = shape.numel()
    values = torch.empty(n, dtype=dtype, device=block.device)
    whole = n // len(block) * len(block)
    values[:whole].view(-1, len(block)).copy_(block)
    values[whole:] = block[: n - whole]
    return values.view(shape)


def prompts_of(lengths: Sequence[int], prefix: int) -> list[str]:
    """Prompts that take so many tokens each in the template below, the first ``prefix`` of them the same."""
    shared = WORDS[:1] * max(0, prefix - 1)  # the template opens with one
    return [" ".join([*shared, _words(n - AROUND_PROMPT - len(shared), i)]) for i, n in enumerate(lengths)]


def answer_of(length: int, seed: int) -> str:
    """An answer of so many tokens, with the one that ends it."""
    return _words(length - AROUND_ANSWER, -1 - seed)


def _words(n: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=max(1, n)))


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with a chat template that knows ``WORDS`` and those that begin a refusal."""
    refusing = [word for opening in REFUSING_OPENINGS for word in re.findall(r"\w+|[^\w\s]+", opening)]
    known = dict.fromkeys([END, TURN, UNKNOWN, *refusing, *WORDS])
    description = {
        "version": "1.0",
        "pre_tokenizer": {"type": "Whitespace"},  # which splits as the expression above does
        "model": {"type": "WordLevel", "vocab": {word: i for i, word in enumerate(known)}, "unk_token": UNKNOWN},
    }
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "tokenizer.json"
        file.write_text(json.dumps(description), encoding="utf-8")
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(file),
            eos_token=END,
            pad_token=END,
            unk_token=UNKNOWN,
            additional_special_tokens=[TURN],
        )
    tokenizer.chat_template = TEMPLATE
    return tokenizer
