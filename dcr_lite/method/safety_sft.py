"""Stage 2, safety SFT: teach refusals beside general instructions (the Safety-Tuned LLaMAs recipe, Bianchi et al.,
ICLR 2024). By default only the adapter above layer L trains, so that what stage 1 has separated stays separated; then
the states below never change and are computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.rows import Conversation
from dcr_lite.data.splits import sft_batches
from dcr_lite.method.loop import Loop, Progress
from dcr_lite.model import distributed
from dcr_lite.model.adapters import stock, train_only
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.fit import free_memory
from dcr_lite.model.hidden_states import depth, final_states, states_above, states_at_layer, vocabulary_logits
from dcr_lite.model.loading import Model, in_halves
from dcr_lite.model.packing import Batch, filled, shared_prefix

STORED_SHARE = 0.25  # of this computer's free memory that states of layer L may take
STOCK_ROWS = 16  # rows whose stock states are computed together
LOGITS_PER_PASS = 128  # answer tokens whose logits exist at once: 25 MB in float32 for a vocabulary of 49,152


@dataclass(frozen=True)
class SafetySFT:
    """How stage 2 trains. above: the layer above which the adapter trains, counted from 0; -1 trains all layers.
    keep: weight of the divergence from the stock model, KL(stock || trained) in nats a token of general answers.
    looks: how often it is observed on the way to the end, and once before the first step."""

    above: int
    epochs: int
    batch_size: int
    learning_rate: float
    keep: float = 0.0
    looks: int = 5


@dataclass(frozen=True)
class Tokens:
    """A training row: the chat template's ids up to the answer, and the answer's."""

    prompt: list[int]
    answer: list[int]

    @property
    def ids(self) -> list[int]:
        return self.prompt + self.answer


def _answer_places(batch: Batch, rows: list[Tokens]) -> tuple[Tensor, Tensor]:
    """Where in the flattened batch each answer token is predicted (one place before it stands), and the tokens."""
    places, targets = [], []
    for row, own in zip(rows, batch.index, strict=True):
        first = len(row.prompt) - batch.shared - 1
        places.append(own[first : first + len(row.answer)])
        targets += row.answer
    return torch.cat(places), torch.tensor(targets, device=places[0].device)


class _StoredStates:
    """The states that layer ``layer`` puts out for every row, computed once: they never change while only later layers
    train. Held on the CPU in the model's precision, the shared prefix once."""

    def __init__(self, model: Model, rows: list[Tokens], prefix: int, layer: int):
        self.layer = layer
        self.rows: dict[int, Tensor] = {}
        self.shared = torch.empty(0)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
        model.network.eval()

        def states_of(chosen: list[int]) -> list[Tensor]:
            batch = model.batch([rows[i].ids for i in chosen], prefix)
            with model.compute():
                states = states_at_layer(model.network, batch, layer).cpu()
            self.shared = states[: batch.shared].clone()
            return [states[places.cpu()].clone() for places in batch.index]

        start, most = 0, model.tokens_per_pass
        with torch.no_grad():
            while start < len(order):
                stop, tokens = start, 0
                while stop < len(order) and (stop == start or tokens + len(rows[order[stop]].ids) <= most):
                    tokens += len(rows[order[stop]].ids)
                    stop += 1
                self.rows |= zip(order[start:stop], in_halves(states_of, order[start:stop]), strict=True)
                start = stop

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


def _below(model: Model, rows: list[Tokens], prefix: int, layer: int) -> _StoredStates | _FreshStates:
    """The states that ``layer`` puts out: stored where they fit into this computer's memory."""
    width = model.network.config.hidden_size
    needed = sum(len(row.ids) - prefix for row in rows) * width * model.precision.itemsize
    if needed > STORED_SHARE * free_memory("cpu"):
        return _FreshStates(model, layer)
    return _StoredStates(model, rows, prefix, layer)


class _Stock:
    """The stock model's final states, post-norm, from which it predicts every answer token of general rows: what its
    next-token distributions are computed from when they are needed, for they themselves would fill the memory."""

    def __init__(self, model: Model, rows: list[Tokens], general: list[int], prefix: int):
        self.rows: dict[int, Tensor] = {}
        model.network.eval()

        def states_of(chosen: list[int]) -> list[Tensor]:
            batch = model.batch([rows[i].ids for i in chosen], prefix)
            places, _ = _answer_places(batch, [rows[i] for i in chosen])
            with model.compute():
                states = final_states(model.network, batch, places).cpu()
            return list(states.split([len(rows[i].answer) for i in chosen]))

        with torch.no_grad(), stock(model):
            for start in range(0, len(general), STOCK_ROWS):
                chosen = general[start : start + STOCK_ROWS]
                self.rows |= zip(chosen, in_halves(states_of, chosen), strict=True)

    def of(self, chosen: list[int], rows: list[Tokens], like: Tensor) -> tuple[Tensor, Tensor]:
        """For every answer token of the chosen rows the stock model's state (tokens, d_model), zeros where there is
        none, and whether there is one (tokens,)."""
        states = [self.rows.get(i, like.new_zeros(len(rows[i].answer), like.shape[1])).to(like) for i in chosen]
        known = [torch.full((len(rows[i].answer),), i in self.rows, device=like.device) for i in chosen]
        return torch.cat(states), torch.cat(known)


