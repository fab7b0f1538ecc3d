"""Weights rounded to 4 bits and back, without calibration data: what a quantised model would compute with.

Two kinds. ``absmax_int4``: groups of 32 weights of one output share a scale, as in GGUF's older 4-bit types; the
group's largest absolute value becomes 7, the others the nearest whole number. ``nf4``: bitsandbytes' own NF4 in blocks
of 64 (Dettmers et al., "QLoRA", NeurIPS 2023, arXiv 2305.14314), without its double quantisation of the scales.

    with merged(model, nf4):
        answer(model, rows, max_new_tokens=40)
"""

from torch import Tensor
from torch.nn.functional import pad

GROUP, LARGEST = 32, 7  # weights that share a scale; the largest whole number of a symmetric range of 4 bits
NF4_BLOCK = 64  # bitsandbytes' default, which transformers loads with


def absmax_int4(weight: Tensor) -> Tensor:
    """The weight (out, in) rounded to whole numbers from -7 to 7 times a scale for every 32 inputs of an output, in
    float32. A shorter last group has a scale of its own."""
    n_out, n_in = weight.shape
    groups = pad(weight.float(), (0, -n_in % GROUP)).view(n_out, -1, GROUP)
    scale = groups.abs().amax(-1, keepdim=True) / LARGEST
    whole = (groups / scale.where(scale > 0, 1)).round()  # a group of zeros stays zeros
    return (whole * scale).view(n_out, -1)[:, :n_in]


def nf4(weight: Tensor) -> Tensor:
    """The weight (out, in) rounded to NF4, in float32."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    # In one row: on processors with AVX512, bitsandbytes 0.50 counts blocks within rows, not across their ends.
    flat = weight.float().reshape(1, -1)
    flat = pad(flat, (0, flat.numel() % 2))  # for an odd number of weights it would compile a kernel, half a minute
    packed, state = quantize_4bit(flat, blocksize=NF4_BLOCK, quant_type="nf4")
    rounded: Tensor = dequantize_4bit(packed, state)
    return rounded[:, : weight.numel()].view(weight.shape)
