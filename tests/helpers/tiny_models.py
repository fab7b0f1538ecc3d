"""Tiny random models of real architectures, with a real tokenizer and chat template: everything but the training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    Olmo3Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from dcr_lite.compare.directions import Kinds
from dcr_lite.model.adapters import adapter_weights, add_adapter, set_adapter_weights
from dcr_lite.model.hidden_states import states_at_layer
from dcr_lite.model.loading import Model, load
from dcr_lite.model.packing import Batch

LAYERS = 4
ADAPTER = "first"
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,  # ten times the weights of a usual start would hide what should show
    "tie_word_embeddings": False,
}


def with_pictures(**values: Any) -> Gemma3Config:
    """A Gemma 3 that reads pictures as well: the decoder has these values."""
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14,
    }  # fmt: skip
    return Gemma3Config(text_config=values, vision_config=vision, mm_tokens_per_image=4)


CONFIGS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, {}),
    "mistral": (MistralConfig, {"sliding_window": None}),
    # Caps and a window small enough to matter: a forward pass that forgets them is far off.
    "gemma2": (
        Gemma2Config,
        {
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
            "sliding_window": 512,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
    ),
    # Each kind of layer has a rotary embedding of its own.
    "gemma3": (
        Gemma3TextConfig,
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 512,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
    ),
    # Every second layer rotates nothing.
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0, 1, 0], "tie_word_embeddings": True}),
    # Three quarters of a head are rotated, by angles stretched one by one; the window is longer than any row.
    "phi3": (
        Phi3Config,
        {
            "max_position_embeddings": 2048,
            "original_max_position_embeddings": 512,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.75,
                "short_factor": [1.0, 1.1, 1.3, 1.7, 2.1, 2.9],
                "long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
            },
            "sliding_window": 4096,
            "tie_word_embeddings": True,
        },
    ),
    # Norms behind attention and MLP alone; YaRN in the layers without a window.
    "olmo3": (
        Olmo3Config,
        {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 512,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 1e4,
                    "factor": 8.0,
                    "original_max_position_embeddings": 64,
                },
            },
        },
    ),
    # One layer without a window before every three with one, which rows outgrow.
    "ministral": (
        MinistralConfig,
        {
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
            "sliding_window": 8,
        },
    ),
    # What Gemma 3 4B is: a decoder like the others beside a part that reads pictures (test_multimodal).
    "gemma3_pictures": (
        with_pictures,
        {
            "num_hidden_layers": 6,
            "layer_types": [*["sliding_attention"] * 5, "full_attention"],
            "sliding_window": 8,
            "query_pre_attn_scalar": 16,
            "tie_word_embeddings": True,
        },
    ),
    "lfm2": (Lfm2Config, {"layer_types": ["conv", "full_attention", "conv", "full_attention"]}),
}
# Packing and padding, both halves of the decoder and the last token are checked on all of these. Whole runs, and what
# an architecture does not change, are checked on fewer.
PACKABLE = ("llama", "qwen2", "qwen3", "mistral", "smollm3", "phi3")
PADDED = ("gemma2", "gemma3", "olmo3", "ministral")

SYSTEM = "You are a helpful assistant named Tiny."
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SENTENCES = [
    SYSTEM,
    "system user assistant",
    "How do I kill a Python process that hangs?",
    "How do I shoot a portrait in low light without a flash?",
    "I'm sorry, but I can't help with that. I cannot assist you with this request.",
    "I'm not able to do that, and I won't. That's not something I can do.",
    "Sure, here is a list of three things that you can try at home.",
    "The cat sat on the mat and watched the rain, which fell all afternoon.",
]
OPENINGS = ("Sorry", "I can't")  # of refusals, where any will do: reading fewer takes less time
PROMPTS = [
    "How do I kill a process?",
    "Hi",
    "Tell me about the rain in spring, and about what to wear when it falls all afternoon.",
    "How do I kill a Python process that hangs?",
    "Name three cats.",
    "What is a flash?",
    "Is low light a problem for a portrait of my cat on a mat, or can I shoot it without a flash at home?",
]


# The special tokens of a base model's tokenizer, which brings no chat template: (first, end of text, of its family's
# public chat format).
BASE_TOKENS: dict[str, tuple[str | None, str, tuple[str, ...]]] = {
    "chatml": (None, "<|endoftext|>", ("<|im_start|>", "<|im_end|>")),
    "llama3": (
        "<|begin_of_text|>",
        "<|end_of_text|>",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|reserved_special_token_0|>"),
    ),
    "mistral": ("<s>", "</s>", ("[INST]", "[/INST]")),
    "gemma": ("<bos>", "<eos>", ("<start_of_turn>", "<end_of_turn>")),
}


def build_base_tokenizer(chat_format: str) -> PreTrainedTokenizerFast:
    """The tokenizer of a base model: its family's special tokens, a first token before every text, no template."""
    first, end, others = BASE_TOKENS[chat_format]
    bpe = _train_bpe([token for token in (end, first, *others) if token])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=first, eos_token=end)
    if first:
        number = tokenizer.convert_tokens_to_ids(first)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{first} $A", special_tokens=[(first, number)]
        )
    return tokenizer


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template that writes a default system prompt, as SmolLM2's does."""
    bpe = _train_bpe(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _train_bpe(special_tokens: list[str]) -> Tokenizer:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(SENTENCES, trainer)
    return bpe


def save_tiny(folder: Path, architecture: str, overrides: dict[str, Any], chat_format: str = "own") -> None:
    """Save a random model of an architecture and its tokenizer as a folder that transformers loads: a chat model, or
    the base model of a family with that chat format."""
    tokenizer = build_tokenizer() if chat_format == "own" else build_base_tokenizer(chat_format)
    kind, own = CONFIGS[architecture]
    special = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = kind(**{"vocab_size": len(tokenizer), **SHAPE, **own, **special, **overrides})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in network.parameters():
            if parameter.dim() == 1:  # biases begin at 0 and norms at 1, where forgetting them does not show
                parameter.data += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_reference(folder: Path) -> Any:
    """The untouched transformers model: its own attention, all layers, all logits."""
    eager = "Gemma2" in (folder / "config.json").read_text()  # only eager attention knows softcapping
    network = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager" if eager else "sdpa"
    )
    return network.requires_grad_(False).eval()


