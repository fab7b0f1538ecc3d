"""Writes a merged model as one GGUF file for llama.cpp and the programs built on it (Ollama, LM Studio).

The package gguf, published by llama.cpp, knows the names of tensors and the layout of the file. This module adds what
a converter has to: the numbers of the architecture, the order of rotary weights, and the tokenizer. llama.cpp has a
name for each way of splitting a text before the merges (its "pre-tokenizer"); it is found by trying the tokenizer.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH,
    MODEL_ARCH_NAMES,
    GGUFWriter,
    TokenType,
    get_tensor_name_map,
)
from gguf.quants import quant_shape_to_byte_shape
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dcr_lite.errors import UserError
from dcr_lite.export.gguf_types import FILE_TYPES, FileType, encode, type_of
from dcr_lite.export.merge import Merged
from dcr_lite.files import write_whole
from dcr_lite.model.chat import prompt_text

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
}

# How PROBE is split before the merges, and llama.cpp's name for that.
PROBE = "x(word 12345"
CUTS = {
    "x|(|word|Ġ12345": "gpt-2",
    "x|(|word|Ġ|1|2|3|4|5": "smollm",
    "x|(word|Ġ|123|45": "llama-bpe",
    "x|(word|Ġ|1|2|3|4|5": "qwen2",
}


def write_gguf(
    merged: Merged, config: Any, tokenizer: Any, name: str, file_type: FileType, path: Path,
    advance: Callable[[int], None] = lambda tensors: None, chat_template: bool = True,
) -> None:  # fmt: skip
    """Write the model to ``path``, whole or absent.

    config, tokenizer: of transformers. name: of the model, in the file. file_type: "bf16" keeps every bit of 16-bit
    weights, "q8_0" takes half the space, "q5_k_m" and "q4_k_m" about a third. advance: called with 1 after each tensor.
    chat_template: whether the tokenizer's is written.
    Raises UserError for an architecture, a rotary scaling or a tokenizer that llama.cpp would compute differently.
    """
    architecture = architecture_of(config)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture])
    writer.add_type("model")
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    _describe(writer, config)
    _describe_tokenizer(writer, tokenizer, config, chat_template)

    names = _gguf_names(merged, config, architecture)
    tied, layers = "output.weight" not in names.values(), config.num_hidden_layers
    kinds = {ours: type_of(theirs, merged.shape(ours), file_type, layers, tied) for ours, theirs in names.items()}
    for ours, theirs in names.items():
        shape = quant_shape_to_byte_shape(merged.shape(ours), kinds[ours])
        writer.add_tensor_info(theirs, shape, np.dtype(np.uint8), int(np.prod(shape)), kinds[ours])
    factors = _rotary_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)

    def write(partial: Path) -> None:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours in names:
            writer.write_tensor_data(encode(_rearranged(merged.tensor(ours), ours, config), kinds[ours]))
            advance(1)
        if factors is not None:
            writer.write_tensor_data(factors)
        writer.close()

    write_whole(path, write)


# --- the model --------------------------------------------------------------------------------------------------------


def architecture_of(config: Any) -> MODEL_ARCH:
    """llama.cpp's name for the architecture. Raises UserError for an unknown one, and for a variant of a known one that
    llama.cpp computes differently."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(f"GGUF is not supported for {kind}, only for {', '.join(ARCHITECTURES)}. Use --to merged.")
    scaling = config.rope_parameters.get("rope_type", "default")
    if scaling != "default" and not (kind == "llama" and scaling == "llama3"):
        raise UserError(f"GGUF is not supported for rotary scaling {scaling!r}. Use --to merged.")
    if kind == "gemma2" and config.query_pre_attn_scalar != config.head_dim:
        raise UserError("GGUF is not supported for the attention scale of this Gemma 2. Use --to merged.")
    return ARCHITECTURES[kind]


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _describe(writer: GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_dim(config))
    writer.add_value_length(_head_dim(config))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(_head_dim(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
        writer.add_sliding_window(config.sliding_window)


def _gguf_names(merged: Merged, config: Any, architecture: MODEL_ARCH) -> dict[str, str]:
    """llama.cpp's names of the tensors by those of transformers. An output matrix tied to the embedding is left out."""
    known = get_tensor_name_map(architecture, config.num_hidden_layers)
    names = {}
    for ours in merged:
        if config.tie_word_embeddings and ours == "lm_head.weight":
            continue
        theirs = known.get_name(ours, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise UserError(f"GGUF has no place for the tensor {ours}. Use --to merged.")
        names[ours] = theirs
    return names


def _rearranged(weight: Tensor, name: str, config: Any) -> Tensor:
    """A tensor in llama.cpp's layout.

    llama: the rotary embedding rotates pairs of neighbouring rows, in transformers pairs half a head apart. gemma2: the
    file includes the 1 that transformers adds to the weights of a norm.
    """
    if config.model_type == "gemma2" and name.endswith("norm.weight"):
        return weight.float() + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or ARCHITECTURES[config.model_type] != MODEL_ARCH.LLAMA:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _rotary_factors(config: Any) -> NDArray[np.float32] | None:
    """The divisor of each rotary frequency, (head_dim / 2,); None without rotary scaling."""
    kind = config.rope_parameters.get("rope_type", "default")
    if kind == "default":
        return None
    scaled, _ = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    exponent = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
    return (config.rope_parameters["rope_theta"] ** -exponent / scaled).numpy()


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def _describe_tokenizer(writer: GGUFWriter, tokenizer: Any, config: Any, chat_template: bool) -> None:
    """Add the vocabulary, the merges, special tokens and, if wanted, the chat template."""
    backend = tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        raise UserError(f"GGUF is not supported for a {model['type']} tokenizer. Use --to merged.")
    merges = [(a, b) for a, b in (m.split(" ") if isinstance(m, str) else m for m in model["merges"])]
    byte_level = _cut(backend) is not None
    writer.add_tokenizer_model("gpt2" if byte_level else "llama")
    writer.add_tokenizer_pre(_name_of_cut(backend) if byte_level else "default")
    tokens, types = _tokens(tokenizer, config.vocab_size, byte_level)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if not byte_level:
        # llama.cpp merges by score: the first merge gets the highest.
        first: dict[str, int] = {}
        for rank, (a, b) in enumerate(merges):
            first.setdefault(a + b, rank)
        writer.add_token_scores([-float(first.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(_prefixes_space(tokenizer))
    writer.add_token_merges([f"{a} {b}" for a, b in merges])  # beside scores, read by transformers only
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is None:
            number = getattr(config, f"{kind}_token_id", None)
        if isinstance(number, int):
            getattr(writer, f"add_{kind}_token_id")(number)
    writer.add_add_bos_token(adds_first_token(tokenizer))
    writer.add_add_eos_token(tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id)
    if chat_template and tokenizer.chat_template:
        writer.add_chat_template(tokenizer.get_chat_template())


def adds_first_token(tokenizer: Any) -> bool:
    """Whether llama.cpp is to put the first token (BOS) before a text: where the tokenizer does so, unless prompts in
    the chat template begin without it, since llama.cpp would put it before them too."""
    if tokenizer("a")["input_ids"][0] != tokenizer.bos_token_id:
        return False
    return not tokenizer.chat_template or prompt_text(tokenizer, "a").startswith(tokenizer.bos_token)


def _cut(backend: Any) -> str | None:
    """PROBE split as before the merges; None for a tokenizer that is not byte-level."""
    if backend.pre_tokenizer is None:
        return None
    cut = "|".join(piece for piece, _ in backend.pre_tokenizer.pre_tokenize_str(PROBE))
    return cut if "Ġ" in cut else None


def _name_of_cut(backend: Any) -> str:
    cut = str(_cut(backend))
    if cut not in CUTS:
        raise UserError(f"llama.cpp has no pre-tokenizer that splits text like this one ({cut}). Use --to merged.")
    return CUTS[cut]


def _tokens(tokenizer: Any, size: int, byte_level: bool) -> tuple[list[str], list[TokenType]]:
    """Tokens and their types. Rows of the embedding without a token get a placeholder that is never matched."""
    names = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(size):
        token = names.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            types.append(TokenType.UNUSED)
            continue
        tokens.append(token)
        if not byte_level and number == tokenizer.unk_token_id:
            types.append(TokenType.UNKNOWN)
        elif number in added:
            types.append(TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED)
        elif not byte_level and len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            types.append(TokenType.BYTE)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _prefixes_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before a text that follows a special token, as in every turn of a chat."""
    special = tokenizer.eos_token
    first = tokenizer.tokenize(special + "a")[1]
    return bool(first.startswith("▁"))
