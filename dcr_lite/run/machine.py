"""Facts about the machine that numbers depend on: peak memory, processor, versions."""

import contextlib
import hashlib
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import psutil
import torch

from dcr_lite import __version__
from dcr_lite.data.rows import read_bytes
from dcr_lite.model.free_memory import trim

PACKAGES = ("dcr-lite", "torch", "transformers", "peft", "bitsandbytes")


def peak_memory_bytes() -> int:
    """The largest memory of this process, since ``forget_peak_memory`` where that works, else so far: on the GPU where
    there is one in use, else on the machine."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    for line in status.read_text(encoding="utf-8").splitlines() if status.exists() else []:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # which Windows does not have

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak_memory() -> None:
    """Count the largest memory anew from here: on the GPU, and on Linux."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trim()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak resident size


def hardware(device: str) -> str:
    """The processor or card that did the work, in words."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    names = [line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return f"{torch.get_num_threads()} threads of {names[0] if names else platform.processor() or platform.machine()}"


def hardware_class(device: str) -> str:
    """What decides how sums are rounded on a device: the card's name; of a processor its architecture and the widest
    instructions that torch's kernels use on it. Machines of one class should give the same answers."""
    if device != "cpu":
        return hardware(device) if device == "cuda" else device
    bfloat16 = (
        name
        for name, there in (
            ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported()), ("AMX", torch.cpu._is_amx_tile_supported())
        )
        if there
    )  # fmt: skip
    return " ".join([platform.machine(), torch.backends.cpu.get_cpu_capability(), *bfloat16])


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": sys.version.split()[0], "dcr-lite": __version__}
    return found | {name: version(name) for name in PACKAGES[1:]}


def source_digest() -> str:
    """SHA-256 of the package's modules, in the order of their paths, the same whatever ends their lines: one version
    can have several sources. Recipes are left out, which are in the package of a wheel alone."""
    folder = Path(__file__).parents[1]
    modules = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    digest = hashlib.sha256()
    for name, path in sorted(modules.items()):
        if not name.startswith("recipes/"):
            digest.update(f"{name}\n".encode() + read_bytes(path).replace(b"\r\n", b"\n"))
    return digest.hexdigest()
