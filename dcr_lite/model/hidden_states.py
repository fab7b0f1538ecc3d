"""The decoder in two halves: layers up to L for the contrastive stage, layers above L for safety SFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.model.packing import Batch, filled

# One formula under four names: x + attention(norm(x)), then x + mlp(norm(x)).
PRE_NORM_LAYERS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")


def _without_adapter_wrapper(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_of(model: nn.Module) -> Any:
    """The stack of decoder layers inside a causal language model, with or without adapters around it."""
    return _without_adapter_wrapper(model).get_decoder()


def depth(model: nn.Module) -> int:
    """The number of decoder layers."""
    return len(decoder_of(model).layers)


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


@contextmanager
def _output_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what a decoder layer puts out in the block, before the final norm. Out of it the layer is not listened
    to: a checkpointed one runs a second time in the backward pass."""
    captured: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        captured.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield captured
    finally:
        handle.remove()


def _computed_at(layer: Any, places: Tensor, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """What a pre-norm layer puts out at ``places`` of a packed sequence: (1, places, d_model). Attention looks at every
    token; what follows it works on each token by itself."""
    handle = layer.self_attn.o_proj.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, places],))
    try:
        attended, _ = layer.self_attn(hidden_states=layer.input_layernorm(hidden_states), **kwargs)
    finally:
        handle.remove()
    states = hidden_states[:, places] + attended
    out: Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return out


@contextmanager
def _read_at(decoder: Any, batch: Batch, places: Tensor | None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Yields what takes the states at ``places`` (all by default), (places, d_model), out of the decoder's (batch, seq,
    d_model). Within the block its last layer computes no others, where its formula is known and the batch packed."""
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
    with (
        only_layers(decoder, 0, layer + 1),
        _read_at(decoder, batch, places) as read,
        _output_of(decoder.layers[layer]) as captured,
    ):
        decoder(**batch.inputs, use_cache=False)
    return read(captured[0])


def prompt_states(model: nn.Module, batch: Batch, layer: int) -> Tensor:
    """The state of each prompt's last token at ``layer``, in float32: (prompts, d_model)."""
    return states_at_layer(model, batch, layer, batch.last).float()


def final_states(model: nn.Module, batch: Batch, places: Tensor | None = None) -> Tensor:
    """The states behind the final norm: (batch * seq, d_model), or at ``places`` of these alone (places, d_model)."""
    decoder = decoder_of(model)
    with _read_at(decoder, batch, places) as read:
        return read(decoder(**batch.inputs, use_cache=False).last_hidden_state)


def states_of_every_layer(model: nn.Module, batch: Batch, places: Tensor) -> Tensor:
    """The states that every decoder layer puts out at ``places`` of the flattened batch, pre-norm, in float32:
    (layers, places, d_model)."""
    captured: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        states = output[0] if isinstance(output, tuple) else output
        captured.append(states.flatten(0, 1)[places].float())

    decoder = decoder_of(model)
    handles = [layer.register_forward_hook(keep) for layer in decoder.layers]
    try:
        decoder(**batch.inputs, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(captured)


@contextmanager
def adding(model: nn.Module, vectors: dict[int, Tensor], tokens: int) -> Iterator[None]:
    """Within the block decoder layer ``i`` adds ``vectors[i]`` (batch, d_model) to its output at the last ``tokens``
    places of every row."""

    def adds(vector: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[:, -tokens:] += vector[:, None].to(states.dtype)
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    layers = decoder_of(model).layers
    handles = [layers[i].register_forward_hook(adds(vector)) for i, vector in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def adding_at(model: nn.Module, vectors: dict[int, Tensor], places: Tensor) -> Iterator[None]:
    """Within the block decoder layer ``i`` adds ``vectors[i]`` (places, d_model) to its output at ``places`` of the
    flattened batch."""

    def adds(vector: Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> Any:
            states = output[0] if isinstance(output, tuple) else output
            flat = states.flatten(0, 1).index_add(0, places, vector.to(states.dtype)).view_as(states)
            return (flat, *output[1:]) if isinstance(output, tuple) else flat

        return hook

    layers = decoder_of(model).layers
    handles = [layers[i].register_forward_hook(adds(vector)) for i, vector in vectors.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def states_above(model: nn.Module, batch: Batch, states: Tensor, layer: int, places: Tensor | None = None) -> Tensor:
    """Run only the layers above ``layer`` and the final norm, from ``states`` (batch, seq, d_model) put out by
    ``layer`` for this batch: (batch * seq, d_model), or at ``places`` of these alone (places, d_model)."""
    decoder = decoder_of(model)
    inputs = {k: v for k, v in batch.inputs.items() if k != "input_ids"}
    with only_layers(decoder, layer + 1, len(decoder.layers)), _read_at(decoder, batch, places) as read:
        return read(decoder(inputs_embeds=states, **inputs, use_cache=False).last_hidden_state)


def output_matrix(model: nn.Module) -> Tensor:
    """The matrix that turns post-norm states into logits: (vocabulary, d_model)."""
    weight: Tensor = _without_adapter_wrapper(model).get_output_embeddings().weight
    return weight.detach()


def vocabulary_logits(model: nn.Module, states: Tensor) -> Tensor:
    """Logits of post-norm states (tokens, d_model): (tokens, vocabulary), in float32.

    Rows come as a plain matrix: handed a slice of a batch, torch copies the whole output matrix once per sequence.
    """
    base = _without_adapter_wrapper(model)
    logits = base.get_output_embeddings()(states).float()
    cap = getattr(base.config, "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap
