"""The state of a batch of prompts while they are answered: what was computed so far, and logits of the next token."""

import contextlib
import copy
from collections.abc import Hashable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from dcr_lite.errors import UserError
from dcr_lite.model.contrast import Contrast
from dcr_lite.model.hidden_states import adding, decoder_of, vocabulary_logits
from dcr_lite.model.loading import Model, memory_may_run_out
from dcr_lite.model.packing import shared_prefix

LOGITS_AT_ONCE = 64  # rows: a row of Qwen2.5's vocabulary takes 0.6 MB, and its map 0.5 GB to be read once

Rows = list[list[int]]  # of token ids
Tokens = tuple[int, ...]
# Keys and values of each layer, (1 for all rows or 1 for each, heads, tokens, d_head); empty: no prefix.
Prefix = list[tuple[Tensor, Tensor]]


class _CachedDecoding:
    """A batch of prompts and their answers so far: the key-value cache, left-padded behind the shared prefix, and
    ``logits`` (batch, vocabulary) of the next token of each row."""

    def __init__(self, model: Model, rows: Rows, prefix: Prefix):
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
        # What a PromptCache knows the rows by, until tokens are added; steering may change the layers below it.
        self.prompt = (prefix_length, tuple(map(tuple, rows))) if self.branches and not self.steering else None
        # Steering begins at the prompt's last token: from its state the answer's first token is predicted.
        self.logits = self.logits_at(self._forward(ids.to(model.device), 1, self.prompt)[:, -1])

    def _forward(self, ids: Tensor, steered: int, of: Hashable = None, goes_on: bool = True) -> Tensor:
        """Post-norm states of the new tokens ``ids`` (batch, new), the last ``steered`` of them steered:
        (batch, new, d_model). of, goes_on: as ``PromptCache.forward``; of None nothing is kept."""
        decoder, known = decoder_of(self.model.network), self.model.prompt_cache
        inputs = {"input_ids": ids, "attention_mask": self.mask, "position_ids": self.positions, "use_cache": True}
        if known and of is not None:
            return known.forward(decoder, inputs, self.cache, of, goes_on)
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)[:, -steered:]
        with adding(self.model.network, self.steering, places.unbind()):
            states: Tensor = decoder(past_key_values=self.cache, **inputs).last_hidden_state
        return states

    def extend(self, ids: Tensor) -> Tensor:
        """Append tokens (batch, new) to every row; returns the states (batch, new, ...) from which what follows each of
        them is predicted. ``logits`` is left to the caller."""
        new, self.prompt = ids.shape[1], None
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), new)], 1)
        self.positions = self.positions[:, -1:] + 1 + torch.arange(new, device=ids.device)
        return self._forward(ids, new)

    @property
    def branches(self) -> bool:
        """Whether ``branch`` applies: what a new token sees is given as a mask, and no layer has dropped a token."""
        return self.model.packs and all(type(layer) is DynamicLayer for layer in self.cache.layers)

    def branch(self, texts: list[Tokens]) -> Tensor:
        """The states (batch, texts, d_model) after each of ``texts``, in one pass: each text is its last token, which
        sees its row and, of the others, the beginnings of its own text. The decoding stays as it was."""
        other, device = self.fork(), self.logits.device
        sees = torch.tensor([[text[: len(one)] == one for one in texts] for text in texts], device=device)
        lengths = torch.tensor([len(text) for text in texts], device=device)
        before = self.mask.bool()[:, None].expand(-1, len(texts), -1)
        other.mask = torch.cat([before, sees.expand(len(before), -1, -1)], 2)[:, None]
        other.positions = self.positions[:, -1:] + lengths
        last = torch.tensor([text[-1] for text in texts], device=device)
        of = self.prompt and (self.prompt, tuple(texts))
        return other._forward(last.expand(len(before), -1), len(texts), of, goes_on=False)

    def logits_at(self, states: Tensor, ahead: int = 0) -> Tensor:
        """Logits (..., vocabulary) of the token that follows ``ahead`` further ones, from its ``states`` (batch, ...,
        d_model)."""
        return vocabulary_logits(self.model.network, states)

    def keep(self, rows: Tensor) -> None:
        """Continue with these rows only."""
        self.prompt = None
        self.cache.reorder_cache(rows)  # which, unlike batch_select_indices, convolutions and linear attention have
        self.mask, self.positions, self.logits = self.mask[rows], self.positions[rows], self.logits[rows]
        self.steering = {layer: vectors[rows] for layer, vectors in self.steering.items()}
        if self.joins:
            # Else a batch that others always join would grow wider for ever.
            self._widen(-int((self.mask.cumsum(1).amax(0) == 0).sum()))

    @property
    def joins(self) -> bool:
        """Whether others can join: each layer's cache is keys and values alone, which padding on the left lines up."""
        return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in self.cache.layers)

    def _widen(self, by: int) -> None:
        """Pad every row with ``by`` more places on the left, which nothing attends to; negative: cut that many off."""
        if by == 0:
            return
        self.mask = pad(self.mask, (by, 0))
        for layer in self.cache.layers:
            places = self.mask.shape[1]
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length, places = places, min(places, layer.sliding_window - 1)
            more = (0, 0, places - layer.keys.shape[2], 0)
            layer.keys, layer.values = pad(layer.keys, more), pad(layer.values, more)

    def join(self, other: "_CachedDecoding") -> None:
        """Continue with the rows of ``other`` as well, behind these. ``other`` is not to be used any more."""
        more, self.prompt = other.mask.shape[1] - self.mask.shape[1], None
        self._widen(max(0, more))
        other._widen(max(0, -more))
        for layer, of_other in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys = torch.cat([layer.keys, of_other.keys])
            layer.values = torch.cat([layer.values, of_other.values])
        self.mask = torch.cat([self.mask, other.mask])
        self.positions = torch.cat([self.positions[:, -1:], other.positions[:, -1:]])
        self.logits = torch.cat([self.logits, other.logits])
        self.steering = {i: torch.cat([vectors, other.steering[i]]) for i, vectors in self.steering.items()}

    def fork(self) -> "_CachedDecoding":
        """A second continuation of the same rows."""
        other = copy.copy(self)
        if self.joins:  # such layers never change what they have so far in place: the two can share it
            other.cache = copy.copy(self.cache)
            other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        else:
            other.cache = copy.deepcopy(self.cache)
        return other


