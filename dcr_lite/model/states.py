"""Last-token states of many prompts, without gradient, in passes that fit into memory."""

import torch
from torch import Tensor

from dcr_lite.model.hidden_states import prompt_states, states_of_every_layer
from dcr_lite.model.loading import Model, in_halves
from dcr_lite.model.packing import by_tokens, shared_prefix

# Computed at once on a CPU, in tokens: about 35 prompts; more go through GradCache. A card takes what fits into it.
TOKENS_PER_PASS = 896
# Of a part of what goes through GradCache: so small that 512 negatives take less than 1.2 times the memory of 32.
TOKENS_PER_PART = 768
TOKENS_OF_EVERY_LAYER = 4096  # of one forward pass that returns the states of all layers


def passes(model: Model, rows: list[list[int]]) -> list[list[list[int]]]:
    """Rows in order: all at once where they fit, else cut into as few equal parts as keep a part small. What all rows
    share is computed once a part where the model packs, and is not counted."""
    shared, most = shared_prefix(rows) if model.packs else 0, model.tokens_per_pass
    tokens = sum(len(row) - shared for row in rows)
    on_cpu = model.device == "cpu"
    whole, part = (min(TOKENS_PER_PASS, most), min(TOKENS_PER_PART, most)) if on_cpu else (most, most)
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
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    with torch.no_grad():
        for part in passes(model, [rows[i] for i in order]):
            states += in_halves(states_of, part)
    return torch.stack(states)[torch.tensor(order).argsort().to(states[0].device)]


def last_states(model: Model, rows: list[list[int]], tokens: int = 1) -> Tensor:
    """States of the last ``tokens`` tokens of each row at every decoder layer, pre-norm: (layers, rows, tokens,
    d_model), float32 on the CPU. Rows need that many tokens of their own behind what all of them share."""
    model.network.eval()
    order: list[int] = []
    states = []
    for part in by_tokens([len(row) for row in rows], min(TOKENS_OF_EVERY_LAYER, model.tokens_per_pass)):
        chosen = [rows[i] for i in part]
        # A prefix that reaches into a row's last tokens ends before them.
        batch = model.batch(chosen, min(shared_prefix(chosen), min(map(len, chosen)) - tokens))
        places = torch.cat([own[-tokens:] for own in batch.index])
        with torch.no_grad(), model.compute():
            of_part = states_of_every_layer(model.network, batch, places).cpu()
        states.append(of_part.view(len(of_part), len(part), tokens, -1))
        order += part
    return torch.cat(states, 1)[:, torch.tensor(order).argsort()]
