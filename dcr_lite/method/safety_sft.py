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
from dcr_lite.model import distributed
from dcr_lite.model.adapters import train_only
from dcr_lite.model.answer_tokens import Tokens, answer_places, backward_through_vocabulary
from dcr_lite.model.chat import encode_rows
from dcr_lite.model.double import in_double
from dcr_lite.model.hidden_states import depth, final_states, states_above
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import shared_prefix
from dcr_lite.model.states_below import states_below

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
        self.rows = [Tokens(*row) for row in encode_rows(model.tokenizer, rows, model.window)]
        self.prefix = shared_prefix([row.prompt for row in self.rows])
        self.parameters = train_only(model, adapter, range(config.above + 1, depth(model.network)))
        ids = [row.ids for row in self.rows]
        self.below = states_below(model, dict(enumerate(ids)), self.prefix, config.above) if config.above >= 0 else None
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
            loss -= in_double(log_p).sum().item() / n_targets
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
