"""The machine: processor or card, driver, torch's build, and the numbers that the run computes in, tried out."""

import platform
from typing import Any

import psutil
import torch

from dcr_lite.check.finding import Finding, Task
from dcr_lite.errors import UserError
from dcr_lite.model import cuda, loading
from dcr_lite.run.machine import hardware, versions
from dcr_lite.run.obstacles import require_tracker
from dcr_lite.run.opening import Machine, machine

EXACT = 0.02  # relative error of a product: bfloat16 keeps 8 bits, and its products were within 0.004


def look(task: Task) -> Finding:
    """What this machine is; gives later parts the ``Machine`` of the run, None where it cannot begin."""
    found = Finding(values=facts())
    found.says = _lines(found.values)
    task.tell(found)  # what follows may fail on a card that torch cannot use
    try:
        require_tracker(task.settings)
    except UserError as error:
        found.problems.append(str(error))
    try:
        on = machine(task.settings)
    except UserError as error:
        found.problems.append(str(error))
        return found
    precision = str(on.precision).removeprefix("torch.")
    native = loading.best_precision(on.device) == on.precision
    found.values |= {"device": on.device, "precision": precision, "precision_is_native": native}
    found.says.append(f"the run computes on {on.device} in {precision}")
    found.values["product_error"] = error_of_product = product_error(on)
    if not error_of_product <= EXACT:
        found.problems.append(
            f"a product in {precision} on {on.device} is off by {error_of_product:.0%}: the driver and this build of "
            "torch do not fit together, or the card is faulty. Reinstall torch, or use --device cpu."
        )
        return found
    found.given = on
    return found


def facts() -> dict[str, Any]:
    """What there is, whatever the run uses of it."""
    memory = psutil.virtual_memory()
    values: dict[str, Any] = {
        "system": f"{platform.system()} {platform.release()}",
        "processor": hardware("cpu"),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "versions": versions(),
        "cuda_of_torch": torch.version.cuda,
        "driver": cuda.driver_version() if cuda.card_is_there() else None,
        "cards": [],
    }
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(i)
        free, _ = torch.cuda.mem_get_info(i)
        capability = f"{card.major}.{card.minor}"
        size = {"memory_bytes": card.total_memory, "memory_free_bytes": free}
        values["cards"].append({"name": card.name, "capability": capability, **size})
    return values


def product_error(on: Machine) -> float:
    """The relative error of a product of two matrices in the run's precision on its device."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(256, 256, generator=generator) for _ in range(2))
    product = torch.mm(a.to(on.device, on.precision), b.to(on.device, on.precision)).cpu().double()
    exact = a.double() @ b.double()
    return float((product - exact).norm() / exact.norm())


def _lines(values: dict[str, Any]) -> list[str]:
    size = f"{values['memory_bytes'] / 1e9:.1f} GB, {values['memory_free_bytes'] / 1e9:.1f} GB free"
    lines = [f"{values['processor']}; {size}"]
    for card in values["cards"]:
        size = f"{card['memory_bytes'] / 1e9:.1f} GB, {card['memory_free_bytes'] / 1e9:.1f} GB free"
        lines.append(f"{card['name']}, capability {card['capability']}; {size}")
    cuda = f"for CUDA {values['cuda_of_torch']}" if values["cuda_of_torch"] else "without CUDA"
    driver = f"NVIDIA driver {values['driver']}" if values["driver"] else "no NVIDIA driver"
    return [*lines, f"torch {values['versions']['torch']}, {cuda}; {driver}"]
