"""Last-token states of many prompts, without gradient, in passes that fit into memory."""

from collections.abc import Callable

import torch
from torch import Tensor

from dcr_lite.model.hidden_states import prompt_states, states_of_every_layer
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model, require_finite
from dcr_lite.model.packing import shared_prefix

# Computed at once on a CPU, in tokens: about 85 prompts, so that the batches of all recipes, of 32 and 64, take one
# pass; more go through GradCache, which computes them twice. A card takes what fits into it.
TOKENS_PER_PASS = 2304
# Of a part of what goes through GradCache: so small that 512 negatives take less than 1.2 times the memory of 32. Of a
# pass that reads many prompts, too: less than plans allow unless memory is short, so that commands cut them alike.
TOKENS_PER_PART = 768
TOKENS_OF_EVERY_LAYER = 4096  # of one forward pass that returns the states of all layers


def prompt_passes(model: Model, rows: list[list[int]]) -> list[list[int]]:
    """The numbers of the prompts of each pass: all at once where they fit, else parts that fit. On a CPU parts are
    smaller; what all rows share is computed once in each and does not count there."""
    if model.device != "cpu":
        return model.passes(rows)
    shared = shared_prefix(rows) if model.packs else 0
    whole = model.passes(rows, TOKENS_PER_PASS + shared, shared)
    return whole if len(whole) == 1 else model.passes(rows, TOKENS_PER_PART + shared, shared)


def layer_states(model: Model, rows: list[list[int]], layer: int) -> Tensor:
    """Last-token states at ``layer`` of prompts given as token ids, without gradient: (prompts, d_model), float32.

    Raises UserError where one is not finite.
    """

    def states_of(part: list[int]) -> Tensor:
        with model.compute():
            return prompt_states(model.network, model.batch([rows[i] for i in part]), layer)

    return states_in_passes(model, rows, layer, states_of)


def states_in_passes(
    model: Model, rows: list[list[int]], layer: int, states_of: Callable[[list[int]], Tensor]
) -> Tensor:
    """What ``states_of`` gives for the numbers of some rows at ``layer``, (prompts, d_model), for all rows of token
    ids, in passes that fit and without gradient.

    Raises UserError where a state is not finite.
    """
    model.set_training(False)
    states = in_passes(prompt_passes(model, rows), lambda part: list(states_of(part)))
    return require_finite(model, torch.stack(states), f"states of layer {layer}")


def last_states(
    model: Model,
    rows: list[list[int]],
    tokens: int = 1,
    layers: int | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Tensor:
    """States of the last ``tokens`` tokens of each row at the first ``layers`` decoder layers, by default all,
    pre-norm: (layers, rows, tokens, d_model), float32 on the CPU. Rows need that many tokens of their own behind what
    all of them share. ``progress`` is called with the number of rows in each finished pass.

    Raises UserError where one is not finite.
    """

    def states_of(part: list[int]) -> list[Tensor]:
        chosen = [rows[i] for i in part]
        # A prefix that reaches into a row's last tokens ends before them.
        batch = model.batch(chosen, min(shared_prefix(chosen), min(map(len, chosen)) - tokens))
        places = torch.cat([own[-tokens:] for own in batch.index])
        with model.compute():
            of_part = states_of_every_layer(model.network, batch, places, layers).cpu()
        return list(of_part.view(len(of_part), len(part), tokens, -1).unbind(1))

    model.set_training(False)
    states = in_passes(model.passes(rows, TOKENS_OF_EVERY_LAYER), states_of, progress)
    return require_finite(model, torch.stack(states, 1), "states")
