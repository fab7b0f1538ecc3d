"""Exact gradients of a whole-batch loss in the memory of a part of the batch (GradCache; Gao et al., RepL4NLP 2021).

1. Encode every part without a graph and keep only the representations.
2. Compute the loss on all of them at once and take its gradient with respect to each representation.
3. Encode every part again, with a graph, and send its cached gradient back through it.

The two encodings of a part have to be the same: nothing here draws random numbers (adapters without dropout).
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


def backward(
    encode: Callable[[Part], Tensor], parts: Sequence[Part], loss_of: Callable[[Tensor], Tensor]
) -> tuple[float, Tensor]:
    """Accumulate the gradient of ``loss_of(representations)`` in the encoder's parameters.

    encode: a part -> its representations (rows, d_model). It opens its own autocast block, if any.
    loss_of: all representations (rows of all parts, d_model) -> a scalar.
    Returns the loss and the representations, detached. One part takes one ordinary pass.
    """
    if len(parts) == 1:
        representations = encode(parts[0])
        loss = loss_of(representations)
        loss.backward()
        return loss.item(), representations.detach()
    with torch.no_grad():
        encoded = [encode(part) for part in parts]
    leaf = torch.cat(encoded).requires_grad_()
    loss = loss_of(leaf)
    loss.backward()
    assert leaf.grad is not None
    for part, gradient in zip(parts, leaf.grad.split([len(e) for e in encoded]), strict=True):
        encode(part).backward(gradient)
    return loss.item(), leaf.detach()
