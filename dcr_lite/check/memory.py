"""What every part of the run is estimated to take, and how much of that fits into the memory that is free."""

from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.reach import folder_of
from dcr_lite.errors import UserError
from dcr_lite.model.free_memory import free_memory
from dcr_lite.model.memory import TITLES, fit, needs
from dcr_lite.model.shapes import shape_of
from dcr_lite.run.obstacles import require_layer
from dcr_lite.run.opening import Machine, what_fits


def look(task: Task) -> Finding:
    """The estimate; gives later parts the model's shape with what fits, None where one of them is not known.

    Raises UserError where L is none of its layers.
    """
    on: Machine | None = task.given_by("machine")
    if on is None:
        return Finding(["not estimated: there is no device to compute on"])
    settings, found = task.settings, Finding()
    model = str(folder_of(settings.model) or settings.model)
    try:
        shape = shape_of(model)
    except UserError as error:
        return Finding(["not estimated"], notes=[str(error)])
    task.tell(Finding(["not estimated"]))
    require_layer(settings, shape.layers)
    try:
        fitting = what_fits(model, settings, on)
    except UserError as error:
        found.problems.append(str(error))
        parts = needs(shape, settings, on.four_bit, on.precision.itemsize, on.device == "cpu")
        fitting = fit(parts, free_memory(on.device), settings.model, insist=False)
    found.given = shape, fitting
    found.values = {
        "free_bytes": round(fitting.free),
        "weights": shape.parameters,
        "parts": {
            name: {"estimated_bytes": round(need.total(n)), "at_once": n, "lowered": n < need.most}
            for (name, need), n in zip(fitting.needs.items(), fitting.units.values(), strict=True)
        },
    }
    largest = max(fitting.needs, key=lambda name: fitting.needs[name].total(fitting.units[name]))
    size = fitting.needs[largest].total(fitting.units[largest])
    bits = "4-bit NF4" if on.four_bit else f"{8 * on.precision.itemsize} bits"
    found.says = [
        f"{fitting.free / 1e9:.1f} GB free; {size / 1e9:.1f} GB at most by the estimate, for {TITLES[largest]} "
        f"({shape.parameters / 1e9:.2f} billion weights in {bits})"
    ]
    return found
