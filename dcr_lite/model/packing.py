"""Packed batches: rows laid end to end behind the one prefix that they share, without padding.

A chat template puts the same system prompt and header before every prompt; for short prompts that is more than half of
all tokens, and padding adds more. A packed batch holds one sequence ::

    [ shared prefix | row 1 | row 2 | ... ]      positions restarting behind the prefix

in which each row attends to the prefix and to itself. Values and gradients are those of the padded batch (the prefix
collects the gradient of every row), since a causal model computes the prefix without looking at what follows.

On a CPU a packed sequence is filled up to one of few lengths. oneDNN compiles code for every new shape of a product and
keeps it, some 13 MB for each new length of a step; two per cent more tokens cost less.

``pack`` and ``pad`` both return a ``Batch``; models whose attention cannot be replaced (softcapping, unsloth's kernels)
take the padded one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHORT_ROWS = 160  # tokens
FEW_TOKENS = 8  # of a row in one decoding step
ATTENTION_SHARE = 0.25  # of what a layer keeps of a token: queries, keys, values and output, 0.09 to 0.23 (test_passes)
OPEN_PARTS = 16  # the newest parts that a further row may join: with all of them, cutting 20,000 rows takes minutes
ATTENTION = "dcr_packed"  # the name under which transformers finds the attention below


@dataclass(frozen=True)
class Layout:
    """The places of the tokens in a packed sequence.

    prefix: the number of shared tokens in front.
    rows: (rows, width), the places of each row's tokens behind the prefix; shorter rows are filled up with any place.
    own: (tokens,), for each token behind the prefix its place in the flattened ``rows``; of a filling token any.
    """

    prefix: int
    rows: Tensor
    own: Tensor


@dataclass(frozen=True)
class Batch:
    """Rows ready for a decoder.

    inputs: keyword arguments of the decoder, ``input_ids`` (batch, seq) among them.
    index: for every row, in the order given, the places (row length,) of its own tokens in the flattened
        (batch * seq) output. A shared prefix belongs to no row, nor does what fills the sequence up.
    shared: how many leading tokens of each row were left out of ``index`` as shared prefix.
    """

    inputs: dict[str, Any]
    index: list[Tensor]
    shared: int

    @property
    def last(self) -> Tensor:
        """The place of each row's last token, (rows,)."""
        return torch.stack([places[-1] for places in self.index])


