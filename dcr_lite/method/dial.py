"""The dial: how much a model refuses, chosen after training by one number, in the adapter's weights.

Stage 1 leaves toxic and seemingly toxic prompts apart at layer L. What the layers above make of a state depends on
where it lies between the two: moved towards the seemingly toxic side, a model answers more, moved away from it, it
refuses more. ``shift``, the difference of the two kinds' mean states, times the strength is added to what layer L puts
out.

The weights can do that for every token alike, since the input x of a linear map has a large common component: there is
a ``key`` with key . x close to 1 for all x (ridge regression on the constant 1). So one rank of a LoRA adapter on the
last map of layer L, with A = key and B = strength * shift, adds the same vector everywhere: it merges into the weights,
and no runtime has to know of it.

Gemma and OLMo 3 take a norm of what that map puts out. There the key is fitted to what the norm divides by, and the
shift is divided by what it multiplies with. The vector so arrives as wanted while it is small beside what the norm puts
out (to 0.94 times at a third of it, 0.68 times at the same size), and the dial turns less and less beyond.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_tensors, save_tensors
from dcr_lite.method.contrastive import encode_pairs, first_pairs
from dcr_lite.model.adapters import activate, remove_extra_ranks, set_extra_ranks
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model, in_halves, require_finite
from dcr_lite.model.states import TOKENS_PER_PASS

PAIRS = 128  # training pairs: two means, and prompts for the key to be fitted on
CONVERSATIONS = 64  # answered instructions, since the key has to hold at the tokens of answers too
TOKENS = 4096  # that the key is fitted on, half of them of prompts: the equations are as many
RIDGE = 0.1  # of the mean square of an input's entry: with 0.01 the product varies more on other texts
CURE = "Delete it to have it fitted again."
ANOTHER_MODEL = f"the dial belongs to another model. {CURE}"


@dataclass(frozen=True)
class Dial:
    """What turns a model between answering and refusing.

    layer: L. shift: what strength 1 adds to the states that L puts out, (d_model,). key: the vector whose product with
    every input of L's down_proj is near 1, or, where a norm follows, near the root mean square of its output:
    (mlp_width,). Both in float32 on the CPU.
    """

    layer: int
    shift: Tensor
    key: Tensor

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or absent."""
        save_tensors({"layer": torch.tensor(self.layer), "shift": self.shift, "key": self.key}, path)

    @classmethod
    def load(cls, path: Path) -> "Dial":
        """What ``save`` wrote. Raises UserError where the file is missing or damaged."""
        tensors = load_tensors(path, CURE)
        try:
            dial = cls(int(tensors["layer"]), tensors["shift"], tensors["key"])
        except (LookupError, ValueError, RuntimeError):
            raise damaged(path, CURE) from None
        if not all(t.dim() == 1 and t.dtype == torch.float32 and t.isfinite().all() for t in (dial.shift, dial.key)):
            raise damaged(path, CURE)
        return dial


def set_strength(model: Model, adapter: str, dial: Dial, strength: float) -> None:
    """Turn the dial of an adapter: positive answers more, negative refuses more; at 0 the adapter is as trained, bit
    for bit. Takes no time, so that every answer can have its own.

    Raises UserError for a dial of another model.
    """
    layer, name = _layer(model, dial.layer)
    shape = layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features
    if shape != (len(dial.key), len(dial.shift)):
        raise UserError(ANOTHER_MODEL)
    if strength == 0:
        remove_extra_ranks(model, adapter, name)
    else:
        shift = strength * dial.shift / _gain(layer)
        set_extra_ranks(model, adapter, name, dial.key[None], shift[:, None])


