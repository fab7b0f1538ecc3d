"""Benign fine-tuning: what is left of refusals after a few steps on instructions that refuse nothing (Qi et al.,
"Fine-tuning Aligned Language Models Compromises Safety, Even When Users Do Not Intend To!", ICLR 2024, arXiv
2310.03693).

The model's adapter is merged into its weights and a new one trains on all layers, as in safety SFT, whose loss and loop
these are. Each number of steps is a training of its own with its own warm-up and decay, so that it ends as a user's
would; 0 steps show what merging alone changes.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from dcr_lite.data.rows import Conversation
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.probe.merging import active_adapter, merged

ADAPTER = "benign"
ALL_LAYERS = -1  # where safety SFT names the layer above which it trains


@dataclass(frozen=True)
class Tuning:
    """How the new adapter trains: on which rows, its rank, the rows of a step, the peak learning rate, the seed."""

    rows: list[Conversation]
    rank: int
    batch_size: int
    learning_rate: float
    seed: int


@contextmanager
def fine_tuned(
    model: Model, tuning: Tuning, steps: int, progress: Callable[[int], None] = lambda done: None
) -> Iterator[float | None]:
    """Within the block the model, merged, is fine-tuned for so many steps; gives the loss of the last one, None without
    steps. ``progress`` is called with 1 after each. After the block the model is what it was."""
    before, at_once = active_adapter(model), model.tokens_per_pass
    with merged(model):
        adapters.add_adapter(model, ADAPTER, tuning.rank, tuning.seed)
        try:
            adapters.switch(model, ADAPTER)
            yield _train(model, tuning, steps, progress) if steps else None
        finally:
            # Before it goes: peft would look for the next active one on the first map, which may have no other.
            adapters.activate(model, next(name for name in model.network.peft_config if name != ADAPTER))
            model.network.delete_adapter(ADAPTER)
            adapters.switch(model, before)
            model.tokens_per_pass = at_once


def _train(model: Model, tuning: Tuning, steps: int, progress: Callable[[int], None]) -> float:
    model.plan_passes("stage2")
    epochs = -(-steps * tuning.batch_size // len(tuning.rows))
    config = SafetySFTConfig(ALL_LAYERS, epochs, tuning.batch_size, tuning.learning_rate)
    stage = SafetySFT(ADAPTER, model, ADAPTER, tuning.rows, config, tuning.seed)
    stage.batches = stage.batches[:steps]
    stage.steps = len(stage.batches)
    done = Loop(stage, report=lambda row: progress(int("loss" in row))).run()
    return float([row["loss"] for row in done.metrics if "loss" in row][-1])
