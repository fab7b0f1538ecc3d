"""Exact gradients of a whole-batch loss in the memory of a part of the batch (GradCache; Gao et al., RepL4NLP 2021)."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")


class GradCache(Generic[Part]):
    """The representations of a batch that is encoded in parts, and the way back through the encoder.

    1. Encode every part without a graph and keep only the representations: ``states`` (rows of all parts, d_model).
    2. The caller computes a loss on all of them at once and calls its ``backward()``.
    3. ``backward()`` here encodes every part again, with a graph, and sends its cached gradient back through it.

    The two encodings of a part have to be the same: nothing here draws random numbers (adapters without dropout). One
    part takes one ordinary pass, whose graph reaches the encoder already.

    encode: a part -> its representations (rows, d_model). It opens its own autocast block, if any.
    """

    def __init__(self, encode: Callable[[Part], Tensor], parts: Sequence[Part]):
        self.encode, self.parts = encode, parts
        if len(parts) == 1:
            self.states = encode(parts[0])
            return
        with torch.no_grad():
            encoded = [encode(part) for part in parts]
        self.lengths = [len(states) for states in encoded]
        self.states = torch.cat(encoded).requires_grad_()

    def backward(self) -> None:
        """Add the gradient of the loss to the encoder's parameters."""
        if len(self.parts) == 1:
            return
        assert self.states.grad is not None
        for part, gradient in zip(self.parts, self.states.grad.split(self.lengths), strict=True):
            self.encode(part).backward(gradient)