def rounded(n: int) -> int:
    """The next of few lengths: a multiple of 8, at most 16 of them between a length and its double."""
    step = max(8, 2 ** (n.bit_length() - 1) // 16)
    return -(-n // step) * step


def filled(places: Tensor) -> Tensor:
    """The places (n,), on a CPU with the last one repeated up to ``rounded(n)``."""
    if places.device.type != "cpu" or not len(places):
        return places
    return torch.cat([places, places[-1:].expand(rounded(len(places)) - len(places))])


def passes(
    lengths: Sequence[int], most: int, shared: int = 0, attention: float = 0.0, rows: int | None = None
) -> list[list[int]]:
    """Row numbers cut into parts of at most ``most`` tokens as ``tokens_at_once`` counts them, and at most ``rows``
    rows. A row that is longer by itself is a part of its own. In each part row numbers rise.

    First fit in decreasing order: each row, the longest first, goes into the first part that has room for it. Rows of
    similar length so come together, and the parts are near the fewest (Johnson et al., 1974).
    """
    parts: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for part in parts[-OPEN_PARTS:]:
            if len(part) != rows and tokens_at_once([lengths[k] for k in (*part, i)], shared, attention) <= most:
                part.append(i)
                break
        else:
            parts.append([i])
    return [sorted(part) for part in parts]


def tokens_at_once(lengths: Sequence[int], shared: int = 0, attention: float = 0.0) -> float:
    """What a pass of rows keeps, in tokens of one row alone.

    A packed pass holds the ``shared`` tokens once and the others of each row; but its attention lays the rows side by
    side, each as wide as the longest with the shared tokens before it, and the share ``attention`` of what a token
    keeps is kept for every place of that. Padded rows are as wide as the longest in everything: ``attention=1``.
    """
    packed = shared + sum(lengths) - shared * len(lengths)
    return (1 - attention) * packed + attention * len(lengths) * max(lengths)


def shared_prefix(rows: Sequence[list[int]]) -> int:
    """The length of the longest prefix that all rows share, leaving at least one token to each row."""
    low, high = min(rows), max(rows)  # the lexicographic extremes differ where any two rows differ
    limit = min(map(len, rows)) - 1
    for i in range(limit):
        if low[i] != high[i]:
            return i
    return limit


def pack(rows: list[list[int]], prefix: int | None = None, device: torch.device | str = "cpu") -> Batch:
    """A batch of rows of token ids end to end behind their shared prefix: ``prefix`` tokens, by default the longest."""
    if not rows or not all(rows):
        raise ValueError("every row needs at least one token")
    prefix = shared_prefix(rows) if prefix is None else prefix
    own_tokens = [row[prefix:] for row in rows]
    lengths = torch.tensor([len(own) for own in own_tokens])
    width, filling = int(lengths.max()), 0
    if torch.device(device).type == "cpu":
        width, tokens = rounded(width), prefix + int(lengths.sum())
        filling = rounded(tokens) - tokens
    in_row = torch.arange(width)[None] < lengths[:, None]  # rows width
    starts = lengths.cumsum(0) - lengths
    places = torch.where(in_row, starts[:, None] + torch.arange(width), 0)
    positions = (torch.arange(width) + prefix).expand(len(rows), -1)[in_row]
    nowhere = torch.zeros(filling, dtype=torch.long)
    tokens_of_all = rows[0][:prefix] + [token for own in own_tokens for token in own] + rows[0][:1] * filling
    inputs = {
        "input_ids": torch.tensor([tokens_of_all], device=device),
        "position_ids": torch.cat([torch.arange(prefix), positions, nowhere])[None].to(device),
        # A ready-made 4-D mask keeps transformers from building one; the attention below needs none.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=device),
        "layout": Layout(prefix, places.to(device), torch.cat([in_row.flatten().nonzero()[:, 0], nowhere]).to(device)),
    }
    index = [prefix + places[i, : len(own)].to(device) for i, own in enumerate(own_tokens)]
    return Batch(inputs, index, prefix)


def pad(rows: list[list[int]], pad_token: int, device: torch.device | str = "cpu") -> Batch:
    """A batch of rows of token ids below each other, padded on the right, where a causal model cannot see it: unsloth
    drops the mask in training."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_token)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    index = [torch.arange(i * width, i * width + len(row), device=device) for i, row in enumerate(rows)]
    return Batch({"input_ids": ids.to(device), "attention_mask": mask.to(device)}, index, 0)


@lru_cache(maxsize=16)  # those of a pass or two, the same for all of its layers; of long rows a mask is large
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
    if layout is None and query.shape[2] <= FEW_TOKENS and attention_mask is not None:
        return _few_tokens_attention(query, key, value, attention_mask, scaling)
    if layout is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    p, (n, width) = layout.prefix, layout.rows.shape

    def divide(x: Tensor) -> tuple[Tensor, Tensor]:
        """The prefix, and the rows side by side: (1, heads, p, d_head), (rows, heads, width, d_head)."""
        prefix, rest = x[0].transpose(0, 1).split([p, x.shape[2] - p])  # split: its gradient is one concatenation
        rows = rest.index_select(0, layout.rows.flatten()).view(n, width, *rest.shape[1:])
        return prefix.transpose(0, 1)[None], rows.transpose(1, 2)

    (q_prefix, q_rows), (k_prefix, k_rows), (v_prefix, v_rows) = divide(query), divide(key), divide(value)
    k_rows = torch.cat([k_prefix.expand(n, -1, -1, -1), k_rows], dim=2)
    v_rows = torch.cat([v_prefix.expand(n, -1, -1, -1), v_rows], dim=2)
    # A row's filling comes after its own tokens, where the causal mask hides it; its output is left out.
    out = _attend(q_rows, k_rows, v_rows, _row_mask(p, width, query.device), scaling)
    own = out.transpose(1, 2).flatten(0, 1).index_select(0, layout.own)  # tokens heads d_head
    if not p:
        return own[None], None
    shared = _attend(q_prefix, k_prefix, v_prefix, _row_mask(0, p, query.device), scaling)
    return torch.cat([shared[0].transpose(0, 1), own])[None], None


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None) -> Tensor:
    """Softmax attention. Short rows on a CPU take two plain products, faster there than the fused kernel, in which
    query heads that share keys and values are one batch, so that nothing is copied. Longer rows are left to the kernel,
    which stores no scores."""
    n, heads, new, width = query.shape
    groups = heads // key.shape[1]
    if query.device.type != "cpu" or new > SHORT_ROWS:
        key, value = repeat_kv(key, groups), repeat_kv(value, groups)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    grouped = query.reshape(n * key.shape[1], groups * new, width)
    hidden = torch.zeros(mask.shape, dtype=query.dtype).masked_fill_(~mask, -torch.inf).repeat(groups, 1)
    scores = torch.baddbmm(hidden, grouped, key.flatten(0, 1).transpose(1, 2), alpha=scaling or width**-0.5)
    return (scores.softmax(-1) @ value.flatten(0, 1)).view(n, heads, new, width)


def _few_tokens_attention(
    query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, scaling: float | None
) -> tuple[Tensor, None]:
    """Attention of a few new tokens a row behind a long cache. Query heads that share keys and values are one batch,
    instead of copying the whole cache once for each of them."""
    batch, heads, new, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(batch, key.shape[1], groups * new, width)
    mask = attention_mask.repeat(1, 1, groups, 1)
    out = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return out.reshape(batch, heads, new, width).transpose(1, 2), None


AttentionInterface.register(ATTENTION, packed_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
