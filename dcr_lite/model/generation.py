"""Greedy answers and refusal scores of many prompts, in batches of similar length behind their shared prefix."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import DynamicCache

from dcr_lite.errors import UserError
from dcr_lite.model.chat import decode_answers
from dcr_lite.model.hidden_states import adding, decoder_of, vocabulary_logits
from dcr_lite.model.loading import Model, in_halves, require_finite
from dcr_lite.model.memory import PROMPT_TOKENS
from dcr_lite.model.packing import passes, shared_prefix

CHECK_EVERY = 4  # tokens between checks of whether an answer can stop

Prefix = list[tuple[Tensor, Tensor]]  # keys and values of each layer, (1, heads, tokens, d_head); empty: no prefix


@dataclass(frozen=True)
class Answer:
    """A model's answer to a prompt.

    text: the greedy answer, as ``decode_answers`` gives it.
    refusal_log_odds: log-odds of beginning with a refusal, read before any token is chosen.
    ended: it ended before it had all the tokens that it could have, by the model or by ``stop``.
    ids: its tokens.
    """

    text: str
    refusal_log_odds: float
    ended: bool
    ids: tuple[int, ...] = ()


class _CachedDecoding:
    """A batch of prompts and their answers so far: the key-value cache, left-padded behind the shared prefix, and
    ``logits`` (batch, vocabulary) of the next token of each row."""

    def __init__(self, model: Model, rows: list[list[int]], prefix: Prefix):
        self.model = model
        prefix_length = prefix[0][0].shape[2] if prefix else 0
        lengths = torch.tensor([len(row) - prefix_length for row in rows])
        width = int(lengths.max())
        pad = model.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width + prefix_length - len(row)) + row[prefix_length:] for row in rows])
        place = torch.arange(width)[None] - (width - lengths)[:, None]  # of each token in its row, negative: padding
        mask = torch.cat([torch.ones(len(rows), prefix_length, dtype=torch.bool), place >= 0], 1)
        self.mask = mask.long().to(model.device)
        self.positions = (place.clamp_min(0) + prefix_length).to(model.device)
        shared = [(k.expand(len(rows), -1, -1, -1), v.expand(len(rows), -1, -1, -1)) for k, v in prefix]
        self.cache = DynamicCache(shared) if shared else DynamicCache(config=model.network.config)
        self.steering = model.steering(rows) if model.steering else {}
        # Steering begins at the prompt's last token: from its state the answer's first token is predicted.
        self.logits = vocabulary_logits(model.network, self._forward(ids.to(model.device), 1)[:, -1])

    def _forward(self, ids: Tensor, steered: int) -> Tensor:
        """Post-norm states of the new tokens ``ids`` (batch, new), the last ``steered`` of them steered:
        (batch, new, d_model)."""
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)[:, -steered:]
        with adding(self.model.network, self.steering, places.unbind()):
            out = decoder_of(self.model.network)(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                past_key_values=self.cache,
                use_cache=True,
            )
        return out.last_hidden_state

    def extend(self, ids: Tensor) -> Tensor:
        """Append tokens (batch, new) to every row; returns the states (batch, new, d_model) from which what follows
        each of them is predicted. ``logits`` is left to the caller."""
        new = ids.shape[1]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), new)], 1)
        self.positions = self.positions[:, -1:] + 1 + torch.arange(new, device=ids.device)
        return self._forward(ids, new)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]
        self.steering = {layer: vectors[rows] for layer, vectors in self.steering.items()}

    def fork(self) -> "_CachedDecoding":
        """A second continuation of the same rows."""
        other = copy.copy(self)
        if self.model.packs:  # plain layers only ever append: the two can share what they have so far
            other.cache = DynamicCache([(layer.keys, layer.values) for layer in self.cache.layers])
        else:
            other.cache = copy.deepcopy(self.cache)
        return other


class _UncachedDecoding:
    """The same without a cache, with every token computed again for each new one: for models whose forward pass takes
    no cache object. Rows are padded as the model needs them."""

    def __init__(self, model: Model, rows: list[list[int]]):
        self.model, self.rows = model, rows
        self.logits = vocabulary_logits(model.network, self._last_states(1)[:, -1])

    def _last_states(self, new: int) -> Tensor:
        """Post-norm states of the last ``new`` tokens of each row: (batch, new, d_model)."""
        batch = self.model.batch(self.rows)
        out = decoder_of(self.model.network)(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        return torch.stack([out[places[-new:]] for places in batch.index])

    def extend(self, ids: Tensor) -> Tensor:
        self.rows = [row + more for row, more in zip(self.rows, ids.tolist(), strict=True)]
        return self._last_states(ids.shape[1])

    def keep(self, rows: Tensor) -> None:
        self.rows, self.logits = [self.rows[i] for i in rows.tolist()], self.logits[rows]

    def fork(self) -> "_UncachedDecoding":
        return copy.copy(self)


Decoding = _CachedDecoding | _UncachedDecoding


def _decoding(model: Model, rows: list[list[int]], prefix: Prefix) -> Decoding:
    if model.backend.name == "transformers":
        return _CachedDecoding(model, rows, prefix)
    if model.steering:
        raise UserError("steered answers need --backend transformers")
    return _UncachedDecoding(model, rows)


def _append(decoding: Decoding, token: Tensor) -> None:
    """Append one token (batch,) to every row."""
    decoding.logits = vocabulary_logits(decoding.model.network, decoding.extend(token[:, None])[:, -1])


def _chains(openings: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The longest proper beginnings of the openings: their states give every opening's probability."""
    parents = {opening[:-1] for opening in openings if len(opening) > 1}
    return sorted(p for p in parents if not any(q != p and q[: len(p)] == p for q in parents))


