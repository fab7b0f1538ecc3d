"""Safety SFT against TRL's SFTTrainer, on the same rows.

    pip install -c constraints.txt -e '.[benchmark]'
    python benchmarks/stage2.py                      # against TRL at its fastest: no gradient checkpointing
    python benchmarks/stage2.py --checkpointing      # against TRL as it comes: slower and smaller

Two comparisons, which mean different things:

- *all layers against all layers*: the same work to the last gradient; the gain is how it is done.
- *recipe against recipe*: DCR's stage 2 trains the adapter above layer L only, from states computed once for all
  epochs. That is less work, not equal work, and what a user of either waits for. Ours includes computing the states.

Each turn is a whole training of some batches, through ``Loop.run`` and ``SFTTrainer.train``. TRL gets the same token
ids in the same batches (rows of similar length together, which it would not do by itself), completion-only loss, the
same LoRA configuration and autocast to the same precision; its own choices stay (chunked loss, fused AdamW).
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from _measure import Case, Outcome, Result, Step, finish, memory_results, rates, require_equal, time_sides
from _sides import ADAPTER, load
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoTokenizer

from dcr_lite.data.rows import Conversation, read_conversations
from dcr_lite.data.sources import locate
from dcr_lite.data.splits import safety_mixture, sft_batches
from dcr_lite.files import SHIPPED
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.hidden_states import depth


@dataclass
class Stage2(Case):
    """What to measure."""

    layer: int | None = None
    """L, counted from 0. Unset: half the depth."""
    rows: int = 24
    """Rows of the recipe's mixture in one training."""
    batch: int = 8
    """Rows in a step."""
    epochs: int = 2
    """Passes over the rows; stored states are computed once for all of them."""
    checkpointing: bool = False
    """Gradient checkpointing in TRL, which is its default: less memory, a second forward pass."""


@contextmanager
def first_step(network: nn.Module) -> Iterator[Outcome]:
    """Collects the gradients with which the first optimizer step inside the block is taken, by parameter name."""
    seen: Outcome = {}
    names = {id(p): name for name, p in network.named_parameters()}

    def keep(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        if not seen:
            for group in optimizer.param_groups:
                seen.update({names[id(p)]: p.grad.detach().float().cpu() for p in group["params"]})

    handle = register_optimizer_step_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def conversations(case: Stage2) -> list[Conversation]:
    """The first rows of the recipe's mixture."""
    instructions, refusals = (read_conversations(SHIPPED / f"{kind}.jsonl") for kind in ("instructions", "refusals"))
    return safety_mixture(instructions, refusals, 288, 20, case.seed)[: case.rows]


def encoded(tokenizer: Any, rows: list[Conversation], window: int) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) of each row as token ids."""
    return encode_conversations(tokenizer, [r.prompt for r in rows], [r.response for r in rows], window)


def _ours(case: Stage2, precision: torch.dtype, above: Callable[[int], int]) -> Step:
    model, rows = load(case, precision), conversations(case)
    config = SafetySFTConfig(above(depth(model.network)), case.epochs, case.batch, 1e-5)

    def train(_i: int) -> Outcome:
        with first_step(model.network) as seen:
            progress = Loop(SafetySFT("stage2", model, ADAPTER, rows, config, case.seed)).run()
        return {"loss": progress.metrics[1]["loss"], **seen}  # entry 0 is the evaluation before the first step

    return train


def all_layers(case: Stage2, precision: torch.dtype) -> Step:
    """The package's safety SFT on all layers."""
    return _ours(case, precision, lambda depth: -1)


