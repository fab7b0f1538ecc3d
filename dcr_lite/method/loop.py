"""The loop that both stages share: AdamW, warm-up and cosine decay, observations, checkpoints that are whole or absent.

Why not transformers' Trainer: stage 1 stops at layer L, needs every prompt of a batch in one loss and keeps the
checkpoint that separates unseen pairs best; stage 2 starts from stored states. Each would override most of Trainer, and
a resumed run could not be shown to end bit for bit where an undisturbed one does.
"""

import contextlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.errors import UserError
from dcr_lite.model import distributed
from dcr_lite.model.adapters import adapter_weights, set_adapter_weights
from dcr_lite.model.loading import NO_ROOM, Model

WARMUP = 0.1  # of all steps: Adam's second moments are not yet estimated in the first ones
CLIP = 1.0  # gradient norm: one odd batch cannot throw the adapter far


def learning_rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first tenth, then a cosine down to a tenth of ``peak`` at the last step."""
    warmup = max(1, round(steps * WARMUP))
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


@dataclass
class Progress:
    """Where a stage stands: what a checkpoint holds besides the weights."""

    step: int = 0
    metrics: list[dict[str, Any]] = field(default_factory=list)
    best: float = -math.inf
    best_step: int = 0
    best_weights: dict[str, Tensor] | None = None
    seconds: float = 0.0


def save_whole(value: Any, path: Path) -> None:
    """torch.save that leaves either the old file or the whole new one, whenever the machine stops."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's own writer says RuntimeError where the disk is full
        partial.unlink(missing_ok=True)
        reason = getattr(error, "strerror", None) or "the disk took only a part"
        raise UserError(f"{path}: cannot be written ({reason}); free some disk, then go on with --resume") from None


@dataclass
class Loop:
    """One training stage.

    name: its name in metrics and messages. adapter: the adapter that it trains.
    backward: step number -> loss; accumulates gradients in ``parameters``, of this process's share of the batch.
    observe: step number -> what was seen (a key "best" makes the loop keep the weights of its highest value).
    observe_every, checkpoint_every: in steps.
    report: is told about every step taken and everything observed.
    """

    name: str
    model: Model
    adapter: str
    parameters: list[nn.Parameter]
    steps: int
    learning_rate: float
    backward: Callable[[int], float]
    observe: Callable[[int], dict[str, Any]]
    observe_every: int
    checkpoint: Path | None = None
    checkpoint_every: int = 10
    report: Callable[[dict[str, Any]], None] = lambda row: None

    def run(self) -> Progress:
        """Train to the end, from the checkpoint if there is one. The best weights seen, where "best" is observed,
        are in place afterwards, else the last ones."""
        optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)
        progress = self._restore(optimizer)
        started = time.monotonic() - progress.seconds
        for step in range(progress.step, self.steps):
            if step % self.observe_every == 0:
                self._observe(step, progress)
            self.model.network.train()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, self.steps, self.learning_rate)
            loss = self._gradients(step)
            norm = float(nn.utils.clip_grad_norm_(self.parameters, CLIP))
            if not math.isfinite(loss) or not math.isfinite(norm):
                raise UserError(
                    f"{self.name} became unstable at step {step + 1} (loss {loss}, gradient norm {norm}). "
                    "Lower its learning rate, or use --precision float32."
                )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step = step + 1
            self._tell(progress, {"step": step + 1, "loss": loss, "gradient_norm": norm})
            progress.seconds = time.monotonic() - started
            if progress.step % self.checkpoint_every == 0 and progress.step < self.steps:
                self._save(optimizer, progress)
        self._observe(self.steps, progress)
        progress.seconds = time.monotonic() - started
        if progress.best_weights is not None:
            set_adapter_weights(self.model, self.adapter, progress.best_weights)
        return progress

    def _gradients(self, step: int) -> float:
        """One batch's gradients in their true size. float16 rounds small ones away, so stages multiply their losses by
        ``gradient_scale``; where that overflows, the batch goes through again with half of it, so no step is lost."""
        while True:
            loss = self._backward(step)
            distributed.add_up(self.parameters)  # of all processes: an overflow in one is one in all
            if self.model.gradient_scale == 1:
                return loss
            gradients = [p.grad for p in self.parameters if p.grad is not None]
            if all(bool(g.isfinite().all()) for g in gradients):
                for gradient in gradients:
                    gradient /= self.model.gradient_scale
                return loss
            self.model.gradient_scale /= 2
            for parameter in self.parameters:
                parameter.grad = None

    def _backward(self, step: int) -> float:
        """One batch's gradients; where memory runs out, from the beginning with half as many tokens at once."""
        while True:
            with contextlib.suppress(torch.OutOfMemoryError):
                return self.backward(step)
            # Out here nothing refers to the tensors of the failed pass any more.
            for parameter in self.parameters:
                parameter.grad = None
            if distributed.world() > 1:  # the others wait for this pass, and would wait for ever
                raise UserError(
                    f"{self.name}: memory runs out in process {distributed.rank()}. With several processes nothing is "
                    "lowered on the way: take smaller batches, or a single process, which lowers its own."
                )
            if not self.model.narrow():
                raise UserError(f"{self.name}: {NO_ROOM}")
            torch.cuda.empty_cache()
            print(f"{self.name}: out of memory; goes on with {self.model.tokens_per_pass:,} tokens at once", flush=True)

    def _tell(self, progress: Progress, row: dict[str, Any]) -> None:
        row = {"stage": self.name, **row}
        progress.metrics.append(row)
        self.report(row)

    def _observe(self, step: int, progress: Progress) -> None:
        seen = distributed.on_main(lambda: self.observe(step))
        if "best" in seen and seen["best"] > progress.best:
            progress.best, progress.best_step = seen["best"], step
            progress.best_weights = adapter_weights(self.model, self.adapter)
        self._tell(progress, {"step": step, **{k: v for k, v in seen.items() if k != "best"}})

    def _save(self, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
        if self.checkpoint is not None and distributed.is_main():
            weights = adapter_weights(self.model, self.adapter)
            save_whole(
                {"weights": weights, "optimizer": optimizer.state_dict(), "progress": vars(progress)}, self.checkpoint
            )

    def _restore(self, optimizer: torch.optim.Optimizer) -> Progress:
        if self.checkpoint is None or not self.checkpoint.exists():
            return Progress()
        saved = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        set_adapter_weights(self.model, self.adapter, saved["weights"])
        optimizer.load_state_dict(saved["optimizer"])
        return Progress(**saved["progress"])
