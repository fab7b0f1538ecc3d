"""Prompts as the stock model's states at layer L have them, in the geometry that stage 1 compares states in."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from dcr_lite.data.rows import Pair
from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, ContrastiveConfig
from dcr_lite.method.geometry import Geometry
from dcr_lite.method.read_out import reads_as_toxic
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states
from dcr_lite.run.inputs import Data
from dcr_lite.settings import Settings


def alone(data: Data) -> Data:
    """The data without the rows that stand behind messages: the user's prompts stand alone, and are compared with what
    does so too. Raises UserError where no pairs are left to train on, or to choose by."""
    found = replace(
        data,
        training=[pair for pair in data.training if not pair.before],
        development=[pair for pair in data.development if not pair.before],
        refusals=[row for row in data.refusals if not row.before],
    )
    if not found.training or not found.development:
        raise UserError("dcr-lite mend needs --pairs without the field before, as the prompts to mend are: add some")
    return found


class Reader:
    """Reads prompts beside the first training pairs of a run, ``pairs``; nothing before it is asked for something."""

    def __init__(self, model: Model, training: Sequence[Pair], settings: Settings):
        self.model, self._settings = model, settings
        self.pairs = list(training[:GEOMETRY_PAIRS])
        self._known: dict[str, Tensor] = {}

    @cached_property
    def states(self) -> Tensor:
        """Those of ``pairs``, (2 * pairs, d_model), toxic sides first."""
        return self.read([p.toxic for p in self.pairs] + [p.seemingly_toxic for p in self.pairs])

    @cached_property
    def _geometry(self) -> Geometry:
        config = ContrastiveConfig.of(self._settings)
        return Geometry.fit(self.states, config.centre, config.whiten)

    def read(self, prompts: Sequence[str]) -> Tensor:
        """States (prompts, d_model). What was read before is not read again."""
        new = list(dict.fromkeys(prompt for prompt in prompts if prompt not in self._known))
        if new:
            with adapters.stock(self.model):
                rows = encode_prompts(self.model.tokenizer, new, self.model.window)
                self._known |= zip(new, layer_states(self.model, rows, self._settings.layer), strict=True)
        return torch.stack([self._known[prompt] for prompt in prompts])

    def toxicity(self, prompts: Sequence[str], beside: Sequence[Pair] = ()) -> Tensor:
        """How far on the toxic side of the middle between the two kinds prompts lie, (prompts,): positive where they
        read as toxic. beside: further pairs that the two kinds are known by."""
        toxic, seemingly_toxic = self.states.chunk(2)
        if beside:
            toxic = torch.cat([toxic, self.read([pair.toxic for pair in beside])])
            seemingly_toxic = torch.cat([seemingly_toxic, self.read([pair.seemingly_toxic for pair in beside])])
        return reads_as_toxic(self._geometry, torch.cat([toxic, seemingly_toxic]), self.read(prompts))

    def cosines(self, left: Sequence[str], right: Sequence[str]) -> Tensor:
        """How alike the states of prompts are, (left, right)."""
        reading = self._geometry.around(self.states)
        return reading(self.read(left)) @ reading(self.read(right)).T
