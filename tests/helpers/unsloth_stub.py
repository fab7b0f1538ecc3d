"""A stub of unsloth where it cannot run: real small models, with what its source and documentation say it changes.

Padding masks are dropped in training, decoder layers return tuples, cache objects are not understood, which layers of
Gemma 2 see a window only is told by their place, the tokenizer pads on the left, and whatever was frozen among the
adapters trains after patching. The backward pass overwrites what the forward pass kept; a maximum beyond the window
stretches the rotary embedding; what is longer than the maximum is cut at its end. Its functions take the arguments of
the pinned version and no others.
"""

import inspect
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.modeling_outputs import BaseModelOutputWithPast

# Arguments of unsloth 2026.10.7 (unsloth/models/loader.py and llama.py), in their order.
SIGNATURES = {
    "from_pretrained": (
        "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit", "full_finetuning",
        "token", "device_map", "device_map_planner_kwargs", "rope_scaling", "fix_tokenizer", "trust_remote_code",
        "use_gradient_checkpointing", "resize_model_vocab", "revision", "use_exact_model_name", "offload_embedding",
        "float32_mixed_precision", "fast_inference", "gpu_memory_utilization", "float8_kv_cache", "random_state",
        "max_lora_rank", "disable_log_stats", "qat_scheme", "load_in_fp8", "unsloth_tiled_mlp", "text_only",
    ),
    "patch_peft_model": ("model", "use_gradient_checkpointing"),
}  # fmt: skip


def _taking(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """``work`` behind the pinned version's arguments: another one is a TypeError, as it would be there."""
    keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(p, keyword, default=None) for p in SIGNATURES[name]])

    def call(*args: Any, **kwargs: Any) -> Any:
        return work(**signature.bind(*args, **kwargs).arguments)

    return call


def _from_pretrained(
    model_name: str, max_seq_length: int, dtype: torch.dtype, load_in_4bit: bool, trust_remote_code: bool,
    use_gradient_checkpointing: bool,
) -> tuple[Any, Any]:  # fmt: skip
    assert use_gradient_checkpointing is False
    assert trust_remote_code is False
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    capped = AutoConfig.from_pretrained(model_name).model_type == "gemma2"  # its softcapping only eager attention knows
    network = AutoModelForCausalLM.from_pretrained(
        model_name,
        dtype=dtype,
        quantization_config=nf4 if load_in_4bit else None,
        attn_implementation="eager" if capped else "sdpa",
    )
    network.max_seq_length = network.model.max_seq_length = max_seq_length
    network.model.stretched = max(1.0, max_seq_length / network.config.max_position_embeddings)
    _make_fast(network.model)
    tokenizer = AutoTokenizer.from_pretrained(model_name)
    tokenizer.padding_side = "left"
    return network, tokenizer


def _make_fast(decoder: Any) -> None:
    for layer in decoder.layers:
        plain = layer.forward
        layer.forward = lambda *args, plain=plain, **kwargs: (plain(*args, **kwargs),)
    decoder.forward = types.MethodType(_fast_forward, decoder)


class _Overwriting(torch.autograd.Function):
    """The identity, whose backward pass works once."""

    @staticmethod
    def forward(ctx: Any, states: Tensor) -> Tensor:
        ctx.save_for_backward(torch.ones_like(states))
        return states.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (kept,) = ctx.saved_tensors
        passed = gradient * kept
        kept.data.zero_()
        return passed


def _fast_forward(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
) -> BaseModelOutputWithPast:
    if past_key_values is not None:
        past_key_values[0][0].shape[2]  # keys of the first layer, in a list of pairs
        raise NotImplementedError("the stub keeps no cache")
    states = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    states = states[:, : self.max_seq_length]
    rows, width = states.shape[:2]
    seen = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, 1, width, width)
    if attention_mask is not None and not self.training:  # in training it is dropped
        seen = seen & attention_mask[:, None, None, :].bool()
    if position_ids is None:
        position_ids = torch.arange(width)[None]
    gemma2 = self.config.model_type == "gemma2"
    near = seen & torch.ones_like(seen).triu(1 - self.config.sliding_window) if gemma2 else seen
    rotary = self.rotary_emb(states, position_ids / self.stretched)
    for place, layer in enumerate(self.layers):
        visible = near if place % 2 == 0 else seen
        mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)
        (states,) = layer(states, attention_mask=mask, position_ids=position_ids, position_embeddings=rotary)
        states = _Overwriting.apply(states)
    return BaseModelOutputWithPast(last_hidden_state=self.norm(states))


def _patch_peft_model(model: PeftModel, use_gradient_checkpointing: bool) -> PeftModel:
    assert isinstance(model, PeftModel)
    assert use_gradient_checkpointing is False
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    return model


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the test, `import unsloth` gives the stub."""
    module = types.ModuleType("unsloth")
    module.FastLanguageModel = types.SimpleNamespace(  # type: ignore[attr-defined]
        from_pretrained=_taking("from_pretrained", _from_pretrained),
        patch_peft_model=_taking("patch_peft_model", _patch_peft_model),
    )
    monkeypatch.setitem(sys.modules, "unsloth", module)
