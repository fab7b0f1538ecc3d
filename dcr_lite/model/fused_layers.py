"""LoRA layer, SwiGLU and RMSNorm of a Llama-like decoder, each as one autograd function: less memory traffic on a CPU.

torch runs each of them as a dozen small operations, every one of which reads and writes all activations, and keeps the
intermediate results for the backward pass. Here the gradient is written out and keeps only what it needs. Where no
gradient is recorded the formula alone is computed: the way through autograd takes 20 to 50 microseconds a layer. For
dense weights on a CPU; on a card unsloth's kernels do the same.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn.functional import silu

from dcr_lite.model.few_rows import linear

# One formula under six names: x over its root mean square, times a weight. Others, such as Gemma's and OLMo's, differ.
NORMS = ("LlamaRMSNorm", "MistralRMSNorm", "Phi3RMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm", "SmolLM3RMSNorm")


def low_rank(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
) -> tuple[Tensor, Tensor]:
    """x W^T + bias + s (x A^T) B^T, and x A^T, for x (tokens, in), W (out, in), A (rank, in), B (out, rank)."""
    inner = x @ a.T
    return linear(x, weight, bias).addmm_(inner, b.T, alpha=scaling), inner


class LowRank(torch.autograd.Function):
    """The first of ``low_rank``, with W and bias frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.adapter_type, ctx.scaling = a.dtype, scaling
        a, b = a.to(x.dtype), b.to(x.dtype)
        out, inner = low_rank(x, weight, bias, a, b, scaling)
        ctx.save_for_backward(x, weight, a, b, inner)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, inner = ctx.saved_tensors
        of_x = of_a = of_b = None
        of_inner = (gradient @ b).mul_(ctx.scaling)
        if ctx.needs_input_grad[0]:
            of_x = (gradient @ weight).addmm_(of_inner, a)
        if ctx.needs_input_grad[3]:
            of_a = (of_inner.T @ x).to(ctx.adapter_type)
        if ctx.needs_input_grad[4]:
            of_b = (gradient.T @ inner).to(ctx.adapter_type).mul_(ctx.scaling)
        return of_x, None, None, of_a, of_b, None


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202)."""
    return silu(gate).mul_(up)


class SwiGLU(torch.autograd.Function):
    """``swiglu``."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return swiglu(gate, up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """weight * x / rms(x), and 1 / rms(x), computed in float32 (Zhang and Sennrich, "Root Mean Square Layer
    Normalization", arXiv 1910.07467)."""
    wide = x.float()
    scale = (wide * wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


class RMSNorm(torch.autograd.Function):
    """The first of ``rms_norm``, with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        out, scale = rms_norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        x, weight, scale = ctx.saved_tensors
        wide, of_normed = x.float(), (gradient * weight).float()
        along = (of_normed * wide).mean(-1, keepdim=True).mul_(scale * scale)
        return of_normed.addcmul_(wide, along, value=-1).mul_(scale).to(x.dtype), None, None


def _lora(module: LoraLinear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    names = module.active_adapters
    plain = not (module.disable_adapters or module.merged or args or kwargs) and len(names) == 1
    if not plain or names[0] not in module.lora_A:
        return LoraLinear.forward(module, x, *args, **kwargs)
    base, name = module.base_layer, names[0]
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    x = x.to(base.weight.dtype)
    if not b.requires_grad and not b.any():  # a layer that was never trained, as most of them where stage 2 is left out
        return linear(x, base.weight, base.bias)
    rows, scaling = x.flatten(0, -2), module.scaling[name]
    if torch.is_grad_enabled():
        out = LowRank.apply(rows, base.weight, base.bias, a, b, scaling)
    else:
        out, _ = low_rank(rows, base.weight, base.bias, a.to(x.dtype), b.to(x.dtype), scaling)
    return out.view(*x.shape[:-1], -1)


def _mlp(module: Any, x: Tensor) -> Tensor:
    product = SwiGLU.apply if torch.is_grad_enabled() else swiglu
    return module.down_proj(product(module.gate_proj(x), module.up_proj(x)))


def _norm(module: Any, x: Tensor) -> Tensor:
    if torch.is_grad_enabled():
        return RMSNorm.apply(x, module.weight, module.variance_epsilon)
    return rms_norm(x, module.weight, module.variance_epsilon)[0]


def fuse(decoder: nn.Module) -> None:
    """Replace the forward pass of every layer that computes what a function above computes. Others (4-bit weights,
    other activations and norms) stay as they are."""
    for module in decoder.modules():
        forward: Any = None
        if isinstance(module, LoraLinear) and type(module.base_layer) is nn.Linear:
            forward = _lora
        elif all(hasattr(module, part) for part in ("gate_proj", "up_proj", "down_proj")):
            forward = _mlp if type(module.act_fn).__name__ in ("SiLU", "SiLUActivation") else None
        elif type(module).__name__ in NORMS:
            forward = _norm
        if forward is not None:
            module.forward = partial(forward, module)
