"""The shape of a decoder, what its memory depends on: of the recipes' models, or as a config.json states it."""

from dataclasses import dataclass
from typing import Any

from dcr_lite.data.sources import config_in, config_of
from dcr_lite.errors import UserError
from dcr_lite.files import exists, load_json

LARGEST = 10**8  # of a size: of a model that exists it is some hundred thousand


@dataclass(frozen=True)
class Shape:
    """What the memory of a decoder depends on.

    norms: RMSNorms over the width in a layer. head_norms: norms on queries and keys, over each head's width or over all
    heads. scores: attention keeps its scores (softcapping, which the fused kernels lack). fused: query, key and value
    are one map, and so are gate and up.
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
    fused: bool = False

    @classmethod
    def of(cls, config: dict[str, Any]) -> "Shape":
        """The shape in a model's config.json, of one that reads pictures as well that of its decoder alone. Raises
        KeyError, ValueError ... where that is no Llama-like decoder."""
        config = config.get("text_config", config)
        kind = str(config.get("model_type", ""))
        heads = int(config["num_attention_heads"])
        shape = cls(
            layers=int(config["num_hidden_layers"]),
            width=int(config["hidden_size"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_width=int(config.get("head_dim") or config["hidden_size"] // heads),
            mlp_width=int(config["intermediate_size"]),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", kind.startswith(("gemma", "smollm3")))),
            norms=4 if kind.startswith(("gemma2", "gemma3")) else 2,
            head_norms=kind.startswith(("qwen3", "gemma3", "olmo2", "olmo3")),
            scores=config.get("attn_logit_softcapping") is not None,
            fused=kind.startswith("phi3"),
        )
        sizes = (shape.layers, shape.vocabulary, *(size for sides in shape.maps for size in sides))
        if not 1 <= min(sizes) <= max(sizes) <= LARGEST:
            raise ValueError(f"a size that is not between 1 and {LARGEST:,}")
        return shape

    @property
    def parameters(self) -> int:
        """Weights of linear maps, embeddings and an output matrix of their own (norms and biases are a thousandth)."""
        linear = self.layers * sum(i * o for i, o in self.maps)
        return linear + self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def exceeds_float16(self) -> bool:
        """Whether activations outgrow float16's range, by what is known of its family: Gemma 3's do (issue 39972 of
        huggingface/transformers). Of the decoders here it alone has these norms."""
        return self.norms == 4 and self.head_norms

    @property
    def maps(self) -> list[tuple[int, int]]:
        """(in, out) of the seven linear maps of a layer: query, key, value, output, gate, up, down; of four where some
        are fused."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        if self.fused:
            into = [(self.width, queries + 2 * keys), (queries, self.width), (self.width, 2 * self.mlp_width)]
            return [*into, (self.mlp_width, self.width)]
        return [
            (self.width, queries),
            (self.width, keys),
            (self.width, keys),
            (queries, self.width),
            (self.width, self.mlp_width),
            (self.width, self.mlp_width),
            (self.mlp_width, self.width),
        ]


