"""LoRA layer, SwiGLU and RMSNorm of a Llama-like decoder, each as one autograd function: less memory traffic on a CPU.

torch runs each of them as a dozen small operations, every one of which reads and writes all activations, and keeps the
intermediate results for the backward pass. Here the gradient is written out and keeps only what it needs. For dense
weights on a CPU; on a card unsloth's kernels do the same.
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


class LowRank(torch.autograd.Function):
    """x W^T + bias + s (x A^T) B^T with W and bias frozen, for x (tokens, in), W (out, in), A (rank, in), B (out,
    rank)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float
    ) -> Tensor:
        ctx.adapter_type, ctx.scaling = a.dtype, scaling
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = x @ a.T
        ctx.save_for_backward(x, weight, a, b, inner)
        return linear(x, weight, bias).addmm_(inner, b.T, alpha=scaling)

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


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up (Shazeer, "GLU Variants Improve Transformer", arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient * up, gate), silu(gate).mul_(gradient)


class RMSNorm(torch.autograd.Function):
    """weight * x / rms(x) with a frozen weight, computed in float32 (Zhang and Sennrich, "Root Mean Square Layer
    Normalization", arXiv 1910.07467)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.float()
        scale = (wide * wide).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).to(x.dtype).mul_(weight)

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
    rows = x.flatten(0, -2)
    return LowRank.apply(rows, base.weight, base.bias, a, b, module.scaling[name]).view(*x.shape[:-1], -1)


def _mlp(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(SwiGLU.apply(module.gate_proj(x), module.up_proj(x)))


def _norm(module: Any, x: Tensor) -> Tensor:
    return RMSNorm.apply(x, module.weight, module.variance_epsilon)


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
