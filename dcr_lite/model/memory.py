"""How much memory a stage takes, from the shape of the model alone.

A sum of what has to be there at once: weights, adapters with Adam's moments, what the backward pass of one layer keeps
of every token, the logits of a few answer tokens, and the keys and values of prompts that are being answered. All in
bytes. The activations are pinned by a test against what autograd really keeps; the whole has not been compared with a
card yet. They are those of the library's own layers: on a CPU, where some are fused, less is kept.
"""

from dataclasses import dataclass
from typing import Any

NF4_BYTES = 0.516  # of a weight in 4 bits: its half byte, and the doubly quantised scale of each block of 64
ADAM_BYTES = 4 + 4 + 4 + 4  # of a trained weight in float32: gradient, two moments, and the step's temporary copy
# CUDA's own context, the library handles, and what the allocator cannot use of its blocks.
RESERVE = 1_000_000_000


@dataclass(frozen=True)
class Shape:
    """What the memory of a decoder depends on. norms: RMSNorms over the width in a layer. head_norms: norms over each
    head's width, on queries and keys. scores: attention keeps its scores (softcapping, which the fused kernels lack).
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    mlp_width: int
    vocabulary: int
    tied: bool
    norms: int = 2
    head_norms: bool = False
    scores: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """The shape in a model's config.json. Raises KeyError where it describes something else than a decoder of
        the llama kind."""
        kind = str(config.get("model_type", ""))
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
            mlp_width=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),
            norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
            head_norms=kind.startswith(("qwen3", "gemma3")),
            scores=config.get("attn_logit_softcapping") is not None,
        )

    @property
    def parameters(self) -> int:
        """Weights of linear maps, embeddings and an output matrix of their own (norms and biases are a thousandth)."""
        linear = self.layers * sum(i * o for i, o in self.maps)
        return linear + self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(in, out) of the seven linear maps of a layer: query, key, value, output, gate, up, down."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        return [
            (self.width, queries),
            (self.width, keys),
            (self.width, keys),
            (queries, self.width),
            (self.width, self.mlp_width),
            (self.width, self.mlp_width),
            (self.mlp_width, self.width),
        ]


def weights(shape: Shape, four_bit: bool, value_bytes: int) -> float:
    """The base model: linear maps in NF4 or not, embeddings and an output matrix of their own never quantised."""
    linear = shape.layers * sum(i * o for i, o in shape.maps)
    return linear * (NF4_BYTES if four_bit else value_bytes) + (shape.parameters - linear) * value_bytes


def adapters(shape: Shape, rank: int, count: int, trained_layers: int, value_bytes: int) -> float:
    """``count`` LoRA adapters in float32 on all linear maps; one is in use, cast to the activations' type, and trains
    in ``trained_layers`` layers."""
    a_layer = sum(rank * (i + o) for i, o in shape.maps)
    return a_layer * ((4 * count + value_bytes) * shape.layers + ADAM_BYTES * trained_layers)


def activations(shape: Shape, rank: int, value_bytes: int, row_tokens: int) -> float:
    """What one layer keeps of one token for the backward pass, adapters on and nothing recomputed.

    Each RMSNorm keeps its input in float32; the adapter the input of each map, once, and what lies between its two
    matrices; attention its queries, its keys and values once per query head, and its output; the MLP its inner
    products. ``row_tokens``: tokens in a row, which scores that are kept grow with.
    """
    queries, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    norms = 4 * shape.norms * shape.width
    if shape.head_norms:
        norms += 4 * (queries + keys)
    inputs = 2 * shape.width + queries + shape.mlp_width + len(shape.maps) * rank
    attention, inner = 4 * queries, 3 * shape.mlp_width
    scores = shape.heads * row_tokens * 8 if shape.scores else 0  # capped, and as weights in float32 and cast
    return norms + value_bytes * (inputs + attention + inner) + scores


def logits(shape: Shape, tokens: int, value_bytes: int) -> float:
    """Logits of ``tokens`` answer tokens: as computed, in float32, their gradient and its copy."""
    return tokens * shape.vocabulary * (2 * value_bytes + 3 * 4)


def largest_map(shape: Shape, four_bit: bool, value_bytes: int) -> float:
    """A quantised map is written out whole for its product: the largest one, forward and backward."""
    return max(i * o for i, o in shape.maps) * value_bytes if four_bit else 0.0


def cache(shape: Shape, value_bytes: int) -> float:
    """Keys and values of one token in all layers, and the copy of them that grows beside while a token is added."""
    return 2 * 2 * shape.layers * shape.kv_heads * shape.head_width * value_bytes


# The shapes of the recipes' models, so that nothing has to be fetched to plan: as their config.json states them.
KNOWN = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 9, 3, 64, 1536, 49_152, tied=True),
    "Qwen/Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18_944, 152_064, tied=False),
    "Qwen/Qwen3-4B-Base": Shape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True, head_norms=True),
    "unsloth/Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128_256, tied=True),
    "unsloth/gemma-2-2b": Shape(26, 2304, 8, 4, 256, 9216, 256_000, tied=True, norms=4, scores=True),
    "unsloth/llama-3-8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256, tied=False),
    "unsloth/mistral-7b-v0.3": Shape(32, 4096, 32, 8, 128, 14_336, 32_768, tied=False),
}
KNOWN |= {
    "Qwen/Qwen2.5-1.5B-Instruct": KNOWN["Qwen/Qwen2.5-1.5B"],
    "Qwen/Qwen2.5-7B-Instruct": KNOWN["Qwen/Qwen2.5-7B"],
    "Qwen/Qwen3-4B-Instruct-2507": KNOWN["Qwen/Qwen3-4B-Base"],
    "unsloth/Llama-3.2-3B-Instruct": KNOWN["unsloth/Llama-3.2-3B"],
    "unsloth/gemma-2-2b-it": KNOWN["unsloth/gemma-2-2b"],
    "unsloth/llama-3-8b-Instruct": KNOWN["unsloth/llama-3-8b"],
    "unsloth/mistral-7b-instruct-v0.3": KNOWN["unsloth/mistral-7b-v0.3"],
}