def _refusal_log_odds(decoding: Decoding) -> Tensor:
    """Log-odds (batch,) that the answer begins with one of ``model.openings``."""
    model = decoding.model
    encoded = model.tokenizer(list(model.openings), add_special_tokens=False)["input_ids"]
    openings = sorted({tuple(ids) for ids in encoded})
    n, device = len(decoding.logits), decoding.logits.device
    states: dict[tuple[int, ...], Tensor] = {}  # from which the token after each beginning is predicted
    for chain in _chains(openings):
        of_chain = decoding.fork().extend(torch.tensor(chain, device=device).expand(n, -1))
        states |= {chain[: i + 1]: of_chain[:, i] for i in range(len(chain))}

    following: dict[tuple[int, ...], list[int]] = {}
    for opening in openings:
        for i, token in enumerate(opening):
            following.setdefault(opening[:i], []).append(token)
    log_p: dict[tuple[int, ...], Tensor] = {}  # of the last token of each beginning, given those before
    for beginning, tokens in following.items():
        logits = vocabulary_logits(model.network, states[beginning]) if beginning else decoding.logits
        total = logits.logsumexp(-1)
        log_p |= {(*beginning, token): logits[:, token] - total for token in tokens}
    refusing = [torch.stack([log_p[o[: i + 1]] for i in range(len(o))]).sum(0) for o in openings]
    log_any = torch.stack(refusing).double().logsumexp(0).clamp(max=-1e-12)
    return log_any - torch.log(-torch.expm1(log_any))  # log p - log (1 - p)


def _end_tokens(model: Model) -> Tensor:
    """Every token that ends an answer: the tokenizer's and those of the model's own generation settings."""
    stated = getattr(model.network.generation_config, "eos_token_id", None)
    more = stated if isinstance(stated, list) else [stated]
    return torch.tensor(sorted({t for t in [model.tokenizer.eos_token_id, *more] if t is not None}))


def _greedy(
    decoding: Decoding, rows: list[list[int]], max_new_tokens: int, stop: Callable[[str], bool] | None
) -> list[list[int]]:
    """Token ids of each greedy answer to ``rows``; a row that has ended, or is to ``stop``, leaves the batch."""
    ends = _end_tokens(decoding.model).to(decoding.logits.device)
    answers: list[list[int]] = [[] for _ in decoding.logits]
    alive = torch.arange(len(answers))
    for step in range(max_new_tokens):
        token = decoding.logits.argmax(-1)
        going = ~torch.isin(token, ends)
        if stop and step and step % CHECK_EVERY == 0:
            some = alive.tolist()
            texts = decode_answers(decoding.model.tokenizer, [rows[i] for i in some], [answers[i] for i in some])
            going &= torch.tensor([not stop(text) for text in texts], device=token.device)
        going = going.nonzero()[:, 0]
        if len(going) < len(alive):
            alive, token = alive[going.cpu()], token[going]
            if not len(alive):
                break
            decoding.keep(going)
        for row, t in zip(alive.tolist(), token.tolist(), strict=True):
            answers[row].append(t)
        if step + 1 < max_new_tokens:
            _append(decoding, token)
    return answers


