"""Hidden states: what decoder layers put out, read, changed and carried on.

The decoder runs in two halves, layers up to L for the contrastive stage and layers above L for safety SFT.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.model.packing import Batch, filled

# One formula under five names: x + attention(norm(x)), then x + mlp(norm(x)). Phi's may drop out what is added.
PRE_NORM_LAYERS = (
    "LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer", "SmolLM3DecoderLayer",
)  # fmt: skip


def _without_adapters(model: Any) -> Any:
    """The causal language model inside peft's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: nn.Module) -> Any:
    """The stack of decoder layers inside a causal language model, with or without adapters around it."""
    return _without_adapters(model).get_decoder()


def depth(model: nn.Module) -> int:
    """The number of decoder layers."""
    return len(decoder_of(model).layers)


def width_of(model: nn.Module) -> int:
    """d_model. The configuration of a model that reads pictures has it in that of its decoder alone."""
    return int(decoder_of(model).config.hidden_size)


@contextmanager
def only_layers(decoder: Any, start: int, stop: int) -> Iterator[None]:
    """Within the block the decoder has only its layers ``start`` to ``stop - 1``."""
    whole, kinds = decoder.layers, getattr(decoder.config, "layer_types", None)
    decoder.layers = nn.ModuleList(list(whole)[start:stop])
    if kinds is not None:  # each layer's mask and rotary embedding are looked up by its place
        decoder.config.layer_types = list(kinds)[start:stop]
    try:
        yield
    finally:
        decoder.layers = whole
        if kinds is not None:
            decoder.config.layer_types = kinds


def _hook(change: Callable[[Tensor], Tensor | None], _layer: nn.Module, _inputs: Any, output: Any) -> Any:
    """A forward hook (behind ``partial``) that gives ``change`` the states (batch, seq, d_model) that a layer puts out
    and puts out what it returns; None leaves them as they are. transformers' layers return them alone, unsloth's in a
    tuple."""
    if not isinstance(output, tuple):
        return change(output)
    changed = change(output[0])
    return None if changed is None else (changed, *output[1:])


def _computed_at(layer: Any, places: Tensor, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """What a pre-norm layer puts out at ``places`` of a packed sequence: (1, places, d_model). Attention reads every
    token; what follows it works on each token by itself."""
    with layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, places],)):
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
    states = hidden_states[:, places] + attended
    return states + layer.mlp(layer.post_attention_layernorm(states))


