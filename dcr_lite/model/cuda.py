"""The device of a command; whether an NVIDIA card can be used, and if not, what to do: a run must not begin on the CPU
because of a driver.

torch only says that CUDA is not available. The reason is nearly always a driver older than the CUDA that torch was
built with, or a build without CUDA, or a card that the build has no kernels for.
"""

import ctypes
import ctypes.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from dcr_lite.errors import UserError

# The oldest driver for each major version of CUDA on Linux (NVIDIA, "CUDA Compatibility": minor versions).
DRIVERS = {11: "450", 12: "525", 13: "580"}
LINUX_DRIVER = Path("/proc/driver/nvidia/version")
CPU_INSTEAD = "To compute on the CPU, which may take days, add --device cpu"


def device_of(flag: str) -> str:
    """The device that --device chooses; auto: CUDA where torch can use a GPU, else the CPU. Raises UserError for one
    that is not there."""
    if flag == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if flag == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA GPU. Use --device cpu, or install a CUDA build of torch.")
    if flag == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: torch sees no GPU of a Mac. Use --device cpu.")
    return flag


def obstacle() -> str | None:
    """What keeps an NVIDIA card from being used, with the cure; None where one can be used, or none is there."""
    if torch.cuda.is_available():
        return _missing_kernels(torch.cuda.get_device_capability(), torch.cuda.get_arch_list())
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "any").strip() in ("", "-1")  # as whoever started this wants it
    if hidden or not card_is_there():
        return None
    driver = driver_version() or "of unknown version"
    if torch.version.cuda is None:
        return (
            "an NVIDIA card is there, and this torch was built without CUDA. Install a CUDA build of torch "
            f"(pip install torch on Linux; pytorch.org on Windows). {CPU_INSTEAD}."
        )
    needed = DRIVERS.get(int(torch.version.cuda.split(".")[0]), DRIVERS[max(DRIVERS)])
    return (
        f"an NVIDIA card is there, and torch {torch.__version__} (CUDA {torch.version.cuda}) cannot use it with the "
        f"driver {driver}: it needs driver {needed} or newer. Update the driver, or install a torch for an older CUDA. "
        f"{CPU_INSTEAD}."
    )


def card_is_there() -> bool:
    """Whether the machine has an NVIDIA card or its driver, whatever torch makes of it."""
    if LINUX_DRIVER.exists() or shutil.which("nvidia-smi") is not None:
        return True
    return sys.platform == "win32" and ctypes.util.find_library("nvcuda") is not None


def driver_version() -> str | None:
    """The version of the NVIDIA driver, such as 550.54.15; None where nothing tells it."""
    if LINUX_DRIVER.exists():
        found = re.search(r"\d{3,}\.\d+(\.\d+)?", LINUX_DRIVER.read_text(encoding="utf-8"))
        return found[0] if found else None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return said[0] if said else None


def _missing_kernels(capability: tuple[int, int], built_for: list[str]) -> str | None:
    """CUDA 13 left out the cards before capability 7.5, and builds from before Blackwell have nothing for 12.0; torch
    only warns, and the first kernel fails.

    Compiled kernels (sm_XY) run on the same and later minor versions of their major one, PTX (compute_XY) is compiled
    for all later cards.
    """
    found = [match for arch in built_for if (match := re.fullmatch(r"(sm|compute)_(\d+)[af]?", arch))]
    built = [(match[1], int(match[2])) for match in found]
    own = capability[0] * 10 + capability[1]
    if not built or any(at <= own and (kind == "compute" or at // 10 == capability[0]) for kind, at in built):
        return None
    least, most = (of(at for _, at in built) for of in (min, max))
    has, other = f"from {least // 10}.{least % 10} on", "an older CUDA (12.6: pytorch.org, previous versions)"
    if own > least:
        has, other = f"up to {most // 10}.{most % 10} and none for it", "a newer CUDA (pytorch.org)"
    return (
        f"this card has capability {capability[0]}.{capability[1]}, and torch {torch.__version__} (CUDA "
        f"{torch.version.cuda}) has kernels {has}. Install a torch built for {other}. {CPU_INSTEAD}."
    )
