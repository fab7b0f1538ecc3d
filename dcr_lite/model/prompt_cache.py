"""What the layers below one make of prompts, computed once while only that layer and later ones change: a dial turns at
layer L, and the same prompts are read at each of its strengths."""

from collections.abc import Hashable
from typing import Any

from torch import Tensor
from transformers import DynamicCache

from dcr_lite.model.free_memory import free_memory
from dcr_lite.model.hidden_states import only_layers

SHARE = 0.25  # of this computer's free memory that it may take


class PromptCache:
    """What enters ``layer``, and keys and values of the layers below it, by the prompts that they were computed of.
    Held in this computer's memory while there is room; what finds none is computed anew each time.

    It is right as long as no weight below ``layer`` changes and no other adapter is put in.
    """

    def __init__(self, layer: int):
        self.layer = layer
        self._kept: dict[Hashable, tuple[Tensor, list[tuple[Tensor, Tensor]]]] = {}
        self._room = SHARE * free_memory("cpu")  # bytes

    def forward(
        self, decoder: Any, inputs: dict[str, Any], cache: DynamicCache, of: Hashable, goes_on: bool = True
    ) -> Tensor:
        """Post-norm states (batch, new, d_model) of the new tokens of ``inputs``, the decoder's keyword arguments,
        behind ``cache``. of: what says which tokens they are, and behind which. goes_on: whether ``cache`` is read
        afterwards, and has to hold the new tokens."""
        if of not in self._kept:
            return self._first(decoder, inputs, cache, of, goes_on)
        states, below = self._kept[of]
        device = inputs["input_ids"].device
        later = {name: value for name, value in inputs.items() if name != "input_ids"}
        with only_layers(decoder, self.layer, len(decoder.layers)):
            out = decoder(inputs_embeds=states.to(device), past_key_values=cache, **later)
        for layer, (keys, values) in zip(cache.layers, below, strict=False):  # the first ones alone
            if not layer.is_initialized:
                layer.lazy_initialization(keys.to(device), values.to(device))
            layer.keys, layer.values = keys.to(device), values.to(device)
        return out.last_hidden_state

    def _first(self, decoder: Any, inputs: dict[str, Any], cache: DynamicCache, of: Hashable, goes_on: bool) -> Tensor:
        """The same of what was not computed before, and is kept if there is room."""
        seen: list[Tensor] = []
        entered = decoder.layers[self.layer].register_forward_pre_hook(
            lambda _layer, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        with entered:
            out = decoder(past_key_values=cache, **inputs)
        below = [(layer.keys, layer.values) for layer in cache.layers[: self.layer]] if goes_on else []
        size = sum(tensor.nbytes for tensor in (*seen, *(tensor for both in below for tensor in both)))
        if size <= self._room:
            self._room -= size
            self._kept[of] = seen[0].cpu(), [(keys.cpu(), values.cpu()) for keys, values in below]
        return out.last_hidden_state
