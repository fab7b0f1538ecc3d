"""Batches without a wasted token: rows laid end to end behind the one prefix that they share.

A chat template puts the same system prompt and header before every prompt; for short prompts that is more than half of
all tokens, and padding adds more. A packed batch holds one sequence ::

    [ shared prefix | row 1 | row 2 | ... ]      rows sorted by length, positions restarting behind the prefix

in which each row attends to the prefix and to itself. Values and gradients are those of the padded batch (the prefix
collects the gradient of every row), since a causal model computes the prefix without looking at what follows.

``pack`` and ``pad`` lay out the same rows behind one small interface, ``Batch``; models whose attention cannot be
replaced (softcapping, unsloth's kernels) take the padded one.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "dcr_packed"  # the name under which transformers finds the attention below


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a packed sequence lie: ``prefix`` shared tokens, then ``groups`` of (length, rows)."""

    prefix: int
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Batch:
    """Rows ready for a decoder.

    inputs: keyword arguments of the decoder, ``input_ids`` (batch, seq) among them.
    index: for every row, in the order given, the places (row length,) of its own tokens in the flattened
        (batch * seq) output. A shared prefix belongs to no row.
    shared: how many leading tokens of each row were left out of ``index`` as shared prefix.
    """

    inputs: dict[str, Any]
    index: list[Tensor]
    shared: int

    @property
    def last(self) -> Tensor:
        """The place of each row's last token, (rows,)."""
        return torch.stack([places[-1] for places in self.index])


def shared_prefix(rows: list[list[int]]) -> int:
    """The length of the longest prefix that all rows share, leaving at least one token to each row."""
    low, high = min(rows), max(rows)  # the lexicographic extremes differ where any two rows differ
    limit = min(map(len, rows)) - 1
    for i in range(limit):
        if low[i] != high[i]:
            return i
    return limit


def pack(rows: list[list[int]], prefix: int | None = None, device: torch.device | str = "cpu") -> Batch:
    """Lay rows of token ids end to end behind their shared prefix (``prefix`` tokens; by default the longest)."""
    if not rows or not all(rows):
        raise ValueError("every row needs at least one token")
    prefix = shared_prefix(rows) if prefix is None else prefix
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    tokens, positions = rows[0][:prefix], list(range(prefix))
    starts = [0] * len(rows)
    for i in order:
        starts[i] = len(tokens)
        tokens = tokens + rows[i][prefix:]
        positions += range(prefix, len(rows[i]))
    lengths = [len(rows[i]) - prefix for i in order]
    groups = tuple((length, len(list(same))) for length, same in groupby(lengths))
    inputs = {
        "input_ids": torch.tensor([tokens], device=device),
        "position_ids": torch.tensor([positions], device=device),
        # A ready-made 4-D mask keeps transformers from building one; the attention below needs none.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "layout": Layout(prefix, groups),
    }
    index = [torch.arange(s, s + len(row) - prefix, device=device) for s, row in zip(starts, rows, strict=True)]
    return Batch(inputs, index, prefix)


def pad(rows: list[list[int]], pad_token: int, device: torch.device | str = "cpu") -> Batch:
    """Lay rows of token ids below each other, padded on the right (unsloth drops the mask in training: stack the
    padding where a causal model cannot see it)."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    index = [torch.arange(i * width, i * width + len(row), device=device) for i, row in enumerate(rows)]
    return Batch({"input_ids": ids.to(device), "attention_mask": mask.to(device)}, index, 0)


@lru_cache(maxsize=512)
def _row_mask(prefix: int, length: int, device: torch.device) -> Tensor:
    """(length, prefix + length): every query sees the prefix and its own row up to itself."""
    return torch.ones(length, prefix + length, dtype=torch.bool, device=device).tril(prefix)


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,  # 1 heads seq d_head
    key: Tensor,  # 1 kv_heads seq d_head
    value: Tensor,
    attention_mask: Tensor | None,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention over a packed sequence; without a layout, the library's own scaled-dot-product attention."""
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    repeats = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, repeats), repeat_kv(value, repeats)
    heads, width = query.shape[1], query.shape[3]
    p = layout.prefix
    outputs = []
    if p:
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, :p], key[:, :, :p], value[:, :, :p], is_causal=True, scale=scaling
            )[0]
        )
    start = p
    for length, rows in layout.groups:
        stop = start + rows * length

        def split(x: Tensor, a: int = start, b: int = stop, n: int = rows, s: int = length) -> Tensor:
            return x[0, :, a:b].view(heads, n, s, width).transpose(0, 1)  # rows heads length d_head

        def with_prefix(x: Tensor, own: Tensor, n: int = rows) -> Tensor:
            return torch.cat([x[:, :, :p].expand(n, -1, -1, -1), own], dim=2)

        out = scaled_dot_product_attention(
            split(query),
            with_prefix(key, split(key)),
            with_prefix(value, split(value)),
            attn_mask=_row_mask(p, length, query.device),
            scale=scaling,
        )
        outputs.append(out.transpose(0, 1).reshape(heads, rows * length, width))
        start = stop
    return torch.cat(outputs, dim=1).transpose(0, 1)[None].contiguous(), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
