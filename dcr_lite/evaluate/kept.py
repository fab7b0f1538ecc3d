"""How many of the stock model's answers a measured adapter keeps: ``dcr-lite evaluate --kept``."""

from collections.abc import Callable
from typing import Any

from dcr_lite.data.rows import Prompt
from dcr_lite.data.splits import characters
from dcr_lite.errors import UserError
from dcr_lite.measure.answers import Measured, measure
from dcr_lite.measure.kept import answers_kept, distances, read_stock_answers, worth_keeping
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import KEPT_LABELS
from dcr_lite.run.opening import Opened
from dcr_lite.run.terminal import progress_bar

CHUNK = 64  # prompts between two savings


def require_adapter(opened: Opened, asked_for: bool) -> None:
    """Raises UserError where answers kept are asked for of a model that is its own stock model."""
    if asked_for and opened.adapter is None:
        raise UserError(f"--kept: {opened.base} is the stock model itself, which keeps every answer. Leave --kept out.")


def measure_kept(
    model: Model, prompts: list[Prompt], measured: list[Measured], answer_tokens: int, parts: dict[str, Any],
    save: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """``answers_kept`` of the opened adapter. measured: its answers to the prompts. parts: where the stock model's
    answers so far are kept, which ``save`` writes, so that a stopped process is continued."""
    asked = sorted((p for p in prompts if p.label in KEPT_LABELS), key=characters)
    stock: list[Measured] = parts.setdefault("Stock answers", [])
    with progress_bar("Stock answers", max(1, len(asked))) as shown, adapters.stock(model):
        shown.start_at(len(stock))
        while len(stock) < len(asked):
            stock += measure(model, asked[len(stock) :][:CHUNK], answer_tokens, shown.advance)
            save()
    chosen = worth_keeping(stock)
    with progress_bar("Answers kept", max(1, len(chosen))) as shown:
        found = distances(model, read_stock_answers(model, chosen), shown.advance)
    return answers_kept(found, stock, measured)
