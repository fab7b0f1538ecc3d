"""What is computed of many rows without gradient, in passes that fit into memory."""

from collections.abc import Callable, Iterable

import torch

from dcr_lite.model.loading import Result, in_halves


@torch.no_grad()
def in_passes(
    parts: Iterable[list[int]],
    work: Callable[[list[int]], list[Result]],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Result]:
    """What ``work`` finds of each row, in the order of the rows' numbers, given those that go through together. parts:
    the numbers of each pass, in all every one from 0 on, once. ``progress`` is called with the number of rows in each
    finished pass.

    Raises UserError where memory does not suffice for one row; for more of them a pass is halved.
    """
    found: dict[int, Result] = {}
    for part in parts:
        found |= zip(part, in_halves(work, part), strict=True)
        progress(len(part))
    return [found[i] for i in range(len(found))]
