"""Fits a dial (dial.py) to a model as it is: what the ends of toxic prompts have in common, and in which direction the
model itself refuses. Nothing is trained: key and reader are ridge regressions on what enters layer L's down_proj, read
in one pass through the layers up to L, or through those of them that stage 1 trains, and the shift is one gradient of
the log-odds of refusing.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from scipy.linalg import cho_factor, cho_solve
from torch import Tensor

from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.errors import MethodError
from dcr_lite.measure.metrics import auroc
from dcr_lite.method.contrastive import encode_pairs, first_pairs
from dcr_lite.method.dial import Dial, carrier, norm_weight, turned, wanted_sizes
from dcr_lite.model import unsloth
from dcr_lite.model.adapters import activate, remove_extra_ranks, set_extra_ranks
from dcr_lite.model.chat import encode_rows
from dcr_lite.model.decoding import start_decoding
from dcr_lite.model.free_memory import trim
from dcr_lite.model.generation import answer, refusal_log_odds
from dcr_lite.model.hidden_states import states_at_layer
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model, in_halves, require_finite
from dcr_lite.model.states import TOKENS_PER_PART
from dcr_lite.model.states_below import RefinedStates

PAIRS = 4000  # training pairs that the reader is fitted on, the last ones: more read better, at their time
CONVERSATIONS = 64  # answered instructions, since the key has to hold at the tokens of answers too
TOKENS = 3072  # that both are fitted on, of prompts and of answers each; or two of every prompt
RIDGE = 0.1  # of the mean square of an input's entry: with 0.01 the product varies more on other texts
AT_ONCE = 1024  # inputs in double precision at once
GRADIENT_PAIRS, GRADIENT_ROWS = 16, 4  # whose log-odds the direction is the gradient of, and how many at once
GAINS = (0.0, 1.0)  # 1.5 was worth no more (docs/ablations.md)
RISE = 0.01  # of AUROC: less is noise, and not worth a larger change of the weights
NATS = 10.0  # by which strength 1 lowers the log-odds of refusing, as long as they follow their gradient


Progress = Callable[[int], None]  # called with how many more prompts were read
Readers = tuple[Tensor, Tensor]  # key and reader of a dial


def prompts_read(pairs: list[Pair], conversations: list[Conversation]) -> int:
    """How many prompts ``fit_readers`` reads: answered ones twice, without and with their answer."""
    return 2 * len(pairs[-PAIRS:]) + 2 * len(conversations[:CONVERSATIONS])


def fit_dial(
    model: Model, adapter: str, layer: int, pairs: list[Pair], conversations: list[Conversation],
    progress: Progress = lambda done: None, readers: Readers | None = None,
) -> Dial:  # fmt: skip
    """The dial of an adapter at ``layer``, without gain, from training pairs and answered instructions. The adapter is
    as trained afterwards. readers: what ``fit_readers`` gave, if it has been asked.

    Raises UserError where layer L has no map that could carry it, or nothing that it puts out would change a refusal.
    """
    key, reader = readers or fit_readers(model, adapter, layer, pairs, conversations, progress)
    remove_extra_ranks(model, adapter, carrier(model, layer)[1])
    activate(model, adapter)
    prompts = first_pairs(encode_pairs(model, pairs[-PAIRS:]), GRADIENT_PAIRS)
    return Dial(layer, _direction(model, adapter, layer, key, prompts), key, reader)


def fit_readers(
    model: Model, adapter: str, layer: int, pairs: list[Pair], conversations: list[Conversation],
    progress: Progress = lambda done: None, refined: RefinedStates | None = None,
) -> Readers:  # fmt: skip
    """The key and the reader of a dial (see ``Dial``), by no more than the layers up to ``layer``. The adapter is as
    trained afterwards. refined: stage 1's, of these ``pairs``, while nothing below its first layer has changed.

    Raises UserError where layer L has no map that could carry a dial.
    """
    remove_extra_ranks(model, adapter, carrier(model, layer)[1])
    activate(model, adapter)
    n, last = len(pairs), range(max(0, len(pairs) - PAIRS), len(pairs))
    known = [*last, *(n + i for i in last)]  # as encode_pairs has the rows
    read = read_kinds(model, layer, [pairs[i] for i in last], conversations, progress, refined, known)
    inputs, targets = torch.cat([row.inputs for row in read]), torch.cat([row.targets for row in read])
    del read  # a second copy of the inputs
    trim()
    key, reader = ridge(inputs, targets)
    return key.clone(), reader.clone()


def find_gain(
    model: Model, adapter: str, dial: Dial, rows: list[list[int]], progress: Progress = lambda done: None
) -> tuple[Dial, dict[str, float]]:
    """The dial with a gain of 1 where that raises the AUROC of the log-odds of refusing by RISE, and else without; and
    the AUROC by gain, with the dial at 0. rows: unseen prompts, as many toxic ones and then seemingly toxic ones, read
    with each of GAINS. The adapter is as trained afterwards."""
    activate(model, adapter)
    found: list[float] = []
    for gain in GAINS:
        with turned(model, adapter, replace(dial, gain=gain), 0):
            odds = [one.refusal_log_odds for one in answer(model, rows, max_new_tokens=0)]
        found.append(auroc(odds[: len(rows) // 2], odds[len(rows) // 2 :]))
        progress(len(rows))
    without, with_it = found
    chosen = GAINS[with_it >= without + RISE]
    return replace(dial, gain=chosen), dict(zip(map(str, GAINS), found, strict=True))


def _direction(model: Model, adapter: str, number: int, key: Tensor, rows: list[list[int]]) -> Tensor:
    """What lowers the mean log-odds of refusing these prompts by NATS at the least norm, to first order: (d_model,).
    The gradient is that of the dial's own column, so that it is of what the dial does."""
    layer, module = carrier(model, number)
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
        raise MethodError(f"whether this model refuses does not depend on its layer {number}. Use --dial none.")
    return -NATS * gradient / gradient.square().sum() * norm_weight(layer)


