"""Exact gradients of a whole-batch loss in the memory of a part of the batch (GradCache; Gao et al., RepL4NLP 2021)."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

Row = TypeVar("Row")


class GradCache(Generic[Row]):
    """The representations of a batch that is encoded in parts, and the way back through the encoder.

    1. Encode every part without a graph and keep only the representations: ``states`` (rows, d_model), in the order of
       the rows.
    2. The caller computes a loss on all of them at once and calls its ``backward()``.
    3. ``backward()`` here encodes every part again, with a graph, and sends its cached gradient back through it.

    The two encodings of a part have to be the same: nothing here draws random numbers (adapters without dropout). One
    part takes one ordinary pass, whose graph reaches the encoder already.

    encode: some rows -> their representations (rows, d_model). It opens its own autocast block, if any.
    parts: the numbers of the rows of each part; every row is in one of them.
    """

    def __init__(self, encode: Callable[[list[Row]], Tensor], rows: Sequence[Row], parts: Sequence[Sequence[int]]):
        self.encode, self.parts = encode, parts
        self.rows = [[rows[i] for i in part] for part in parts]
        order = torch.tensor([i for part in parts for i in part]).argsort()  # back to that of the rows
        if len(parts) == 1:
            states = encode(self.rows[0])
            self.states = states[order.to(states.device)]
            return
        with torch.no_grad():
            states = torch.cat([encode(part) for part in self.rows])
        self.states = states[order.to(states.device)].requires_grad_()

    def backward(self) -> None:
        """Add the gradient of the loss to the encoder's parameters."""
        if len(self.parts) == 1:
            return
        assert self.states.grad is not None
        for part, rows in zip(self.parts, self.rows, strict=True):
            self.encode(rows).backward(self.states.grad[torch.tensor(part, device=self.states.device)])