@contextmanager
def _read_at(decoder: Any, batch: Batch, places: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yields the function that takes the states at ``places`` (all by default), (places, d_model), out of the decoder's
    (batch, seq, d_model). Within the block the last layer computes no others, where its formula is known and the batch
    packed."""
    layer = decoder.layers[-1]
    # A checkpointed layer runs again in the backward pass, out of the block.
    again = getattr(layer, "gradient_checkpointing", False) and layer.training
    if places is None:
        yield lambda states: states.flatten(0, 1)
    elif "layout" not in batch.inputs or type(layer).__name__ not in PRE_NORM_LAYERS or again:
        yield lambda states: states.flatten(0, 1)[places]
    else:
        layer.forward = partial(_computed_at, layer, filled(places))
        try:
            yield lambda states: states[0, : len(places)]
        finally:
            del layer.forward


def states_at_layer(model: nn.Module, batch: Batch, layer: int, places: Tensor | None = None) -> Tensor:
    """The states that decoder layer ``layer`` (counted from 0) puts out, pre-norm: (batch * seq, d_model), or at
    ``places`` of these alone (places, d_model).

    The forward pass stops there: no later layer runs, and no vocabulary logits are computed.
    """
    decoder = decoder_of(model)
    if not 0 <= layer < len(decoder.layers):
        raise ValueError(f"layer {layer} is not one of the model's {len(decoder.layers)} layers")
    with only_layers(decoder, 0, layer + 1):
        return _pre_norm(decoder, batch, places, **batch.inputs)


def states_between(
    model: nn.Module, batch: Batch, states: Tensor, layers: Sequence[int], places: Tensor | None = None
) -> Tensor:
    """The states that the last of some consecutive decoder ``layers`` puts out, pre-norm, from ``states`` (batch, seq,
    d_model) that enter the first: (batch * seq, d_model), or at ``places`` of these alone (places, d_model). No other
    layer runs."""
    decoder = decoder_of(model)
    inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
    with only_layers(decoder, layers[0], layers[-1] + 1):
        return _pre_norm(decoder, batch, places, inputs_embeds=states, **inputs)


def _pre_norm(decoder: Any, batch: Batch, places: Tensor | None, **inputs: Any) -> Tensor:
    """What the last of the decoder's layers puts out for ``inputs``, at ``places``."""
    captured: list[Tensor] = []
    with (
        _read_at(decoder, batch, places) as read,
        # Removed before the backward pass, in which a checkpointed layer runs a second time.
        decoder.layers[-1].register_forward_hook(partial(_hook, captured.append)),
    ):
        decoder(**inputs, use_cache=False)
    return read(captured[0])


def prompt_states(model: nn.Module, batch: Batch, layer: int) -> Tensor:
    """The state of each prompt's last token at ``layer``, in float32: (prompts, d_model)."""
    return states_at_layer(model, batch, layer, batch.last).float()


def final_states(model: nn.Module, batch: Batch, places: Tensor | None = None) -> Tensor:
    """The states after the final norm: (batch * seq, d_model), or at ``places`` of these alone (places, d_model)."""
    decoder = decoder_of(model)
    with _read_at(decoder, batch, places) as read:
        return read(decoder(**batch.inputs, use_cache=False).last_hidden_state)


def states_of_every_layer(model: nn.Module, batch: Batch, places: Tensor, layers: int | None = None) -> Tensor:
    """The states that the first ``layers`` decoder layers, by default all, put out at ``places`` of the flattened
    batch, pre-norm, in float32: (layers, places, d_model)."""
    decoder = decoder_of(model)
    captured: list[Tensor] = []

    def capture(states: Tensor) -> None:
        captured.append(states.flatten(0, 1)[places].float())

    with only_layers(decoder, 0, layers or len(decoder.layers)), ExitStack() as hooks:
        for layer in decoder.layers:
            hooks.enter_context(layer.register_forward_hook(partial(_hook, capture)))
        decoder(**batch.inputs, use_cache=False)
    return torch.stack(captured)


@contextmanager
def adding(model: nn.Module, vectors: dict[int, Tensor], places: Sequence[Tensor]) -> Iterator[None]:
    """Within the block decoder layer ``i`` adds ``vectors[i]`` (rows, d_model) to its output, each row's vector at that
    row's ``places`` (n,) of the flattened batch."""
    layers = decoder_of(model).layers
    with ExitStack() as hooks:
        for i, vector in vectors.items():
            change = partial(_added, vector, places)
            hooks.enter_context(layers[i].register_forward_hook(partial(_hook, change)))
        yield


def _added(vectors: Tensor, places: Sequence[Tensor], states: Tensor) -> Tensor:
    """States (batch, seq, d_model) with each row's vector added at its places."""
    spread = torch.cat([vector.expand(len(own), -1) for vector, own in zip(vectors, places, strict=True)])
    return states.flatten(0, 1).index_add(0, torch.cat(tuple(places)), spread.to(states.dtype)).view_as(states)


def states_above(model: nn.Module, batch: Batch, states: Tensor, layer: int, places: Tensor | None = None) -> Tensor:
    """The states after the final norm, from ``states`` (batch, seq, d_model) that ``layer`` put out for this batch:
    (batch * seq, d_model), or at ``places`` of these alone (places, d_model). Only the layers above ``layer`` run."""
    decoder = decoder_of(model)
    inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
    with only_layers(decoder, layer + 1, len(decoder.layers)), _read_at(decoder, batch, places) as read:
        return read(decoder(inputs_embeds=states, **inputs, use_cache=False).last_hidden_state)


def output_matrix(model: nn.Module) -> Tensor:
    """The matrix that turns post-norm states into logits: (vocabulary, d_model)."""
    weight: Tensor = _without_adapters(model).get_output_embeddings().weight
    return weight.detach()


def vocabulary_logits(model: nn.Module, states: Tensor) -> Tensor:
    """Logits of post-norm states (..., d_model): (..., vocabulary), in float32.

    They are taken of a plain matrix: handed a slice of a batch, torch reads the whole output matrix once per sequence.
    """
    logits = _without_adapters(model).get_output_embeddings()(states.flatten(0, -2)).float()
    logits = logits.unflatten(0, states.shape[:-1])
    cap = getattr(decoder_of(model).config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
