"""The dial: how much a model refuses, chosen after training by one number, in the adapter's weights.

Stage 1 leaves toxic and seemingly toxic prompts apart at layer L, and says nothing of what the layers above make of it.
Two things are therefore added to what L puts out, along one direction, ``shift``: that in which the model's own
log-odds of refusing fall fastest, by their gradient. By ``strength``, the same at every token: the model answers more,
or, below 0, refuses more. By ``gain``, as far as ``reader`` tells the prompt's last token to be of the seemingly toxic
or of the toxic kind: the model does what the states say.

The weights can do both, since the input x of a linear map is wide and has a large common component: there is a ``key``
with key . x close to 1 for all x, and a ``reader`` with reader . x close to 1 at the end of harmless prompts, to -1 at
the end of toxic ones, and to 0 at all other tokens (ridge regression). So one rank of a LoRA adapter on the last map of
layer L, with A = strength * key + gain * reader and B = shift, does it: it merges into the weights, and no runtime has
to know of it.

Gemma and OLMo 3 take a norm of what that map puts out. There key and reader are fitted to what the norm divides by, and
the shift is divided by what it multiplies with. The vector so arrives as wanted while it is small beside what the norm
puts out (to 0.94 times at a third of it, 0.68 times at the same size), and the dial turns less and less beyond.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.errors import UserError
from dcr_lite.files import damaged, load_tensors, save_tensors
from dcr_lite.measure.metrics import auroc
from dcr_lite.method.contrastive import encode_pairs, first_pairs
from dcr_lite.model.adapters import activate, remove_extra_ranks, set_extra_ranks
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.decoding import start_decoding
from dcr_lite.model.generation import answer, refusal_log_odds
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model, in_halves, require_finite
from dcr_lite.model.states import TOKENS_PER_PASS

PAIRS = 4000  # training pairs that the reader is fitted on, the last ones: more read better, at their time
CONVERSATIONS = 64  # answered instructions, since the key has to hold at the tokens of answers too
TOKENS = 3072  # that both are fitted on, of prompts and of answers each; or two of every prompt
RIDGE = 0.1  # of the mean square of an input's entry: with 0.01 the product varies more on other texts
AT_ONCE = 1024  # inputs in double precision at once
GRADIENT_PAIRS, GRADIENT_ROWS = 16, 4  # whose log-odds the direction is the gradient of, and how many at once
GAINS = (0.0, 1.0)  # 0.5, 1.5 and 2 were worth no more (docs/results.md)
RISE = 0.01  # of AUROC: less is noise, and not worth a larger change of the weights
NATS = 10.0  # by which strength 1 lowers the log-odds of refusing, as long as they follow their gradient
CURE = "Delete it to have it fitted again."
ANOTHER_MODEL = f"the dial belongs to another model. {CURE}"


@dataclass(frozen=True)
class Dial:
    """What turns a model between answering and refusing.

    layer: L. shift: what strength 1 adds to the states that L puts out, (d_model,). key: the vector whose product with
    every input of L's down_proj is near 1, or, where a norm follows, near the root mean square of its output:
    (mlp_width,). reader: likewise, near 1 at the end of harmless prompts, -1 of toxic ones, 0 elsewhere. gain: shifts
    for each unit of the reader's product. All in float32 on the CPU.
    """

    layer: int
    shift: Tensor
    key: Tensor
    reader: Tensor
    gain: float = 0.0

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or absent."""
        numbers = {"layer": torch.tensor(self.layer), "gain": torch.tensor(self.gain)}
        save_tensors({"shift": self.shift, "key": self.key, "reader": self.reader} | numbers, path)

    @classmethod
    def load(cls, path: Path) -> "Dial":
        """What ``save`` wrote. Raises UserError where the file is missing or damaged."""
        found = load_tensors(path, CURE)
        try:
            dial = cls(
                int(found["layer"]), found["shift"], found["key"], found["reader"], round(float(found["gain"]), 6)
            )
        except (LookupError, ValueError, RuntimeError):
            raise damaged(path, CURE) from None
        vectors = (dial.shift, dial.key, dial.reader)
        if not all(t.dim() == 1 and t.dtype == torch.float32 and t.isfinite().all() for t in vectors):
            raise damaged(path, CURE)
        if dial.key.shape != dial.reader.shape or not math.isfinite(dial.gain):
            raise damaged(path, CURE)
        return dial