def _logits(model: Model, states: Tensor) -> Tensor:
    """Logits of a few states, in one of few shapes on a CPU (see packing): (tokens, vocabulary), float32."""
    places = filled(torch.arange(len(states), device=states.device))
    with model.compute():
        if len(places) == len(states):
            return vocabulary_logits(model.network, states)
        return vocabulary_logits(model.network, states[places])[: len(states)]


def _backward_through_vocabulary(
    model: Model,
    states: Tensor,
    targets: Tensor,
    n_targets: int,
    keep: float = 0.0,
    of_stock: tuple[Tensor, Tensor] | None = None,
) -> float:
    """Sum of cross-entropies over ``n_targets``, and its gradient: a few tokens' logits at a time, since all of them
    together would be the largest tensor of the whole stage. With what ``_Stock.of`` gives, ``keep`` times the
    divergence from the stock model is added."""
    leaf = states.detach().requires_grad_()
    total = 0.0
    for start in range(0, len(leaf), LOGITS_PER_PASS):
        part, wanted = leaf[start : start + LOGITS_PER_PASS], targets[start : start + LOGITS_PER_PASS]
        logits = _logits(model, part)
        # The gradient of cross-entropy is softmax minus one at the target: written in place of the logits' copies that
        # autograd would keep, three passes over them instead of seven. That of the divergence: softmax minus stock's.
        with torch.no_grad():
            log_q = logits.log_softmax(-1)
            total -= log_q.gather(1, wanted[:, None]).sum().item() / n_targets
            if of_stock is None:
                gradient = log_q.exp_()
            else:
                before, known = (x[start : start + LOGITS_PER_PASS] for x in of_stock)
                log_p = _logits(model, before).log_softmax(-1)
                p, weight = log_p.exp(), keep * known[:, None]
                total += (weight * p * (log_p - log_q)).sum().item() / n_targets
                q = log_q.exp_()
                gradient = q + weight * (q - p)
            gradient[torch.arange(len(wanted)), wanted] -= 1
            gradient *= model.gradient_scale / n_targets
        logits.backward(gradient)
    states.backward(leaf.grad)
    return total


def safety_sft(
    model: Model,
    adapter: str,
    rows: list[Conversation],
    settings: SafetySFT,
    seed: int,
    name: str = "stage2",
    observe: Callable[[int], dict[str, Any]] = lambda step: {},
    checkpoint: Path | None = None,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> Progress:
    """Train the adapter on answers only: mean cross-entropy over all answer tokens of a batch, and where ``keep`` asks
    for it the divergence from the stock model on general ones."""
    window = model.window
    encoded = encode_conversations(model.tokenizer, [r.prompt for r in rows], [r.response for r in rows], window)
    tokens = [Tokens(*row) for row in encoded]
    prefix = shared_prefix([row.prompt for row in tokens])
    parameters = train_only(model, adapter, range(settings.above + 1, depth(model.network)))
    below = _below(model, tokens, prefix, settings.above) if settings.above >= 0 else None
    general = [i for i, row in enumerate(rows) if not row.refuses]
    before = _Stock(model, tokens, general, prefix) if settings.keep else None
    batches = sft_batches(
        [len(row.ids) for row in tokens], [row.refuses for row in rows], settings.batch_size, settings.epochs, seed
    )

    def predicting(chosen: list[int]) -> tuple[Tensor, Tensor]:
        """States from which the chosen rows' answer tokens are predicted (tokens, d_model), and those tokens."""
        batch = model.batch([tokens[i].ids for i in chosen], prefix)
        places, targets = _answer_places(batch, [tokens[i] for i in chosen])
        with model.compute():
            if below is None:
                return final_states(model.network, batch, places), targets
            return states_above(model.network, batch, below.of(batch, chosen), below.layer, places), targets

    def backward(step: int) -> float:
        batch = batches[step]
        n_targets = sum(len(tokens[i].answer) for i in batch)
        own = distributed.share(batch)
        n_passes = max(1, -(-sum(len(tokens[i].ids) for i in own) // model.tokens_per_pass))
        size = max(1, -(-len(own) // n_passes))
        total = 0.0
        for start in range(0, len(own), size):
            chosen = own[start : start + size]
            states, targets = predicting(chosen)
            of_stock = before.of(chosen, tokens, states.detach()) if before else None
            total += _backward_through_vocabulary(model, states, targets, n_targets, settings.keep, of_stock)
        return distributed.total(total)

    return Loop(
        name=name,
        model=model,
        adapter=adapter,
        parameters=parameters,
        steps=len(batches),
        learning_rate=settings.learning_rate,
        backward=backward,
        observe=observe,
        observe_every=-(-len(batches) // settings.looks),
        checkpoint=checkpoint,
        report=report,
    ).run()