def above_layer(case: Stage2, precision: torch.dtype) -> Step:
    """The package's stage 2 as the recipe runs it: above L, from stored states."""
    return _ours(case, precision, lambda depth: depth // 2 if case.layer is None else case.layer)


def _batches_in_a_row(case: Stage2, tokenizer: Any, window: int) -> list[dict[str, list[int]]]:
    """The rows of our batches of all epochs, one after the other, as TRL reads them."""
    rows = conversations(case)
    tokens = encoded(tokenizer, rows, window)
    lengths, refuses = [len(p) + len(a) for p, a in tokens], [r.refuses for r in rows]
    batches = sft_batches(lengths, refuses, case.batch, case.epochs, case.seed)
    ordered = [tokens[i] for batch in batches for i in batch]
    return [{"input_ids": p + a, "completion_mask": [0] * len(p) + [1] * len(a)} for p, a in ordered]


def trl_config(case: Stage2, precision: torch.dtype) -> Any:
    """TRL's settings: our batches in our order, and its own choices else."""
    from trl import SFTConfig

    return SFTConfig(
        output_dir=tempfile.mkdtemp(prefix="trl_"),
        use_cpu=case.where == "cpu",
        bf16=precision == torch.bfloat16,
        fp16=precision == torch.float16,
        gradient_checkpointing=case.checkpointing,
        per_device_train_batch_size=case.batch,
        num_train_epochs=1,  # the data set holds every epoch's batches one after the other
        train_sampling_strategy="sequential",
        completion_only_loss=True,
        packing=False,
        padding_free=False,
        max_length=None,
        learning_rate=1e-5,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )


def trl(case: Stage2, precision: torch.dtype) -> Step:
    """TRL's SFTTrainer on the same model, rows and batches."""
    from datasets import Dataset, disable_progress_bars
    from transformers import TrainerCallback
    from trl import SFTTrainer

    class Losses(TrainerCallback):
        """Keeps what the trainer logs."""

        def __init__(self) -> None:
            self.seen: list[float] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
            if logs and "loss" in logs:
                self.seen.append(float(logs["loss"]))

    disable_progress_bars()
    model = load(case, precision, stock_layers=True)
    for key, parameter in model.network.named_parameters():
        parameter.requires_grad_(f".{ADAPTER}." in key)
    losses = Losses()
    trainer = SFTTrainer(
        model.network,
        trl_config(case, precision),
        train_dataset=Dataset.from_list(_batches_in_a_row(case, model.tokenizer, model.window)),
        processing_class=model.tokenizer,
        callbacks=[losses],
    )
    trainer.remove_callback(next(type(c) for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))

    def train(_i: int) -> Outcome:
        losses.seen.clear()
        with first_step(model.network) as seen:
            trainer.train()
        return {"loss": losses.seen[0], **seen}

    return train


def tokens_of(case: Stage2) -> int:
    """Tokens of all rows in all epochs, prompt and answer, without padding: the same number for every side."""
    tokenizer = AutoTokenizer.from_pretrained(locate(case.model)[0])
    return case.epochs * sum(len(p) + len(a) for p, a in encoded(tokenizer, conversations(case), 10**9))


def main(case: Stage2) -> list[Result]:
    # Whole batches only: TRL would fill an epoch's last batch up with rows of the next epoch.
    case = replace(case, rows=case.rows // case.batch * case.batch)
    equal_to = require_equal(all_layers, trl, case)
    seconds = time_sides({"all": all_layers, "recipe": above_layer, "trl": trl}, case)
    tokens = tokens_of(case)
    speed = {name: rates(tokens, turns) for name, turns in seconds.items()}
    like, recipe = "all layers against all layers", "recipe against recipe (above L, all layers)"
    results = [
        Result.of(f"{like}: training", speed["all"], speed["trl"], "tokens/s", equal_to),
        *memory_results(like, all_layers, trl, case, equal_to, steps=1),
        Result.of(f"{recipe}: training", speed["recipe"], speed["trl"], "tokens/s", equal_to),
        *memory_results(recipe, above_layer, trl, case, equal_to, steps=1),
    ]
    how = "with gradient checkpointing, its default" if case.checkpointing else "without gradient checkpointing"
    note = "Recipe against recipe is less work, not equal work: its last column speaks of all layers."
    return finish(case, results, "ours", f"TRL {how}", note)


if __name__ == "__main__":
    main(tyro.cli(Stage2, description=__doc__))
