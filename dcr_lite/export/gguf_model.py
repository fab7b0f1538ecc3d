"""What llama.cpp is told of a model: its architecture and numbers, and the names and the layout of its tensors.

llama.cpp builds into an architecture what its models have in common, such as which layers have a window, and does not
read it from the file. A model that has it otherwise is refused.
"""

import math
from typing import Any

import numpy as np
import torch
from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType, get_tensor_name_map
from numpy.typing import NDArray
from torch import Tensor
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from dcr_lite.errors import UserError
from dcr_lite.export.merge import Merged

ARCHITECTURES = {
    "llama": MODEL_ARCH.LLAMA,
    "mistral": MODEL_ARCH.LLAMA,
    "qwen2": MODEL_ARCH.QWEN2,
    "qwen3": MODEL_ARCH.QWEN3,
    "gemma2": MODEL_ARCH.GEMMA2,
    "gemma3_text": MODEL_ARCH.GEMMA3,
    "smollm3": MODEL_ARCH.SMOLLM3,
    "phi3": MODEL_ARCH.PHI3,
    "olmo3": MODEL_ARCH.OLMO2,
}
NEIGHBOURS = (MODEL_ARCH.LLAMA, MODEL_ARCH.SMOLLM3)  # whose rotary embedding rotates pairs of neighbouring rows
GEMMAS = ("gemma2", "gemma3_text")  # whose norms multiply by 1 + weight
PICTURES = ("vision_tower.", "multi_modal_projector.")  # of a model that reads pictures beside its decoder
SCALINGS = {"llama": "llama3", "gemma3_text": "linear", "phi3": "longrope", "olmo3": "yarn"}  # of the rotary embedding
# Every so many layers there is one without a window; in SmolLM3 one without a rotary embedding.
PERIODS = {"gemma2": 2, "gemma3_text": 6, "olmo3": 4, "smollm3": 4}


def architecture_of(config: Any) -> MODEL_ARCH:
    """llama.cpp's name for the architecture of a decoder. Raises UserError for an unknown one, and for a variant of a
    known one that llama.cpp computes differently."""
    kind = config.model_type
    if kind not in ARCHITECTURES:
        raise UserError(f"GGUF is not supported for {kind}, only for {', '.join(ARCHITECTURES)}. Use --to merged.")
    scaling = _rotary(config).get("rope_type", "default")
    if scaling not in ("default", SCALINGS.get(kind)):
        raise UserError(f"GGUF is not supported for rotary scaling {scaling!r}. Use --to merged.")
    if otherwise := _built_in_otherwise(config):
        raise UserError(f"GGUF is not supported for {otherwise} of this {kind} model. Use --to merged.")
    return ARCHITECTURES[kind]


def _built_in_otherwise(config: Any) -> str | None:
    """What of a model is not as llama.cpp has built it into the architecture; None where all is."""
    kind, rotary = config.model_type, config.rope_parameters
    if kind in GEMMAS and config.query_pre_attn_scalar != config.head_dim:
        return "the attention scale"
    if kind in PERIODS:
        usual = [(i + 1) % PERIODS[kind] == 0 for i in range(config.num_hidden_layers)]
        whole = [layer == "full_attention" for layer in config.layer_types]
        if kind == "smollm3" and not all(whole):
            return "the sliding window"
        if usual != ([not rotates for rotates in config.no_rope_layers] if kind == "smollm3" else whole):
            return "the order of layers"
    if kind == "olmo3":
        full, sliding = rotary["full_attention"], rotary["sliding_attention"]
        usual_factor = 0.1 * math.log(full.get("factor", 1.0)) + 1
        same_base = sliding["rope_theta"] == full["rope_theta"] and sliding["rope_type"] == "default"
        if not same_base or not math.isclose(full.get("attention_factor") or usual_factor, usual_factor, rel_tol=1e-4):
            return "the rotary embedding"
    return None


def describe(writer: GGUFWriter, config: Any) -> None:
    """Add the numbers of the architecture."""
    kind, head = config.model_type, _head_dim(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(head * _rotary(config).get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(_rotary(config)["rope_theta"])
    if kind == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    if getattr(config, "final_logit_softcapping", None):
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if kind in ("gemma2", "gemma3_text", "olmo3"):
        writer.add_sliding_window(config.sliding_window)
    if kind == "gemma3_text":
        writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    _describe_scaling(writer, config)


def _describe_scaling(writer: GGUFWriter, config: Any) -> None:
    """Add how the rotary embedding is stretched, as far as factors of single frequencies (below) do not say it."""
    rotary = _rotary(config)
    match rotary.get("rope_type", "default"):
        case "linear":
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(rotary["factor"])
        case "yarn":
            writer.add_rope_scaling_type(RopeScalingType.YARN)
            writer.add_rope_scaling_factor(rotary["factor"])
            writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
            writer.add_rope_scaling_yarn_beta_fast(rotary.get("beta_fast") or 32.0)
            writer.add_rope_scaling_yarn_beta_slow(rotary.get("beta_slow") or 1.0)
        case "longrope":
            _, factor = ROPE_INIT_FUNCTIONS["longrope"](config, torch.device("cpu"))
            writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
            writer.add_rope_scaling_attn_factors(factor)


def _rotary(config: Any) -> dict[str, Any]:
    """The parameters of the rotary embedding, where kinds of layers have their own those of the ones without a
    window."""
    rotary: dict[str, Any] = config.rope_parameters
    return rotary.get("full_attention", rotary)


def _head_dim(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def gguf_names(merged: Merged, config: Any, architecture: MODEL_ARCH) -> dict[str, str]:
    """llama.cpp's names of the tensors by those of transformers. Left out are an output matrix that is tied to the
    embedding, and what reads pictures."""
    known = get_tensor_name_map(architecture, config.num_hidden_layers)
    names = {}
    for ours in merged:
        if ours.startswith(PICTURES) or (config.tie_word_embeddings and ours.endswith("lm_head.weight")):
            continue
        theirs = known.get_name(ours.removeprefix("language_model."), try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise UserError(f"GGUF has no place for the tensor {ours}. Use --to merged.")
        names[ours] = theirs
    return names


def rearranged(weight: Tensor, name: str, config: Any) -> Tensor:
    """A tensor in llama.cpp's layout.

    llama and smollm3: the rotary embedding rotates pairs of neighbouring rows, in transformers pairs half a head apart.
    gemma: the file includes the 1 that transformers adds to the weights of a norm.
    """
    if config.model_type in GEMMAS and name.endswith("norm.weight"):
        return weight.float() + 1
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or ARCHITECTURES[config.model_type] not in NEIGHBOURS:
        return weight
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def rotary_factors(config: Any) -> dict[str, NDArray[np.float32]]:
    """The divisors of the rotary frequencies by the names of their tensors, (rotated dimensions / 2,) each; nothing
    where one number says how the embedding is stretched, or it is not."""
    rotary = _rotary(config)
    match rotary.get("rope_type", "default"):
        case "llama3":
            scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
            exponent = torch.arange(0, 2 * len(scaled), 2, dtype=torch.float32) / (2 * len(scaled))
            return {"rope_freqs.weight": (rotary["rope_theta"] ** -exponent / scaled).numpy()}
        case "longrope":
            lengths = ("long", "short")
            return {
                f"rope_factors_{length}.weight": np.array(rotary[f"{length}_factor"], np.float32) for length in lengths
            }
    return {}