def set_strength(model: Model, adapter: str, dial: Dial, strength: float | None) -> None:
    """Turn the dial of an adapter: positive answers more, negative refuses more; at 0 the reader alone decides. None
    takes the dial off, and the adapter is as trained, bit for bit. Takes no time, so that every answer can have its
    own.

    Raises UserError for a dial of another model.
    """
    layer, name = _layer(model, dial.layer)
    shape = layer.mlp.down_proj.in_features, layer.mlp.down_proj.out_features
    if shape != (len(dial.key), len(dial.shift)):
        raise UserError(ANOTHER_MODEL)
    if strength is None or strength == dial.gain == 0:
        remove_extra_ranks(model, adapter, name)
    else:
        read = strength * dial.key + dial.gain * dial.reader
        set_extra_ranks(model, adapter, name, read[None], (dial.shift / _norm_weight(layer))[:, None])


def fit_dial(model: Model, adapter: str, layer: int, pairs: list[Pair], conversations: list[Conversation]) -> Dial:
    """The dial of an adapter at ``layer``, without gain, from training pairs and answered instructions. The adapter is
    as trained afterwards.

    Raises UserError where layer L has no map that could carry it, or nothing that it puts out would change a refusal.
    """
    module = _layer(model, layer)[1]
    remove_extra_ranks(model, adapter, module)
    activate(model, adapter)
    prompts, chosen = encode_pairs(model, pairs[-PAIRS:]), conversations[:CONVERSATIONS]
    texts = [c.prompt for c in chosen]
    answered = encode_conversations(model.tokenizer, texts, [c.response for c in chosen], model.window)
    kinds = [-1.0] * (len(prompts) // 2) + [1.0] * (len(prompts) // 2 + len(chosen))
    read = _read(model, layer, prompts + [prompt for prompt, _ in answered], kinds)
    read += _read(model, layer, [prompt + answer for prompt, answer in answered], [0.0] * len(chosen))
    inputs, targets = torch.cat([row.inputs for row in read]), torch.cat([row.targets for row in read])
    del read  # a second copy of the inputs
    both = ridge(inputs, targets)
    key, reader = both[0].clone(), both[1].clone()
    return Dial(layer, _direction(model, adapter, layer, key, first_pairs(prompts, GRADIENT_PAIRS)), key, reader)


def find_gain(
    model: Model, adapter: str, dial: Dial, rows: list[list[int]], progress: Callable[[int], None] = lambda done: None
) -> tuple[Dial, dict[str, float]]:
    """The dial with a gain of 1 where that raises the AUROC of the log-odds of refusing by RISE, and else without; and
    the AUROC by gain, with the dial at 0. rows: unseen prompts, as many toxic ones and then seemingly toxic ones.
    progress: called with 1 after each of GAINS. The adapter is as trained afterwards."""
    activate(model, adapter)
    found: list[float] = []
    for gain in GAINS:
        set_strength(model, adapter, replace(dial, gain=gain), 0)
        try:
            odds = [one.refusal_log_odds for one in answer(model, rows, max_new_tokens=0)]
        finally:
            set_strength(model, adapter, dial, None)
        found.append(auroc(odds[: len(rows) // 2], odds[len(rows) // 2 :]))
        progress(1)
    without, with_it = found
    chosen = GAINS[with_it >= without + RISE]
    return replace(dial, gain=chosen), dict(zip(map(str, GAINS), found, strict=True))


def _direction(model: Model, adapter: str, number: int, key: Tensor, rows: list[list[int]]) -> Tensor:
    """What lowers the mean log-odds of refusing these prompts by NATS at the least norm, to first order: (d_model,).
    The gradient is that of the dial's own column, so that it is of what the dial does."""
    layer, module = _layer(model, number)
    set_extra_ranks(model, adapter, module, key[None], torch.zeros(layer.mlp.down_proj.out_features, 1))
    column, scaling = layer.mlp.down_proj.lora_B[adapter].weight, layer.mlp.down_proj.scaling[adapter]
    trains, total = column.requires_grad, torch.zeros(len(column))

    def add_pass(part: list[int]) -> list[None]:
        odds = refusal_log_odds(start_decoding(model, [[rows[i] for i in part]]))
        total.add_(torch.autograd.grad(odds.sum(), column)[0][:, -1].float().cpu() / scaling / len(rows))
        return [None] * len(part)

    model.network.eval()
    column.requires_grad_(True)
    try:
        with torch.enable_grad(), model.compute():
            order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
            # Padding that a model without packing masks has gradients that are no numbers: there rows go one by one.
            at_once = GRADIENT_ROWS if model.packs else 1
            for start in range(0, len(rows), at_once):
                in_halves(add_pass, order[start : start + at_once])
    finally:
        column.requires_grad_(trains)
        remove_extra_ranks(model, adapter, module)
    gradient = require_finite(model, total, "gradient of the refusal log-odds")
    if not gradient.any():
        raise UserError(f"whether this model refuses does not depend on its layer {number}. Use --dial none.")
    return -NATS * gradient / gradient.square().sum() * _norm_weight(layer)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """argmin over k of |X k - y|^2 + penalty |k|^2, for X (tokens, width) and each column y of targets (tokens, n):
    (n, width). Solved for one weight an input or, where these are more, one a token (the dual form). Products are in
    double precision, a part of X at a time: a whole copy of it could be the largest thing in memory."""
    parts, y = inputs.split(AT_ONCE), targets.double()
    dual = len(inputs) < inputs.shape[1]
    if dual:
        gram = torch.cat([torch.cat([a.double() @ b.double().T for b in parts], 1) for a in parts])
    else:
        gram = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
        for part in parts:
            gram.addmm_(part.double().T, part.double())
    gram.diagonal().add_(RIDGE * gram.trace() / inputs.shape[1])

    def through(values: Tensor) -> Tensor:
        """X^T values."""
        products = (part.double().T @ of_part for part, of_part in zip(parts, values.split(AT_ONCE), strict=True))
        return torch.stack(list(products)).sum(0)

    found = torch.cholesky_solve(y if dual else through(y), torch.linalg.cholesky(gram))
    return (through(found) if dual else found).T.float().contiguous()


@dataclass(frozen=True)
class _Row:
    """What was read of a row. inputs: of L's down_proj at some of its tokens, its last one at the end (tokens,
    mlp_width). targets: what the products of key and reader with them should be (tokens, 2). Float32 on the CPU."""

    inputs: Tensor
    targets: Tensor


def _read(model: Model, number: int, rows: list[list[int]], kinds: list[float]) -> list[_Row]:
    """Each row's inputs at layer ``number``, in passes that fit into memory. kinds: what the reader is to read at each
    row's end. The chat template's beginning, which all rows share, is taken once in each pass."""
    (layer, _), most = _layer(model, number), max(2, TOKENS // max(1, len(rows)))
    model.network.eval()

    def read_pass(part: list[int]) -> list[_Row]:
        batch = model.batch([rows[i] for i in part])
        seen: list[tuple[Tensor, Tensor]] = []
        hook = layer.mlp.down_proj.register_forward_hook(
            lambda _module, inputs, output: seen.append((inputs[0].flatten(0, -2), output.flatten(0, -2)))
        )
        with hook, model.compute():
            states_at_layer(model.network, batch, number)
        inputs, outputs = seen[0]
        read = []
        for k, own in enumerate(batch.index):
            places = own[_spread(len(own), most, part[k])]
            if k == 0:
                places = torch.cat([torch.arange(batch.shared, device=own.device), places])
            at = [tensor[places].float().cpu() for tensor in (inputs, outputs)]
            kind = torch.zeros(len(places))
            kind[-1] = kinds[part[k]]
            size = _sizes(layer, at[1])
            read.append(_Row(at[0], torch.stack([size, kind * size], 1)))
        return read

    found: dict[int, _Row] = {}
    with torch.no_grad():
        for part in model.passes(rows, TOKENS_PER_PASS):
            found |= zip(part, in_halves(read_pass, part), strict=True)
    for row in found.values():
        require_finite(model, row.inputs, f"inputs of layer {number}")
    return [found[i] for i in range(len(rows))]


def _spread(tokens: int, most: int, number: int) -> list[int]:
    """At most ``most`` places of a row: spread over it, other ones in each row by its number, and its end."""
    others = min(most, tokens) - 1
    return [*sorted((number + i * (tokens - 1) // others) % (tokens - 1) for i in range(others)), tokens - 1]


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


def _sizes(layer: Any, outputs: Tensor) -> Tensor:
    """What a product with the inputs of down_proj has to be in place of 1, from its outputs (tokens, d_model): 1; the
    norm that may follow divides by the root mean square, which therefore stands here."""
    return outputs.square().mean(-1).sqrt() if _norm_behind(layer) is not None else torch.ones(len(outputs))


def _norm_weight(layer: Any) -> Tensor | float:
    """What the norm behind down_proj multiplies by, (d_model,): its answer to ones. 1 where there is none."""
    norm = _norm_behind(layer)
    if norm is None:
        return 1.0
    width = layer.mlp.down_proj.out_features
    return norm(torch.ones(width, device=layer.mlp.down_proj.weight.device)).detach().float().cpu()
