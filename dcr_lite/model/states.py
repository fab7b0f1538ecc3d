"""Last-token states of many prompts, without gradient, in passes that fit into memory."""

import torch
from torch import Tensor

from dcr_lite.model.hidden_states import prompt_states, states_of_every_layer
from dcr_lite.model.loading import Model, in_halves
from dcr_lite.model.packing import shared_prefix

# Computed at once on a CPU, in tokens: about 35 prompts; more go through GradCache. A card takes what fits into it.
TOKENS_PER_PASS = 896
# Of a part of what goes through GradCache: so small that 512 negatives take less than 1.2 times the memory of 32.
TOKENS_PER_PART = 768


def _passes(model: Model, rows: list[list[int]]) -> list[list[list[int]]]:
    """Rows in order: all at once where they fit, else cut into as few equal parts as keep a part small. What all rows
    share is computed once a part where the model packs, and counts for nothing."""
    shared = shared_prefix(rows) if model.packs else 0
    tokens, room = sum(len(row) - shared for row in rows), model.tokens_per_pass
    whole, part = (min(TOKENS_PER_PASS, room), min(TOKENS_PER_PART, room)) if model.device == "cpu" else (room, room)
    n = 1 if tokens <= whole else -(-tokens // part)
    size = -(-len(rows) // n)
    return [rows[i : i + size] for i in range(0, len(rows), size)]


def layer_states(model: Model, rows: list[list[int]], layer: int) -> Tensor:
    """Last-token states at ``layer`` of prompts given as token ids, without gradient: (prompts, d_model), float32."""

    def states_of(part: list[list[int]]) -> list[Tensor]:
        with model.compute():
            return list(prompt_states(model.network, model.batch(part), layer))

    states: list[Tensor] = []
    model.network.eval()
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.no_grad():
        for part in _passes(model, [rows[i] for i in by_length]):
            states += in_halves(states_of, part)
    inverse = torch.empty(len(rows), dtype=torch.long)
    inverse[torch.tensor(by_length)] = torch.arange(len(rows))
    return torch.stack(states)[inverse.to(states[0].device)]


PASS_OF_LAST_STATES = 4096


def last_states(model: Model, rows: list[list[int]], tokens: int = 1) -> Tensor:
    """States of the last ``tokens`` tokens of each row at every decoder layer, pre-norm: (layers, rows, tokens,
    d_model), float32 on the CPU. Rows need that many tokens of their own behind what all of them share."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    most = min(PASS_OF_LAST_STATES, model.tokens_per_pass)
    parts = []
    model.network.eval()
    start = 0
    while start < len(order):
        stop, size = start, 0
        while stop < len(order) and (stop == start or size + len(rows[order[stop]]) <= most):
            size += len(rows[order[stop]])
            stop += 1
        # A row shared up to its last tokens keeps them: they are asked for.
        part = [rows[i] for i in order[start:stop]]
        prefix = min(shared_prefix(part), min(map(len, part)) - tokens)
        batch = model.batch(part, prefix)
        places = torch.cat([own[-tokens:] for own in batch.index])
        with torch.no_grad(), model.compute():
            states = states_of_every_layer(model.network, batch, places).cpu()
        parts.append(states.view(len(states), stop - start, tokens, -1))
        start = stop
    inverse = torch.empty(len(rows), dtype=torch.long)
    inverse[torch.tensor(order)] = torch.arange(len(rows))
    return torch.cat(parts, 1)[:, inverse]