# The shapes of the recipes' models, as their config.json states them: --plan fetches nothing.
KNOWN = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": Shape(30, 576, 9, 3, 64, 1536, 49_152, tied=True),
    "HuggingFaceTB/SmolLM3-3B-Base": Shape(36, 2048, 16, 4, 128, 11_008, 128_256, tied=True),
    "Qwen/Qwen2.5-1.5B": Shape(28, 1536, 12, 2, 128, 8960, 151_936, tied=True),
    "Qwen/Qwen2.5-7B": Shape(28, 3584, 28, 4, 128, 18_944, 152_064, tied=False),
    "Qwen/Qwen3-0.6B-Base": Shape(28, 1024, 16, 8, 128, 3072, 151_936, tied=True, head_norms=True),
    "Qwen/Qwen3-1.7B-Base": Shape(28, 2048, 16, 8, 128, 6144, 151_936, tied=True, head_norms=True),
    "Qwen/Qwen3-4B-Base": Shape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True, head_norms=True),
    "Qwen/Qwen3-8B-Base": Shape(36, 4096, 32, 8, 128, 12_288, 151_936, tied=False, head_norms=True),
    "allenai/Olmo-3-1025-7B": Shape(32, 4096, 32, 32, 128, 11_008, 100_278, tied=False, head_norms=True),
    "unsloth/Llama-3.2-3B": Shape(28, 3072, 24, 8, 128, 8192, 128_256, tied=True),
    "unsloth/Meta-Llama-3.1-8B": Shape(32, 4096, 32, 8, 128, 14_336, 128_256, tied=False),
    "unsloth/Mistral-Small-24B-Base-2501": Shape(40, 5120, 32, 8, 128, 32_768, 131_072, tied=False),
    "unsloth/Phi-4-mini-instruct": Shape(32, 3072, 24, 8, 128, 8192, 200_064, tied=True, fused=True),
    "unsloth/gemma-2-2b": Shape(26, 2304, 8, 4, 256, 9216, 256_000, tied=True, norms=4, scores=True),
    "unsloth/gemma-3-4b-pt": Shape(34, 2560, 8, 4, 256, 10_240, 262_208, tied=True, norms=4, head_norms=True),
    "unsloth/gemma-3-1b-pt": Shape(26, 1152, 4, 1, 256, 6912, 262_144, tied=True, norms=4, head_norms=True),
    "unsloth/llama-3-8b": Shape(32, 4096, 32, 8, 128, 14_336, 128_256, tied=False),
    "unsloth/mistral-7b-v0.3": Shape(32, 4096, 32, 8, 128, 14_336, 32_768, tied=False),
}
CHAT_MODELS = {  # each of the shape of its base model
    "HuggingFaceTB/SmolLM3-3B": "HuggingFaceTB/SmolLM3-3B-Base",
    "Qwen/Qwen2.5-1.5B-Instruct": "Qwen/Qwen2.5-1.5B",
    "Qwen/Qwen2.5-7B-Instruct": "Qwen/Qwen2.5-7B",
    "Qwen/Qwen3-0.6B": "Qwen/Qwen3-0.6B-Base",
    "Qwen/Qwen3-1.7B": "Qwen/Qwen3-1.7B-Base",
    "Qwen/Qwen3-4B-Instruct-2507": "Qwen/Qwen3-4B-Base",
    "Qwen/Qwen3-8B": "Qwen/Qwen3-8B-Base",
    "allenai/Olmo-3-7B-Instruct": "allenai/Olmo-3-1025-7B",
    "unsloth/Llama-3.2-3B-Instruct": "unsloth/Llama-3.2-3B",
    "unsloth/Meta-Llama-3.1-8B-Instruct": "unsloth/Meta-Llama-3.1-8B",
    "unsloth/Mistral-Small-24B-Instruct-2501": "unsloth/Mistral-Small-24B-Base-2501",
    "unsloth/gemma-2-2b-it": "unsloth/gemma-2-2b",
    "unsloth/gemma-3-1b-it": "unsloth/gemma-3-1b-pt",
    "unsloth/gemma-3-4b-it": "unsloth/gemma-3-4b-pt",
    "unsloth/llama-3-8b-Instruct": "unsloth/llama-3-8b",
    "unsloth/mistral-7b-instruct-v0.3": "unsloth/mistral-7b-v0.3",
}
KNOWN |= {chat: KNOWN[base] for chat, base in CHAT_MODELS.items()}


def shape_of(model: str) -> Shape:
    """The shape of a model: of a folder, of one of the recipes' models, or of one on the Hub (its config.json alone).

    Raises UserError where there is no config.json, or where it describes another kind of model.
    """
    if model in KNOWN and not exists(model):
        return KNOWN[model]
    config = config_in(model) if exists(model) else config_of(model)
    try:
        return Shape.of(load_json(config))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{model}: its config.json describes no decoder whose memory is known ({error})") from None