@torch.no_grad()
def answer(
    model: Model,
    rows: list[list[int]],
    max_new_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
    stop: Callable[[str], bool] | None = None,
) -> list[Answer]:
    """Greedy answers to prompts given as token ids, in the order given. ``max_new_tokens=0`` reads only the scores.

    Prompts of similar length share a batch and what all prompts share (the chat template's beginning) is computed once.
    ``progress`` is called with the number of prompts in each finished batch. ``stop``: called now and then with the
    text of each answer so far, which ends where it returns True.
    """
    model.network.eval()
    answers: dict[int, Answer] = {}
    with model.compute():
        prefix = _prefix_cache(model, rows) if model.packs and rows else []

        def answer_together(chosen: list[int]) -> list[Answer]:
            asked = [rows[i] for i in chosen]
            decoding = _decoding(model, asked, prefix)
            scores = require_finite(model, _refusal_log_odds(decoding), "refusal log-odds").tolist()
            found = _greedy(decoding, asked, max_new_tokens, stop)
            ended = [len(ids) < max_new_tokens for ids in found]
            return list(map(Answer, decode_answers(model.tokenizer, asked, found), scores, ended, map(tuple, found)))

        for chosen in _batches(model, rows, max_new_tokens):
            answers |= zip(chosen, in_halves(answer_together, chosen), strict=True)
            progress(len(chosen))
    return [answers[i] for i in range(len(rows))]


class StreamedAnswer:
    """One greedy answer, a token at a time. Each step is a forward pass of its own under the adapter that is active
    then, so a caller of several answers switches adapters between steps, never within one.

    refusal_log_odds: of beginning with a refusal, read before any token is chosen.
    ended: the model has ended its turn, or the answer has ``max_new_tokens``.
    """

    @torch.no_grad()
    def __init__(self, model: Model, row: list[int], max_new_tokens: int):
        model.network.eval()
        with model.compute():
            self._decoding = _decoding(model, [row], [])
            odds = require_finite(model, _refusal_log_odds(self._decoding), "refusal log-odds")
        self.refusal_log_odds = float(odds)
        self._row = row
        self._ends = set(_end_tokens(model).tolist())
        self._tokens: list[int] = []
        self._most = max_new_tokens
        self.ended = max_new_tokens == 0

    @property
    def text(self) -> str:
        """The answer so far, as ``decode_answers`` gives it."""
        return decode_answers(self._decoding.model.tokenizer, [self._row], [self._tokens])[0]

    @torch.no_grad()
    def step(self) -> None:
        """Append the most probable token, or end."""
        token = self._decoding.logits.argmax(-1)
        if self.ended or int(token) in self._ends:
            self.ended = True
            return
        self._tokens.append(int(token))
        self.ended = len(self._tokens) == self._most
        if not self.ended:
            with self._decoding.model.compute():
                _append(self._decoding, token)


def _batches(model: Model, rows: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Row numbers, as many together as the plan has memory for, with the tokens to come; of one length only where
    padding would fill a sliding window."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    groups = [order] if model.packs else [list(same) for _, same in groupby(order, key=lambda i: len(rows[i]))]
    most = model.prompts_at_once * (PROMPT_TOKENS + max_new_tokens)
    return [
        [group[k] for k in part]
        for group in groups
        for part in passes(
            [len(rows[i]) + max_new_tokens for i in group], most, attention=1.0, rows=model.prompts_at_once
        )
    ]


def _prefix_cache(model: Model, rows: list[list[int]]) -> Prefix:
    """Keys and values of what all rows share."""
    ids = rows[0][: shared_prefix(rows)]
    if not ids:
        return []
    cache = DynamicCache()
    decoder_of(model.network)(input_ids=torch.tensor([ids], device=model.device), past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]
