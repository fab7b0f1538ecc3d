"""In which numbers a run computes: one that goes on, on another machine perhaps, does so in the same."""

from dcr_lite.errors import UserError
from dcr_lite.model.loading import Model
from dcr_lite.run.run_folder import RunFolder

PART = "numbers"


def require_same_numbers(run: RunFolder, model: Model) -> None:
    """Note the precision of a run's model and whether its weights have 4 bits. Raises UserError where it was begun in
    others: states and answers that it has kept would be of another model."""
    now = {
        "precision": str(model.precision).removeprefix("torch."),
        "quantization": "nf4" if model.four_bit else "none",
    }
    begun = run.finished(PART)
    if begun is None:
        run.finish(PART, now)
    elif asked := [f"--{name} {begun[name]}" for name in now if begun.get(name, now[name]) != now[name]]:
        raise UserError(f"{run.path} was begun in other numbers than this machine's: add {' '.join(asked)}.")
