"""How many of the stock model's answers the models of a run keep."""

import time
from typing import Any

from dcr_lite.measure.answers import Measured
from dcr_lite.measure.kept import answers_kept, distances, read_stock_answers, worth_keeping
from dcr_lite.model import adapters, distributed
from dcr_lite.model.loading import Model
from dcr_lite.names import STOCK
from dcr_lite.run.run_folder import RunFolder

MOST = 32  # answers of each label: reading them takes less than a tenth of the evaluation's time (docs/measuring.md)


def measure_kept(run: RunFolder, model: Model, answers: dict[str, list[Measured]]) -> None:
    """Read the stock model's answers to held-out prompts with every trained model, once. answers: of each model."""
    left = [method for method in answers if method != STOCK and not run.finished(_part(method))]
    if not left:
        return
    started = time.monotonic()
    own = distributed.share(worth_keeping(answers[STOCK], MOST))
    stock = read_stock_answers(model, own)
    for method in left:
        adapters.activate(model, method)
        found = distributed.gathered(distances(model, stock))
        kept = answers_kept(found, answers[STOCK], answers[method])
        run.finish(_part(method), {"seconds": time.monotonic() - started, "kept": kept})
        started = time.monotonic()


def kept_of(run: RunFolder, method: str) -> dict[str, Any]:
    """{kept} of a model, for its results; empty for the stock model, which everything is measured by."""
    facts = run.finished(_part(method))
    return {"kept": facts["kept"]} if facts else {}


def kept_seconds(run: RunFolder, method: str) -> float:
    """What it took."""
    return float((run.finished(_part(method)) or {}).get("seconds", 0))


def _part(method: str) -> str:
    return f"kept_{method}"
