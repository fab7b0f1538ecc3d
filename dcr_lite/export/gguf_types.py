"""The types that the weights of a GGUF file are stored in, and how weights become numbers of these types.

q8_0 is written by the package gguf. q4_k_m and q5_k_m, which most people run, are mixtures that llama.cpp's
llama-quantize defines; the rule for which matrix gets which type is repeated here, and the numbers come from
llama.cpp's own ``ggml_quantize_chunk``, as its wheel xllamacpp exports it.
"""

import ctypes
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import dequantize, quantize
from numpy.typing import NDArray
from torch import Tensor

from dcr_lite.errors import UserError

FileType = Literal["bf16", "q8_0", "q5_k_m", "q4_k_m"]
FILE_TYPES = {
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}
T = GGMLQuantizationType
MOST = {"bf16": T.BF16, "q8_0": T.Q8_0, "q5_k_m": T.Q5_K, "q4_k_m": T.Q4_K}  # the type of most matrices
# Types whose blocks are 256 weights, and what stands in for them where a row cannot be cut into such blocks.
INSTEAD = {T.Q4_K: T.Q5_0, T.Q5_K: T.Q5_1, T.Q6_K: T.Q8_0}
WRITTEN_BY_GGUF = {T.F32, T.BF16, T.Q8_0}
LOST_ON_STEPS = 0.01  # of their size: weights out of a file of that type lose 0.3 % at most, others 2 to 8 %
ROWS_TRIED = 64  # of a matrix, to see which it is


def require_quantiser(file_type: FileType) -> None:
    """Raises UserError where a file type needs llama.cpp's quantiser and it is not installed."""
    if MOST[file_type] not in WRITTEN_BY_GGUF and _llama_cpp() is None:
        raise UserError(
            f"--file-type {file_type} needs llama.cpp's quantiser: pip install 'dcr-lite[llama-cpp]' (Linux, x86-64). "
            "Elsewhere export --file-type q8_0, or quantise its bf16 file with llama.cpp's own llama-quantize."
        )


def type_of(name: str, shape: tuple[int, ...], file_type: FileType, layers: int, tied: bool) -> GGMLQuantizationType:
    """The type that a tensor is stored in, by llama.cpp's name of it.

    layers: of the model. tied: whether the embedding serves as the output matrix too.
    Vectors stay float32, as llama.cpp requires, and a row that cannot be cut into blocks bf16. The mixtures are those
    of llama-quantize without an importance matrix (src/llama-quant.cpp) for a dense model of any size but 70B.
    """
    if len(shape) == 1:
        return T.F32
    kind = MOST[file_type]
    if kind in INSTEAD:
        if name == "output.weight" or (tied and name == "token_embd.weight"):
            kind = T.Q6_K if _fits(shape, kind) else T.Q8_0
        elif re.search(r"attn_(v|qkv)\.weight|ffn_down\.weight", name) and _more_bits(name, layers):
            kind = T.Q6_K
        kind = kind if _fits(shape, kind) else INSTEAD.get(kind, kind)
    return kind if _fits(shape, kind) else T.BF16


def _fits(shape: tuple[int, ...], kind: GGMLQuantizationType) -> bool:
    return shape[-1] % GGML_QUANT_SIZES[kind][0] == 0


def _number(name: str) -> int:
    return int(name.split(".")[1])


def _more_bits(name: str, layers: int) -> bool:
    """Whether a layer is one of the first or last eighth, or every third between, whose values and down projections
    get six bits."""
    number, eighth = _number(name), layers // 8
    return number < eighth or number >= 7 * layers // 8 or (number - eighth) % 3 == 2


def lies_on_steps(weight: Tensor, kind: GGMLQuantizationType) -> bool:
    """Whether a matrix comes back from being stored in a type, as one does that was read out of a file of that type.
    Whatever is added to it, by less than half a step at a time, is then rounded away whole; a matrix of any other
    weights keeps it on average."""
    if kind in WRITTEN_BY_GGUF:
        return False  # eight bits and more lose less than that of any matrix
    weight = weight.float()
    back = torch.from_numpy(dequantize(encode(weight, kind), kind)).reshape(weight.shape)
    return bool((back - weight).norm() < LOST_ON_STEPS * weight.norm())


def encode(weight: Tensor, kind: GGMLQuantizationType) -> NDArray[Any]:
    """A tensor as bytes of a type."""
    if kind == T.BF16:
        return weight.to(torch.bfloat16).contiguous().view(torch.uint8).numpy()
    values = weight.float().contiguous().numpy()
    if kind == T.F32:
        return values
    return quantize(values, kind) if kind in WRITTEN_BY_GGUF else _quantised_by_llama_cpp(values, kind)


def _quantised_by_llama_cpp(values: NDArray[np.float32], kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    library = _llama_cpp()
    assert library is not None  # require_quantiser comes first
    size, width = GGML_QUANT_SIZES[kind]
    rows, columns = int(np.prod(values.shape[:-1])), values.shape[-1]
    out = np.empty((rows, columns // size * width), np.uint8)
    written = library.ggml_quantize_chunk(
        int(kind), values.ctypes.data, out.ctypes.data, 0, rows, columns, None  # no importance matrix
    )  # fmt: skip
    assert written == out.nbytes, (kind, written, out.nbytes)
    return out


@cache
def _llama_cpp() -> Any | None:
    """llama.cpp as its wheel brings it; None where it is not installed, or does not export its quantiser."""
    found = find_spec("xllamacpp")
    for place in found.submodule_search_locations or () if found else ():
        for file in Path(place).glob("xllamacpp*.so"):
            library = ctypes.CDLL(str(file))
            if hasattr(library, "ggml_quantize_chunk"):
                function, whole = library.ggml_quantize_chunk, ctypes.c_int64
                function.argtypes = [
                    ctypes.c_int,
                    ctypes.c_void_p,
                    ctypes.c_void_p,
                    whole,
                    whole,
                    whole,
                    ctypes.c_void_p,
                ]
                function.restype = ctypes.c_size_t
                return library
    return None