class _UncachedDecoding:
    """The same without a cache, with every token computed again for each new one: for models whose forward pass takes
    no cache object. Rows are padded as the model needs them."""

    def __init__(self, model: Model, rows: Rows):
        self.model, self.rows = model, rows
        self.logits = self.logits_at(self._last_states(1)[:, -1])

    def _last_states(self, new: int) -> Tensor:
        """Post-norm states of the last ``new`` tokens of each row: (batch, new, d_model)."""
        batch = self.model.batch(self.rows)
        out = decoder_of(self.model.network)(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
        return torch.stack([out[places[-new:]] for places in batch.index])

    def extend(self, ids: Tensor) -> Tensor:
        self.rows = [row + more for row, more in zip(self.rows, ids.tolist(), strict=True)]
        return self._last_states(ids.shape[1])

    def logits_at(self, states: Tensor, ahead: int = 0) -> Tensor:
        return vocabulary_logits(self.model.network, states)

    def keep(self, rows: Tensor) -> None:
        self.rows, self.logits = [self.rows[i] for i in rows.tolist()], self.logits[rows]

    joins = True

    def join(self, other: "_UncachedDecoding") -> None:
        self.rows, self.logits = self.rows + other.rows, torch.cat([self.logits, other.logits])

    def fork(self) -> "_UncachedDecoding":
        return copy.copy(self)


Half = _CachedDecoding | _UncachedDecoding


class _ContrastedDecoding:
    """The same for two prompts of each answer (see ``Contrast``): the second half is dropped once no token is left to
    be chosen by both."""

    joins = False  # its rows have to be at the same token

    def __init__(self, contrast: Contrast, first: Half, second: Half):
        self.model, self.contrast = first.model, contrast
        self.halves: list[Half] = [first, second]
        self.left = contrast.steps  # tokens to be chosen by both
        self.logits = contrast.adjusted(first.logits, second.logits)

    def extend(self, ids: Tensor) -> Tensor:
        if self.left < 2:
            self.halves = self.halves[:1]
        self.left -= ids.shape[1]
        return torch.stack([half.extend(ids) for half in self.halves], 2)

    def logits_at(self, states: Tensor, ahead: int = 0) -> Tensor:
        first, *second = states.unbind(1)
        logits = self.halves[0].logits_at(first)
        return self.contrast.adjusted(logits, self.halves[1].logits_at(second[0])) if self.left > ahead else logits

    def keep(self, rows: Tensor) -> None:
        for half in self.halves:
            half.keep(rows)
        self.logits = self.logits[rows]

    def fork(self) -> "_ContrastedDecoding":
        other = copy.copy(self)
        other.halves = [half.fork() for half in self.halves]
        return other


Decoding = Half | _ContrastedDecoding


def prompts_of(model: Model, rows: Rows) -> list[Rows]:
    """The prompts that are decoded side by side: ``rows``, and the second ones of a contrast."""
    contrast = model.contrast
    return [rows, contrast.prompts(rows)] if rows and contrast and contrast.steps else [rows]


def start_decoding(model: Model, prompts: Sequence[Rows], prefixes: Sequence[Prefix] = ()) -> Decoding:
    """The decoding of a batch of prompts, as ``prompts_of`` gives them, each with the ``shared_cache`` of its rows."""
    halves = [_of_rows(model, *half) for half in zip(prompts, prefixes or [[]] * len(prompts), strict=True)]
    return _ContrastedDecoding(model.contrast, *halves) if model.contrast and len(halves) > 1 else halves[0]


def _of_rows(model: Model, rows: Rows, prefix: Prefix) -> Half:
    if model.backend.name == "transformers":
        return _CachedDecoding(model, rows, prefix)
    if model.steering:
        raise UserError("steered answers need --backend transformers")
    return _UncachedDecoding(model, rows)


def logits_after(decoding: Decoding, texts: list[Tokens]) -> Iterator[Tensor]:
    """Logits (batch, vocabulary) of the token behind each of ``texts``, if every row went on with it. The decoding is
    as before. texts: distinct token ids, with each text all its beginnings but the empty one."""
    if not texts:
        return
    states = _states_after(decoding, texts)
    if isinstance(decoding, _ContrastedDecoding):
        yield from (decoding.logits_at(states[:, i], len(text)) for i, text in enumerate(texts))
        return
    for some in states.split(max(1, LOGITS_AT_ONCE // len(states)), 1):
        yield from decoding.logits_at(some).unbind(1)


def _states_after(decoding: Decoding, texts: list[Tokens]) -> Tensor:
    """States (batch, texts, ...) from which the token behind each text is predicted."""
    if isinstance(decoding, _CachedDecoding) and decoding.branches:
        # Where all texts at once do not fit into memory, one after the other may.
        with contextlib.suppress(torch.OutOfMemoryError), memory_may_run_out():
            return decoding.branch(texts)
    rows, device = len(decoding.logits), decoding.logits.device
    states: dict[Tokens, Tensor] = {}
    for text in texts:
        if not any(other != text and other[: len(text)] == text for other in texts):  # else it is part of that one
            found = decoding.fork().extend(torch.tensor(text, device=device).expand(rows, -1))
            states |= {text[: i + 1]: found[:, i] for i in range(len(text))}
    return torch.stack([states[text] for text in texts], 1)


def append(decoding: Decoding, token: Tensor) -> None:
    """Append one token (batch,) to every row."""
    decoding.logits = decoding.logits_at(decoding.extend(token[:, None])[:, -1])


def shared_cache(model: Model, rows: Rows, copies: int = 1) -> Prefix:
    """Keys and values of what all rows share, where the model packs; as so many rows, which may be of different
    models."""
    ids = rows[0][: shared_prefix(rows)] if model.packs and rows else []
    if not ids:
        return []
    cache = DynamicCache()
    input_ids = torch.tensor([ids] * copies, device=model.device)
    decoder_of(model.network)(input_ids=input_ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]