def ridge(inputs: Tensor, targets: Tensor) -> Tensor:
    """argmin over k of |X k - y|^2 + penalty |k|^2, for X (tokens, width) and each column y of targets (tokens, n):
    (n, width). Solved for one weight an input or, where these are more, one a token (the dual form). Products are in
    double precision, a part of X at a time, and factored in place: they could be the largest thing in memory."""
    parts, y = inputs.split(AT_ONCE), targets.double()
    dual, side = len(inputs) < inputs.shape[1], min(inputs.shape)
    gram = torch.zeros(side, side, dtype=torch.float64)
    if dual:
        for rows, a in zip(gram.split(AT_ONCE), parts, strict=True):
            torch.cat([a.double() @ b.double().T for b in parts], 1, out=rows)
    else:
        for part in parts:
            gram.addmm_(part.double().T, part.double())
    gram.diagonal().add_(RIDGE * gram.trace() / inputs.shape[1])

    def through(values: Tensor) -> Tensor:
        """X^T values."""
        total = torch.zeros(inputs.shape[1], values.shape[1], dtype=torch.float64)
        for part, of_part in zip(parts, values.split(AT_ONCE), strict=True):
            total.addmm_(part.double().T, of_part)
        return total

    factor = cho_factor(gram.numpy().T, lower=True, overwrite_a=True, check_finite=False)  # .T: Fortran's order
    found = torch.from_numpy(cho_solve(factor, (y if dual else through(y)).numpy(), check_finite=False))
    return (through(found) if dual else found).T.float().contiguous()


@dataclass(frozen=True)
class Read:
    """What was read of a row. inputs: of L's down_proj at some of its tokens, its last one at the end (tokens,
    mlp_width). targets: what the products of key and reader with them should be (tokens, 2). Float32 on the CPU."""

    inputs: Tensor
    targets: Tensor


def read_inputs(
    model: Model, number: int, rows: list[list[int]], kinds: list[float], progress: Progress = lambda done: None,
    most: int = 0, refined: RefinedStates | None = None, numbers: Sequence[int] = (),
) -> list[Read]:  # fmt: skip
    """Each row's inputs at layer ``number``, in passes that fit into memory. kinds: what the reader is to read at each
    row's end. The chat template's beginning, which all rows share, is taken once in each pass. most: tokens of a row;
    0: by how many rows there are. refined, numbers: what knows the states below, and the rows' numbers there."""
    layer, most = carrier(model, number)[0], most or _most(len(rows))
    model.network.eval()

    def read_pass(part: list[int]) -> list[Read]:
        known = [numbers[i] for i in part] if refined else []
        batch = refined.batch(known) if refined else model.batch([rows[i] for i in part])
        seen: list[tuple[Tensor, Tensor]] = []
        hook = layer.mlp.down_proj.register_forward_hook(
            lambda _module, inputs, output: seen.append((inputs[0].flatten(0, -2), output.flatten(0, -2)))
        )
        by_maps = unsloth.hookable(layer.mlp) if model.backend.name == "unsloth" else nullcontext()
        with hook, by_maps, model.compute():
            if refined:
                refined.forward(batch, known)
            else:
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
            size = wanted_sizes(layer, at[1])
            read.append(Read(at[0], torch.stack([size, kind * size], 1)))
        return read

    found = in_passes(model.passes(rows, TOKENS_PER_PART), read_pass, progress)
    for row in found:
        require_finite(model, row.inputs, f"inputs of layer {number}")
    return found


def read_kinds(
    model: Model, layer: int, pairs: list[Pair], conversations: list[Conversation],
    progress: Progress = lambda done: None, refined: RefinedStates | None = None, numbers: Sequence[int] = (),
) -> list[Read]:  # fmt: skip
    """What a dial is fitted to: the toxic sides of the pairs, their seemingly toxic sides, the prompts of CONVERSATIONS
    answered instructions, and these with their answers. refined, numbers: as ``read_inputs``, of the pairs."""
    prompts, chosen = encode_pairs(model, pairs), conversations[:CONVERSATIONS]
    answered = encode_rows(model.tokenizer, chosen, model.window)
    asked, whole = [prompt for prompt, _ in answered], [prompt + answer for prompt, answer in answered]
    kinds, most = [-1.0] * len(pairs) + [1.0] * len(pairs), _most(len(prompts) + len(asked))
    read = read_inputs(model, layer, prompts, kinds, progress, most, refined, numbers)
    read += read_inputs(model, layer, asked, [1.0] * len(asked), progress, most)
    return read + read_inputs(model, layer, whole, [0.0] * len(whole), progress)


def _most(rows: int) -> int:
    """The most tokens to read of each of so many rows."""
    return max(2, TOKENS // max(1, rows))


def _spread(tokens: int, most: int, number: int) -> list[int]:
    """At most ``most`` places of a row: spread over it, other ones in each row by its number, and its end."""
    others = min(most, tokens) - 1
    return [*sorted((number + i * (tokens - 1) // others) % (tokens - 1) for i in range(others)), tokens - 1]
