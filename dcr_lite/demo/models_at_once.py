"""One network that is several models at once, each row of a batch one of them: with an adapter of its own, or none, and
DCR with its dial at any strength."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from dcr_lite.demo.dial import OpenDial
from dcr_lite.method import dial as dials
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.model.mixed_adapters import MixedAdapters, factors
from dcr_lite.names import DCR, STOCK

Which = tuple[str, float | None]  # what a model's adapter is known by, and the strength of its dial; None: without it


class ModelsAtOnce:
    """Which models the rows of a batch are of. It belongs to the one thread that computes.

    adapters: of each model by name what the network knows it by. dial: of DCR; None where it has none.
    """

    def __init__(self, model: Model, names: Sequence[str], dial: OpenDial | None):
        """The adapters are those that peft has by the names, with no dial in them. Raises UserError for a dial of
        another model."""
        self._model, self._dial = model, dial
        self._mixed = MixedAdapters(model)
        self.adapters = {name: name for name in names}
        self._added, self._left = count(), ""  # left: the adapter of a model that another has taken the name of
        for name in names:
            if name != STOCK:
                self._mixed.add(name, factors(model, name))
        for part, of_part in (dials.parts(model, dial.dial) if dial else {}).items():
            self._mixed.add(part, of_part)

    def set_rows(self, rows: Sequence[Which]) -> None:
        """What the rows of the following passes are; one that stands for all, or each."""
        self._mixed.set_rows([self._parts(*row) for row in rows])

    def _parts(self, adapter: str, strength: float | None) -> dict[str, float]:
        turned = dials.shares(self._dial.dial, strength) if self._dial and adapter == DCR else {}
        return ({} if adapter == STOCK else {adapter: 1.0}) | turned

    def add(self, name: str, folder: Path) -> None:
        """Have the adapter in a folder as the model ``name`` from now on; what another of that name is answering it
        answers to the end. Raises UserError for an adapter that is damaged or of another model."""
        adapter = f"{name}{next(self._added)}"  # a failed one may have left parts, so each has a name of its own
        self._forget_left()
        try:
            adapters.load_adapter(self._model, adapter, folder)
            self._mixed.add(adapter, factors(self._model, adapter))
        finally:
            self._mixed.take_over()  # peft computes in layers that it has added, or begun to
        self._left, self.adapters[name] = self.adapters.get(name, ""), adapter

    def _forget_left(self) -> None:
        """The adapter that the last one took the name of answers no more: since then another model has been trained, as
        one that is open already is not added again."""
        if self._left:
            self._mixed.remove(self._left)
            self._model.network.delete_adapter(self._left)
            self._left = ""
