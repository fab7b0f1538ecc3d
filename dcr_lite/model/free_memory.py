"""Memory that is free now: on a card, and on this computer within the limits of the process."""

import contextlib
import ctypes
import gc
import sys
from pathlib import Path

import psutil

CGROUPS = (  # (limit, usage) of version 2 and of version 1, as a container sees them
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def free_memory(device: str) -> float:
    """Bytes free on the device now; for "cpu" those that this computer can give without swapping, within the limits of
    a container and of the address space."""
    if device == "cpu":
        return min(float(psutil.virtual_memory().available), within_limits())
    import torch

    if device == "cuda":
        # Else a model that nothing holds any more would count: its 4-bit weights and their layers refer to each other,
        # and torch caches what is freed.
        gc.collect()
        torch.cuda.empty_cache()
        return float(torch.cuda.mem_get_info()[0])
    return float(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())


def within_limits() -> float:
    """Bytes that the process may still take before a limit ends it, where no swapping helps; infinite without one."""
    return min(_left_in_cgroup(), _left_in_address_space())


def _left_in_cgroup() -> float:
    left = float("inf")
    for limit, usage in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # not Linux, or "max": no limit
            most = int(Path(limit).read_text(encoding="utf-8"))
            if most < psutil.virtual_memory().total:  # version 1 writes a number without meaning where there is none
                left = min(left, most - int(Path(usage).read_text(encoding="utf-8")))
    return left


def _left_in_address_space() -> float:
    if sys.platform == "win32":
        return float("inf")
    import resource  # which Windows does not have

    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    return float("inf") if most == resource.RLIM_INFINITY else float(most - psutil.Process().memory_info().vms)


def empty_cache() -> None:
    """Give back the memory of tensors that nothing holds any more: of a failed pass, or of a stage that is done."""
    import torch

    torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()
    trim()


def trim() -> None:
    """Give back the blocks that glibc keeps though they are free (``loading.keep_freed_memory``): of a stage a gigabyte
    and more, which else counts beside whatever comes after it. A no-op off Linux with glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
