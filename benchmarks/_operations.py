"""The floating-point operations that the mathematics of a training step needs.

A product of (m, k) and (k, n) matrices counts 2 m k n operations. Counted are: the linear layers forward; the gradient
of their inputs where one flows (base weights are frozen); the adapter's products with all their gradients; attention
scores and their use, of each token on those that it sees; the logits of the answer tokens, or the whitening and the
cosines of the contrastive loss. Norms, activations and softmax are no matrix products and are left out.

What is not needed is not counted, even where the package computes it: the last layer's queries at places that no loss
reads, tokens that fill a sequence up, and the masked half of attention. So the measured rate is a lower bound.
``filled`` counts these too, for a comparison with the count of torch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dcr_lite.method.answer_tokens import LOGITS_PER_PASS


@dataclass(frozen=True)
class Shape:
    """The sizes that matter. d: model width. q, kv: width of all query heads, of all key heads. ffn: inner width."""

    d: int
    q: int
    kv: int
    ffn: int
    vocabulary: int
    rank: int

    @classmethod
    def of(cls, config: Any, rank: int) -> "Shape":
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cls(
            config.hidden_size,
            config.num_attention_heads * head,
            config.num_key_value_heads * head,
            config.intermediate_size,
            config.vocab_size,
            rank,
        )


def linear(inside: int, outside: int, rank: int, flows: bool) -> int:
    """One token through one frozen linear layer with its trained adapter, forward and backward. ``flows``: whether a
    gradient flows on to the layer's input."""
    base = 2 * inside * outside * (1 + flows)
    adapter_forward = 2 * rank * (inside + outside)
    adapter_weights = 2 * rank * (inside + outside)
    adapter_states = 2 * rank * (outside + inside * flows)
    return base + adapter_forward + adapter_weights + adapter_states


def _layer(s: Shape, flows: bool) -> tuple[int, int, int]:
    """One token through the linear layers: (keys and values, queries, everything behind attention)."""
    behind = linear(s.q, s.d, s.rank, True) + 2 * linear(s.d, s.ffn, s.rank, True) + linear(s.ffn, s.d, s.rank, True)
    return 2 * linear(s.d, s.kv, s.rank, flows), linear(s.d, s.q, s.rank, flows), behind


def attention(s: Shape, seen: int) -> int:
    """``seen``: the pairs of a token and one that it sees. Two products forward, four backward."""
    return 6 * 2 * s.q * seen


@dataclass(frozen=True)
class Operations:
    """Of one step: in all linear layers, in attention, and behind the last layer (logits, or whitening and cosines)."""

    linear: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.linear + self.attention + self.head


def step(
    s: Shape,
    prefix: int,
    own: Sequence[int],
    read: Sequence[int],
    layers: int,
    logits: bool,
    filled: Callable[[int], int] | None = None,
) -> Operations:
    """Forward and backward of one step over ``layers`` trained layers, the first of which takes an input without a
    gradient.

    prefix: tokens that all rows share, which need computing once. own: each row's tokens behind it.
    read: of how many tokens of each row, its last ones, the loss reads the final state.
    logits: whether through the vocabulary, else through whitening and cosines.
    filled: tokens -> the number that the package fills them up to. With it everything that is computed is counted.
    """
    tokens = prefix + sum(own)
    queries = ending = predicted = sum(read)
    if filled:
        tokens, ending = filled(tokens), filled(ending)
        queries = tokens
        predicted = predicted // LOGITS_PER_PASS * LOGITS_PER_PASS + filled(predicted % LOGITS_PER_PASS)
    before = [_layer(s, flows) for flows in [False] + [True] * (layers - 1)]
    linears = sum(tokens * sum(parts) for parts in before[:-1])
    linears += sum(n * part for n, part in zip((tokens, queries, ending), before[-1], strict=True))
    seen = prefix * (prefix + 1) // 2 + sum(n * prefix + n * (n + 1) // 2 for n in own)
    # A row's last r tokens see all of the row but what comes after each of them.
    last = seen if filled else sum(r * (prefix + n) - r * (r - 1) // 2 for n, r in zip(own, read, strict=True))
    # Logits forward, and the gradient of their states; or whitening and its gradient, then all cosines with two.
    n = len(own)
    head = 4 * s.d * s.vocabulary * predicted if logits else 4 * n * s.d**2 + 6 * n**2 * s.d
    return Operations(linears, attention(s, seen) * (layers - 1) + attention(s, last), head)
