"""The loop that both stages share: AdamW, warm-up and cosine decay, observations, checkpoints that are whole or absent.

Why not transformers' Trainer: stage 1 stops at layer L, needs every prompt of a batch in one loss and keeps the
checkpoint that separates unseen pairs best; stage 2 starts from stored states. Each would override most of Trainer, and
a resumed run could not be shown to end, on a CPU, bit for bit where an undisturbed one does.
"""

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from dcr_lite.errors import MethodError
from dcr_lite.interrupts import held
from dcr_lite.method.checkpoint import Progress, restore_checkpoint, save_checkpoint
from dcr_lite.method.pass_size import PassSize
from dcr_lite.model import distributed
from dcr_lite.model.adapters import adapter_weights, set_adapter_weights
from dcr_lite.model.loading import Model, memory_may_run_out, not_finite

WARMUP = 0.1  # of all steps: Adam's second moments are not yet estimated in the first ones
CLIP = 1.0  # gradient norm: one odd batch cannot throw the adapter far
CHECKPOINT_SECONDS = 180.0  # at most so much work is lost; a checkpoint of 8 billion weights' adapter takes 0.7 GB
LEAST_GRADIENT_SCALE = 2.0**-10  # half precision's gradients overflow at it only where the model itself does


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine down to a tenth of ``peak`` at the last step."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


class Stage(Protocol):
    """What the loop trains.

    name: in metrics, files and messages. adapter: the adapter that it trains, of which ``parameters`` are trainable.
    steps, learning_rate (peak), observe_every (in steps): how long, how fast, how often evaluated.
    """

    name: str
    model: Model
    adapter: str
    parameters: list[nn.Parameter]
    steps: int
    learning_rate: float
    observe_every: int

    def step(self, number: int) -> float:
        """Add the gradients of one batch, of this process's share of it, to ``parameters``; returns the loss. Losses
        are multiplied by ``model.gradient_scale`` before their backward pass."""

    def observe(self, step: int) -> dict[str, Any]:
        """What an evaluation finds before step number ``step``; of the key "best" the loop keeps the weights of the
        highest value."""


@dataclass
class Loop:
    """The training of one stage.

    checkpoint: where it is kept every CHECKPOINT_SECONDS, and when Ctrl-C or SIGTERM ends the training. report: called
    with every row of metrics. patience: the training ends after so many evaluations without better weights; 0: never.
    """

    stage: Stage
    checkpoint: Path | None = None
    report: Callable[[dict[str, Any]], None] = lambda row: None
    patience: int = 0

    def run(self) -> Progress:
        """Train to the end, from the checkpoint if there is one. The best weights seen, where "best" is observed,
        are in place afterwards, else the last ones."""
        stage = self.stage
        optimizer = torch.optim.AdamW(stage.parameters, lr=stage.learning_rate, weight_decay=0.0)
        sizes = PassSize(stage.model, stage.name)
        progress = restore_checkpoint(self.checkpoint, stage.model, stage.adapter, optimizer)
        started = saved = time.monotonic()
        before, whole = progress.seconds, True
        try:
            for number in range(progress.step, stage.steps):
                if number % stage.observe_every == 0:
                    self._observe(number, progress)
                    if self._gains_no_more(number, progress):
                        break
                whole = False
                stage.model.set_training(True)
                with held():
                    loss = None
                    while loss is None:  # again where memory runs out, with a lower scale on overflow
                        with contextlib.suppress(torch.OutOfMemoryError), memory_may_run_out():
                            loss = stage.step(number)
                        loss = self._checked(number, loss, sizes)
                    self._update(number, loss, optimizer, progress)
                    sizes.went_well()
                    whole = True
                progress.seconds = before + time.monotonic() - started
                if time.monotonic() - saved >= CHECKPOINT_SECONDS and progress.step < stage.steps:
                    self._save(optimizer, progress)
                    saved = time.monotonic()
            if progress.step == stage.steps:
                self._observe(stage.steps, progress)
        except KeyboardInterrupt:
            if whole and progress.step:
                self._save(optimizer, progress)
            raise
        progress.seconds = before + time.monotonic() - started
        if progress.best_weights is not None:
            set_adapter_weights(stage.model, stage.adapter, progress.best_weights)
        return progress

    def _gains_no_more(self, number: int, progress: Progress) -> bool:
        """Whether the last ``patience`` evaluations have found nothing better."""
        without = number - progress.best_step
        return progress.best_weights is not None and 0 < self.patience * self.stage.observe_every <= without

    def _checked(self, number: int, loss: float | None, sizes: PassSize) -> float | None:
        """The loss of a step whose gradients, summed over processes and in their true size, are ready; None where the
        step has to be taken again. ``loss`` is None where memory ran out."""
        if loss is None:
            self._forget_gradients()
            sizes.ran_out()
            return None
        model, parameters = self.stage.model, self.stage.parameters
        distributed.add_up(parameters)  # of all processes: an overflow in one is one in all
        if not math.isfinite(loss):
            raise self._unstable(number, f"loss {loss}")
        if model.first_gradient_scale == 1:
            return loss
        # float16 rounds small gradients away, so they come multiplied; where that overflows, with half of it again.
        gradients = [p.grad for p in parameters if p.grad is not None]
        if all(bool(g.isfinite().all()) for g in gradients):
            for gradient in gradients:
                gradient /= model.gradient_scale
            return loss
        model.gradient_scale /= 2
        if model.gradient_scale < LEAST_GRADIENT_SCALE:  # the overflow is in the model, not in the scale
            raise self._unstable(number, "gradients that are not finite at any scale")
        self._forget_gradients()
        return None

    def _update(self, number: int, loss: float, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        """Change the weights by the gradients, and note the step as done."""
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(number, self.stage.steps, self.stage.learning_rate)
        norm = float(nn.utils.clip_grad_norm_(self.stage.parameters, CLIP))
        if not math.isfinite(norm):
            raise self._unstable(number, f"gradient norm {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.step = number + 1
        self._tell(progress, {"step": number + 1, "loss": loss, "gradient_norm": norm})

    def _unstable(self, number: int, what: str) -> MethodError:
        where = f"{self.stage.name} became unstable at step {number + 1}, {what}"
        return MethodError(not_finite(self.stage.model, where))

    def _save(self, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        if self.checkpoint:
            save_checkpoint(self.checkpoint, self.stage.model, self.stage.adapter, optimizer, progress)

    def _forget_gradients(self) -> None:
        for parameter in self.stage.parameters:
            parameter.grad = None

    def _tell(self, progress: Progress, row: dict[str, Any]) -> None:
        row = {"stage": self.stage.name, **row}
        progress.metrics.append(row)
        self.report(row)

    def _observe(self, step: int, progress: Progress) -> None:
        seen = distributed.on_main(lambda: self.stage.observe(step))
        if "best" in seen and seen["best"] > progress.best:
            weights = adapter_weights(self.stage.model, self.stage.adapter)
            with held():  # a checkpoint of an interrupt has all three or none
                progress.best, progress.best_step, progress.best_weights = seen["best"], step, weights
        self._tell(progress, {"step": step, **{k: v for k, v in seen.items() if k != "best"}})
