"""One network that is several models in turn: each has an adapter of its own, or none, and DCR a dial."""

import math
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from dcr_lite.demo.dial import OpenDial
from dcr_lite.method.dial import set_strength
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR, STOCK


class Switch:
    """Which of its models the network is. It belongs to the one thread that computes: during a pass the network must
    neither become another model nor get a further adapter.

    adapters: of each model by name what the network knows it by. dial: of DCR; None where it has none.
    """

    def __init__(self, model: Model, names: Sequence[str], dial: OpenDial | None):
        self._model, self._dial = model, dial
        self.adapters = {name: name for name in names}
        self._added = count()
        self._active = ""  # the model that the network is
        self._strength: float | None = math.nan  # of DCR's dial, as it stands; unknown before it is turned

    def use(self, adapter: str, strength: float | None) -> None:
        """Make the network the model of an adapter, or STOCK, with its dial at a strength, or None: without it."""
        if adapter != self._active:
            self._active = ""  # if the switch fails, the next call switches again
            adapters.switch(self._model, None if adapter == STOCK else adapter)
            self._active = adapter
        if self._dial and adapter == DCR and strength != self._strength:
            self._strength = math.nan
            set_strength(self._model, adapter, self._dial.dial, strength)
            self._strength = strength

    def add(self, name: str, folder: Path) -> None:
        """Have the adapter in a folder as the model ``name`` from now on; what another of that name is answering it
        answers to the end. Raises UserError for an adapter that is damaged or of another model."""
        self._active = ""  # loading makes it the active one
        adapter = f"{name}{next(self._added)}"  # a failed one may have left parts, so each has a name of its own
        adapters.load_adapter(self._model, adapter, folder)
        self.adapters[name] = adapter
