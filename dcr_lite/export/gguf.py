"""Writes a merged model as one GGUF file for llama.cpp and the programs built on it (Ollama, LM Studio).

The package gguf, published by llama.cpp, knows the names of tensors and the layout of the file. A converter has to add
the numbers of the architecture and the order of rotary weights (gguf_model.py), and the tokenizer. llama.cpp has a name
for each way of splitting a text before the merges (its "pre-tokenizer"); it is found by trying the tokenizer.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import (
    GGML_QUANT_VERSION,
    MODEL_ARCH_NAMES,
    GGUFWriter,
    TokenType,
)
from gguf.quants import quant_shape_to_byte_shape

from dcr_lite.errors import UserError
from dcr_lite.export.gguf_model import architecture_of, describe, gguf_names, rearranged, rotary_factors
from dcr_lite.export.gguf_types import FILE_TYPES, ROWS_TRIED, FileType, T, encode, lies_on_steps, type_of
from dcr_lite.export.merge import Merged
from dcr_lite.files import write_whole
from dcr_lite.model.chat import prompt_text

# How PROBE is split before the merges, and llama.cpp's name for that.
PROBE = "x(word 12345 aB"
CUTS = {
    "x|(|word|Ġ12345|ĠaB": "gpt-2",
    "x|(|word|Ġ|1|2|3|4|5|ĠaB": "smollm",
    "x|(word|Ġ|123|45|ĠaB": "llama-bpe",
    "x|(word|Ġ|1|2|3|4|5|ĠaB": "qwen2",
    "x|(word|Ġ|123|45|Ġa|B": "gpt-4o",
    "x|(word|Ġ|1|2|3|4|5|Ġa|B": "tekken",
}
# In these a piece that is a token is taken whole, even where no merges lead to it. llama.cpp's name where one cuts like
# that and merges all the same; None where it has none.
TAKEN_WHOLE = {"llama-bpe": "dbrx", "tekken": None}


def write_gguf(
    merged: Merged, config: Any, tokenizer: Any, name: str, file_type: FileType, path: Path,
    advance: Callable[[int], None] = lambda tensors: None, chat_template: bool = True,
) -> None:  # fmt: skip
    """Write the model to ``path``, whole or absent.

    config, tokenizer: of transformers. name: of the model, in the file. file_type: "bf16" keeps every bit of bfloat16
    weights, "q8_0" takes half the space, "q5_k_m" and "q4_k_m" less. advance: called with 1 after each tensor.
    chat_template: whether the tokenizer's is written. Matrices in which the adapter's change would be rounded away (see
    ``lies_on_steps``) keep eight bits.
    Raises UserError for an architecture, a rotary scaling or a tokenizer that llama.cpp would compute differently.
    """
    architecture = architecture_of(config)
    writer = GGUFWriter(None, MODEL_ARCH_NAMES[architecture])
    writer.add_type("model")
    writer.add_name(_unmistakable(name, tokenizer))
    writer.add_file_type(FILE_TYPES[file_type])
    writer.add_quantization_version(GGML_QUANT_VERSION)
    for key, digest in merged.made_of.items():
        writer.add_string(key, digest)
    describe(writer, config)
    _describe_tokenizer(writer, tokenizer, config, chat_template)

    names = gguf_names(merged, config, architecture)
    tied, layers = "output.weight" not in names.values(), config.num_hidden_layers
    kinds = {ours: type_of(theirs, merged.shape(ours), file_type, layers, tied) for ours, theirs in names.items()}
    kinds |= {
        name: T.Q8_0 for name in merged.changed if lies_on_steps(merged.first_rows(name, ROWS_TRIED), kinds[name])
    }
    for ours, theirs in names.items():
        shape = quant_shape_to_byte_shape(merged.shape(ours), kinds[ours])
        writer.add_tensor_info(theirs, shape, np.dtype(np.uint8), int(np.prod(shape)), kinds[ours])
    factors = rotary_factors(config)
    for theirs, values in factors.items():
        writer.add_tensor_info(theirs, values.shape, values.dtype, values.nbytes)

    def write(partial: Path) -> None:
        writer.write_header_to_file(partial)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for ours in names:
            writer.write_tensor_data(encode(rearranged(merged.tensor(ours), ours, config), kinds[ours]))
            advance(1)
        for values in factors.values():
            writer.write_tensor_data(values)
        writer.close()

    write_whole(path, write)


def _unmistakable(name: str, tokenizer: Any) -> str:
    """A model's name that llama.cpp does not take for Phi-3's: in one that has "phi3" or "phi-3" in it, it looks for
    the tokens of that model, and does not load a file without them, such as one of Phi-4-mini."""
    return name if "</s>" in tokenizer.get_vocab() else re.sub("(phi)-?(3)", r"\1 \2", name, flags=re.IGNORECASE)


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
    writer.add_tokenizer_pre(_name_of_cut(backend, model) if byte_level else "default")
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


def _name_of_cut(backend: Any, model: dict[str, Any]) -> str:
    """llama.cpp's name for how a tokenizer cuts, from it and from its ``model`` in tokenizer.json."""
    cut = str(_cut(backend))
    name = CUTS.get(cut)
    if not model.get("ignore_merges"):
        name = TAKEN_WHOLE.get(name, name) if name else None
    elif name not in TAKEN_WHOLE and not _merges_lead_to_all(backend, model):
        name = None
    if name is None:
        raise UserError(f"llama.cpp has no pre-tokenizer that splits text like this one ({cut}). Use --to merged.")
    return name


def _merges_lead_to_all(backend: Any, model: dict[str, Any]) -> bool:
    """Whether every token is what merges make of its characters, so that taking it whole changes nothing."""
    added = {token.content for token in backend.get_added_tokens_decoder().values()}
    tokens = [token for token in model["vocab"] if token not in added]
    merges = [tuple(m.split(" ") if isinstance(m, str) else m) for m in model["merges"]]
    merging = type(backend.model)(model["vocab"], merges)
    return all(len(merging.tokenize(token)) == 1 for token in tokens)


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
