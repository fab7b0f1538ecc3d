"""What linear maps put out for prompts, averaged over each prompt's tokens, without gradient."""

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dcr_lite.model.hidden_states import states_at_layer
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model, require_finite
from dcr_lite.model.packing import Batch
from dcr_lite.model.states import TOKENS_PER_PART


def mean_outputs(model: Model, rows: list[list[int]], maps: list[str], layers: int) -> dict[str, Tensor]:
    """The mean output of each linear map over all tokens of each row of token ids: by the maps' names in the base
    model, such as "model.layers.15.mlp.down_proj", (rows, outputs), float32 on the CPU. Only the first ``layers``
    decoder layers run.

    Raises UserError where one is not finite.
    """
    modules = {name: model.network.get_base_model().get_submodule(name) for name in maps}

    def read_pass(part: list[int]) -> list[Tensor]:
        batch = model.batch([rows[i] for i in part])
        seen: dict[str, Tensor] = {}
        with ExitStack() as hooks, model.compute():
            for name, module in modules.items():
                hooks.enter_context(module.register_forward_hook(partial(_keep, seen, name, batch)))
            states_at_layer(model.network, batch, layers - 1)
        return list(torch.cat([seen[name] for name in maps], 1))

    model.set_training(False)
    found = in_passes(model.passes(rows, TOKENS_PER_PART), read_pass)
    means = require_finite(model, torch.stack(found), "outputs of linear maps")
    return dict(zip(maps, means.split([module.out_features for module in modules.values()], 1), strict=True))


def _keep(seen: dict[str, Tensor], name: str, batch: Batch, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
    """A forward hook (behind ``partial``) that notes the mean outputs of a batch's rows, (rows, outputs)."""
    flat = output.flatten(0, -2)
    own = flat[torch.cat(batch.index)].float()
    lengths = torch.tensor([len(places) for places in batch.index], device=flat.device)
    owner = torch.arange(len(lengths), device=flat.device).repeat_interleave(lengths)
    sums = own.new_zeros(len(lengths), own.shape[1]).index_add_(0, owner, own)
    # The shared beginning is computed once in a pass and belongs to every row.
    sums += flat[: batch.shared].float().sum(0)
    seen[name] = (sums / (batch.shared + lengths)[:, None]).cpu()