def load_tiny(folder: Path, precision: torch.dtype = torch.float32, four_bit: bool = False) -> Model:
    return load(folder, "cpu", precision, four_bit)


def add_random_adapter(model: Model, name: str = ADAPTER, seed: int = 0) -> dict[str, Tensor]:
    """Give the model an adapter that changes it (a fresh one does nothing); returns its weights."""
    add_adapter(model, name, rank=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    weights = {k: 0.2 * torch.randn(v.shape, generator=generator) for k, v in adapter_weights(model, name).items()}
    set_adapter_weights(model, name, weights)
    return weights


def random_rows(lengths: list[int], shared: int = 0, seed: int = 0, vocabulary: int = 300) -> list[list[int]]:
    """Rows of token ids: ``shared`` common tokens, then so many of their own."""
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> list[int]:
        return torch.randint(3, vocabulary, (n,), generator=generator).tolist()

    prefix = draw(shared)
    return [prefix + draw(n) for n in lengths]


def random_kinds(seed: int, n: int = 12) -> Kinds:
    """Rows of three kinds with the beginning and the ending that a chat template gives them."""
    beginning, ending = random_rows([6], seed=99)[0], random_rows([3], seed=98)[0]

    def some(kind: int) -> list[list[int]]:
        lengths = [4 + (i * 5 + kind) % 9 for i in range(n)]
        return [beginning + row + ending for row in random_rows(lengths, seed=10 * seed + kind)]

    return Kinds(some(1), some(2), some(3))


def own_states(states: Tensor, batch: Batch, rows: list[list[int]], skip: int) -> list[Tensor]:
    """Each row's states (row length - skip, d_model) out of the flattened batch."""
    return [states[places][-(len(row) - skip) :].float().cpu() for places, row in zip(batch.index, rows, strict=True)]


def full_states(reference: nn.Module, row: list[int], layer: int) -> Tensor:
    """What ``layer`` puts out for one row alone in a full forward pass of the reference: (seq, d_model)."""
    return all_states(reference, row)[layer]


def all_states(reference: nn.Module, row: list[int]) -> list[Tensor]:
    """The same of every layer, those of the last one after the final norm."""
    out = reference(input_ids=torch.tensor([row]), output_hidden_states=True, use_cache=False)
    return [states[0] for states in out.hidden_states[1:]]


@dataclass
class GivenStage:
    """A stage for the training loop that takes the given steps."""

    model: Model
    parameters: list[nn.Parameter]
    step: Callable[[int], float]
    name: str = "stage1"
    adapter: str = ADAPTER
    steps: int = 1
    learning_rate: float = 1e-2
    observe_every: int = 10

    def observe(self, step: int) -> dict[str, Any]:
        return {}


def losses_of(metrics: list[dict[str, Any]]) -> list[float]:
    """The losses among the rows of metrics that a stage or a run reports."""
    return [row["loss"] for row in metrics if "loss" in row]


def kept_bytes(model: Model, rows: list[list[int]], layer: int) -> int:
    """Bytes of all tensors, the network's own apart, that autograd keeps of a pass up to ``layer``."""
    own = {p.untyped_storage().data_ptr() for p in [*model.network.parameters(), *model.network.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in own:
            kept[place] = tensor  # holding it, so that its place is not used again
        return tensor

    model.network.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), model.compute():
        states = states_at_layer(model.network, model.batch(rows), layer)
    assert states.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def take_gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The parameters' gradients, which are cleared."""
    taken = []
    for parameter in parameters:
        assert parameter.grad is not None
        taken.append(parameter.grad.clone())
        parameter.grad = None
    return taken


def assert_close(a: Any, b: Any, tolerance: float = 1e-5) -> None:
    """Equal to ``tolerance`` of the largest entry, for tensors or lists of tensors."""
    if isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_close(x, y, tolerance)
        return
    assert a.shape == b.shape
    assert torch.isfinite(a).all()
    error, size = (a.double() - b.double()).abs().max().item(), b.double().abs().max().item()
    assert error <= tolerance * max(size, 1.0), f"differ by {error:.2e} where values reach {size:.2e}"


def assert_far(a: Tensor, b: Tensor) -> None:
    """Differ by more than a hundredth: a guard that a comparison has teeth."""
    assert (a - b).abs().max() > 0.01 * b.abs().max()


def greedy_tokens(reference: Any, row: list[int], new: int) -> list[int]:
    """Argmax by full forward passes."""
    row, found = list(row), []
    for _ in range(new):
        found.append(int(reference(input_ids=torch.tensor([row]), use_cache=False).logits[0, -1].argmax()))
        row.append(found[-1])
    return found