def fit_dial(model: Model, adapter: str, layer: int, pairs: list[Pair], conversations: list[Conversation]) -> Dial:
    """The dial of an adapter at ``layer``, from training pairs and answered instructions. The adapter is as trained
    afterwards.

    Raises UserError where layer L has no map that could carry it.
    """
    remove_extra_ranks(model, adapter, _layer(model, layer)[1])
    activate(model, adapter)
    prompts = first_pairs(encode_pairs(model, pairs), PAIRS)
    chosen = conversations[:CONVERSATIONS]
    encoded = encode_conversations(
        model.tokenizer, [c.prompt for c in chosen], [c.response for c in chosen], model.window
    )
    read = _read(model, layer, prompts) + _read(model, layer, [prompt + answer for prompt, answer in encoded])
    states = torch.stack([row.state for row in read[: len(prompts)]])
    toxic, seemingly_toxic = states.split(len(prompts) // 2)
    key = ridge(torch.cat([row.inputs for row in read]), torch.cat([row.targets for row in read]))
    return Dial(layer, seemingly_toxic.mean(0) - toxic.mean(0), key)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """argmin over k of |X k - y|^2 + penalty |k|^2, for X (tokens, width), y (tokens,): (width,). Solved for one weight
    a token, since a model is wider than the tokens are many (the dual form)."""
    gram = (inputs @ inputs.T).double()
    gram.diagonal().add_(RIDGE * gram.trace() / inputs.shape[1])
    weights = torch.cholesky_solve(targets.double()[:, None], torch.linalg.cholesky(gram))
    return (weights[:, 0].float() @ inputs).contiguous()


@dataclass(frozen=True)
class _Row:
    """What was read of a row. state: of its last token at L. inputs: of L's down_proj at some of its tokens (tokens,
    mlp_width). targets: what the key's product with them should be (tokens,). All in float32 on the CPU."""

    state: Tensor
    inputs: Tensor
    targets: Tensor


def _read(model: Model, number: int, rows: list[list[int]]) -> list[_Row]:
    """Each row's state and inputs at layer ``number``, in passes that fit into memory. The chat template's beginning,
    which all rows share, is taken once in each pass."""
    (layer, _), most = _layer(model, number), TOKENS // 2 // max(1, len(rows))
    model.network.eval()

    def read_pass(part: list[int]) -> list[_Row]:
        batch = model.batch([rows[i] for i in part])
        seen: list[tuple[Tensor, Tensor]] = []
        hook = layer.mlp.down_proj.register_forward_hook(
            lambda _module, inputs, output: seen.append((inputs[0].flatten(0, -2), output.flatten(0, -2)))
        )
        with hook, model.compute():
            states = states_at_layer(model.network, batch, number)
        inputs, outputs = seen[0]
        read = []
        for k, own in enumerate(batch.index):
            places = own[torch.linspace(0, len(own) - 1, min(most, len(own))).round().long()]
            if k == 0:
                places = torch.cat([torch.arange(batch.shared, device=own.device), places])
            at = [tensor[places].float().cpu() for tensor in (inputs, outputs)]
            read.append(_Row(states[own[-1]].float().cpu(), at[0], _targets(layer, at[1])))
        return read

    found: dict[int, _Row] = {}
    with torch.no_grad():
        for part in model.passes(rows, TOKENS_PER_PASS):
            found |= zip(part, in_halves(read_pass, part), strict=True)
    for row in found.values():
        require_finite(model, row.inputs, f"inputs of layer {number}")
    return [found[i] for i in range(len(rows))]


# --- where layer L can carry the dial ---------------------------------------------------------------------------------


def _layer(model: Model, number: int) -> tuple[Any, str]:
    """The decoder layer, and its down_proj's name in the base model. Raises UserError where there is no such map."""
    layers = decoder_of(model.network).layers
    if not 0 <= number < len(layers):
        raise UserError(ANOTHER_MODEL)
    layer = layers[number]
    if not hasattr(getattr(layer, "mlp", None), "down_proj"):
        kind = model.network.config.model_type
        raise UserError(
            f"a model of type {kind} cannot carry a dial: its layers have no mlp.down_proj. Use --dial none."
        )
    modules = model.network.get_base_model().named_modules()
    return layer, next(name for name, module in modules if module is layer.mlp.down_proj)


def _norm_behind(layer: Any) -> Any:
    """The norm between down_proj and what the layer puts out, as in Gemma and OLMo 3; None in most models."""
    return getattr(layer, "post_feedforward_layernorm", None)


def _targets(layer: Any, outputs: Tensor) -> Tensor:
    """What the key's product with the inputs of down_proj should be, from its outputs (tokens, d_model): 1; the norm
    that may follow divides by the root mean square, which therefore stands here."""
    return outputs.square().mean(-1).sqrt() if _norm_behind(layer) is not None else torch.ones(len(outputs))


def _gain(layer: Any) -> Tensor | float:
    """What the norm behind down_proj multiplies by, (d_model,): its answer to ones. 1 where there is none."""
    norm = _norm_behind(layer)
    if norm is None:
        return 1.0
    width = layer.mlp.down_proj.out_features
    return norm(torch.ones(width, device=layer.mlp.down_proj.weight.device)).detach().float().cpu()
