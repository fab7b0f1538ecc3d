"""Training in several processes: each computes its share of a batch, all take the same step, and the first one writes.

`accelerate launch` and `torchrun` start one process for each GPU and set its rank in the environment. With a single
process every function here returns what it was given.
"""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from dcr_lite.errors import UserError

T = TypeVar("T")
TIMEOUT = timedelta(hours=6)  # the others wait while the first process loads, evaluates and writes


def world() -> int:
    """The number of processes."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if world() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


@contextmanager
def joined(device: str) -> Iterator[None]:
    """Within the block this process is one of those that a launcher has started: it computes on a GPU of its own, or
    on the CPU where ``device`` is "cpu", and only the first prints to standard output.

    Raises UserError for more processes than GPUs.
    """
    own = int(os.environ["LOCAL_RANK"])
    if device != "cpu" and torch.cuda.is_available():
        if own >= torch.cuda.device_count():
            raise UserError(f"more processes than the {torch.cuda.device_count()} GPUs here: start one for each GPU")
        torch.cuda.set_device(own)
    # NCCL alone, the default where there is a GPU, would leave a run on the CPU without anything.
    on_gpus = device != "cpu" and torch.cuda.is_available()
    distributed.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=TIMEOUT)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(sys.stdout if is_main() else nowhere):
            yield
    finally:
        distributed.destroy_process_group()


def on_main(work: Callable[[], T]) -> T:
    """The result of ``work`` on the first process, returned on all of them. Its UserError is raised on all of them."""
    if world() == 1:
        return work()
    outcome: list[tuple[T | None, UserError | None]] = [(None, None)]
    if is_main():
        try:
            outcome = [(work(), None)]
        except UserError as error:
            outcome = [(None, error)]
    distributed.broadcast_object_list(outcome, src=0)
    result, error_on_main = outcome[0]
    if error_on_main is not None:
        raise error_on_main
    return result  # type: ignore[return-value] # of work


def share(items: Sequence[T]) -> list[T]:
    """This process's part of ``items``, in order; the parts differ by one item at most."""
    size, rest = divmod(len(items), world())
    start = rank() * size + min(rank(), rest)
    return list(items[start : start + size + (rank() < rest)])


def gathered(own: Sequence[T]) -> list[T]:
    """The parts of all processes in the order of ``share``."""
    if world() == 1:
        return list(own)
    parts: list[Sequence[T]] = [[] for _ in range(world())]
    distributed.all_gather_object(parts, own)
    return [item for part in parts for item in part]


def gathered_rows(own: Tensor) -> Tensor:
    """The rows of all processes (rows, width), in the order of ``share``.

    Its gradient flows into this process's own rows alone. Every process computes the same loss of all rows, so that the
    sum of the processes' gradients is that of one process with the whole batch.
    """
    if world() == 1:
        return own
    count = torch.tensor([len(own)], device=own.device)
    counts = [torch.empty_like(count) for _ in range(world())]
    distributed.all_gather(counts, count)
    most = max(int(n) for n in counts)
    padded = own.detach().new_zeros(most, own.shape[1])
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in range(world())]
    distributed.all_gather(parts, padded)
    rows = [part[: int(n)] for part, n in zip(parts, counts, strict=True)]
    rows[rank()] = own
    return torch.cat(rows)


def add_up(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by the sum of all processes' gradients, in one message."""
    if world() == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    whole = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(whole)
    for parameter, part in zip(parameters, whole.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter).clone()


def total(value: float) -> float:
    """The sum of all processes' values."""
    return sum(gathered([value]))
