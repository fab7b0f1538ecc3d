"""Stage 2, safety SFT: teach refusals beside general instructions (the Safety-Tuned LLaMAs recipe, Bianchi et al.,
ICLR 2024). By default only the adapter above layer L trains, so that what stage 1 has separated stays separated; then
the states below never change and are computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import sft_batches
from dcr_lite.method.answer_tokens import Tokens, answer_places, backward_through_vocabulary
from dcr_lite.model import distributed
from dcr_lite.model.adapters import train_only
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.free_memory import free_memory
from dcr_lite.model.hidden_states import depth, final_states, states_above, states_at_layer
from dcr_lite.model.loading import Model, in_halves
from dcr_lite.model.packing import Batch, shared_prefix

STORED_SHARE = 0.25  # of this computer's free memory that states of layer L may take
OBSERVATIONS = 5  # along the way to the end, and once before the first step


@dataclass(frozen=True)
class SafetySFTConfig:
    """How safety SFT trains. above: the layer above which the adapter trains, counted from 0; -1 trains all layers."""

    above: int
    epochs: int
    batch_size: int
    learning_rate: float


class SafetySFT:
    """Safety SFT of an adapter on answers only: mean cross-entropy over all answer tokens of a batch (see
    ``loop.Stage``).

    name: "stage2" for DCR's. evaluate: called without arguments, gives what an observation reports.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        adapter: str,
        rows: list[Conversation],
        config: SafetySFTConfig,
        seed: int,
        evaluate: Callable[[], dict[str, Any]] = dict,
    ):
        self.name, self.model, self.adapter, self.evaluate = name, model, adapter, evaluate
        prompts, answers, ends = [r.prompt for r in rows], [r.response for r in rows], [r.ends for r in rows]
        encoded = encode_conversations(model.tokenizer, prompts, answers, model.window, ends)
        self.rows = [Tokens(*row) for row in encoded]
        self.prefix = shared_prefix([row.prompt for row in self.rows])
        self.parameters = train_only(model, adapter, range(config.above + 1, depth(model.network)))
        ids = [row.ids for row in self.rows]
        self.below = states_below(model, ids, self.prefix, config.above) if config.above >= 0 else None
        self.batches = sft_batches(
            list(map(len, ids)), [row.refuses for row in rows], config.batch_size, config.epochs, seed
        )
        self.steps, self.learning_rate = len(self.batches), config.learning_rate
        self.observe_every = -(-self.steps // OBSERVATIONS)

    def step(self, number: int) -> float:
        """One batch's gradients: in each pass states, then logits, loss and backward a few tokens at a time. Returns
        the loss."""
        batch = self.batches[number]
        n_targets = sum(len(self.rows[i].answer) for i in batch)
        own = distributed.share(batch)
        loss = 0.0
        for part in self.model.passes([self.rows[i].ids for i in own], shared=self.prefix):
            states, targets = self.predicting_states([own[k] for k in part])
            weights = torch.full_like(targets, 1 / n_targets, dtype=torch.float32)
            log_p = backward_through_vocabulary(self.model, states, targets, weights)
            loss -= log_p.double().sum().item() / n_targets
        return distributed.total(loss)

    def predicting_states(self, chosen: list[int]) -> tuple[Tensor, Tensor]:
        """Post-norm states from which the chosen rows' answer tokens are predicted (tokens, d_model), and those tokens
        (tokens,)."""
        batch = self.model.batch([self.rows[i].ids for i in chosen], self.prefix)
        places, targets = answer_places(batch, [self.rows[i] for i in chosen])
        with self.model.compute():
            if self.below is None:
                return final_states(self.model.network, batch, places), targets
            below = self.below.of(batch, chosen)
            return states_above(self.model.network, batch, below, self.below.layer, places), targets

    def observe(self, step: int) -> dict[str, Any]:
        """What ``evaluate`` finds."""
        return self.evaluate()


# --- states of layer L, which do not change while only later layers train ---------------------------------------------


class _StoredStates:
    """The states that layer ``layer`` puts out for every row of token ids, computed once. Held on the CPU in the
    model's precision, the shared prefix once."""

    def __init__(self, model: Model, rows: list[list[int]], prefix: int, layer: int):
        self.layer = layer
        self.rows: dict[int, Tensor] = {}
        self.shared = torch.empty(0)
        model.network.eval()

        def states_of(chosen: list[int]) -> list[Tensor]:
            batch = model.batch([rows[i] for i in chosen], prefix)
            with model.compute():
                states = states_at_layer(model.network, batch, layer).cpu()
            self.shared = states[: batch.shared].clone()
            return [states[places.cpu()].clone() for places in batch.index]

        with torch.no_grad():
            for part in model.passes(rows, shared=prefix):
                self.rows |= zip(part, in_halves(states_of, part), strict=True)

    def of(self, batch: Batch, chosen: list[int]) -> Tensor:
        """The states of the chosen rows, laid out as ``batch``: (batch, seq, d_model)."""
        shape = batch.inputs["input_ids"].shape
        flat = self.shared.new_zeros(shape.numel(), self.shared.shape[1])
        flat[: batch.shared] = self.shared
        for i, places in zip(chosen, batch.index, strict=True):
            flat[places.cpu()] = self.rows[i]
        return flat.view(*shape, -1).to(batch.inputs["input_ids"].device)


class _FreshStates:
    """The same states, computed anew for each batch: rows by the ten thousand of a wide model fill a computer."""

    def __init__(self, model: Model, layer: int):
        self.model, self.layer = model, layer

    def of(self, batch: Batch, chosen: list[int]) -> Tensor:
        """The states of the chosen rows, laid out as ``batch``: (batch, seq, d_model)."""
        with torch.no_grad():
            states = states_at_layer(self.model.network, batch, self.layer)
        return states.view(*batch.inputs["input_ids"].shape, -1)


def states_below(model: Model, rows: list[list[int]], prefix: int, layer: int) -> _StoredStates | _FreshStates:
    """The states that ``layer`` puts out for rows of token ids with a shared prefix, while nothing up to that layer
    trains: stored where they fit into this computer's memory."""
    width = model.network.config.hidden_size
    needed = sum(len(row) - prefix for row in rows) * width * model.precision.itemsize
    if needed > STORED_SHARE * free_memory("cpu"):
        return _FreshStates(model, layer)
    return _StoredStates(model, rows, prefix, layer)
