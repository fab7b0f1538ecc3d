"""Linear maps of few rows on a CPU, such as a token for each answer of a batch: as (W x^T)^T.

In float32 Intel's library computes that product faster than x W^T where the rows are few but not very few: a token for
each of 16 to 48 answers takes 0.7 to 0.8 of the time (docs/performance.md).
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

FEWEST, MOST = 8, 48


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, in the faster form where no gradient is recorded: in passes without any, and in
    functions that have their own backward pass."""
    return _linear(x, weight, bias).contiguous()  # attention's kernels take nothing else


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.numel() // x.shape[-1]
    few = FEWEST <= rows <= MOST and torch.backends.mkl.is_available()
    if not few or torch.is_grad_enabled() or x.dtype != torch.float32 or x.device.type != "cpu":
        return functional.linear(x, weight, bias)
    out = (weight @ x.reshape(rows, -1).t()).t()
    if bias is not None:
        out += bias
    return out.unflatten(0, x.shape[:-1])


def speed_up(network: Any) -> None:
    """Have all dense linear maps of a network computed so. Logits, which are many, are left as they come to lie."""
    for module in network.modules():
        if type(module) is nn.Linear:
            product = _linear if module is network.get_output_embeddings() else linear
            module.forward = partial(_forward, module, product)  # type: ignore[method-assign]


def _forward(module: nn.Linear, product: Any, x: Tensor) -> Tensor:
    result: Tensor = product(x, module.weight, module.bias)
    return result
