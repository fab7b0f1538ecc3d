"""Memory that runs out during training: the step again, then with smaller passes, which grow back.

Memory runs out for a moment, where blocks lie scattered or another program takes some, or since passes are too large.
The first is over when the cache is empty; only the second needs smaller passes, and not for ever.
"""

from dcr_lite.errors import MethodError, UserError
from dcr_lite.model import distributed
from dcr_lite.model.free_memory import empty_cache
from dcr_lite.model.loading import OUT_OF_MEMORY, Model

CLEAN_STEPS = 20  # after which passes grow back; each time that this was too early, twice as many


class PassSize:
    """The tokens that go through ``model`` at once in the stage ``name``, never more than it has now."""

    def __init__(self, model: Model, name: str):
        self.model, self.name = model, name
        self.planned = model.tokens_per_pass
        self.since = 0  # steps since passes were halved or grew
        self.patience = CLEAN_STEPS
        self.tried_again = self.has_grown = False

    def ran_out(self) -> None:
        """Memory has run out in a step, whose tensors nobody holds any more: make room for taking it again.

        Raises MethodError where that is no way on, and UserError where there are several processes.
        """
        if distributed.world() > 1:  # the others wait for this pass, and would wait for ever
            raise UserError(
                f"{self.name}: memory runs out in process {distributed.rank()}. With several processes nothing is "
                "lowered on the way: take smaller batches, or a single process, which lowers its own."
            )
        empty_cache()
        if not self.tried_again:
            self.tried_again = True
            return
        if not self.model.halve_pass():
            raise MethodError(f"{self.name}: {OUT_OF_MEMORY}")
        self.patience *= 2 if self.has_grown else 1
        self.tried_again = self.has_grown = False
        self.since = 0
        self._say("out of memory")

    def went_well(self) -> None:
        """A step is done. After enough of them passes grow back to twice their size, at most to what was planned."""
        self.tried_again = False
        self.since += 1
        if self.since < self.patience:
            return
        if self.has_grown:  # and that has stood
            self.has_grown, self.patience = False, CLEAN_STEPS
        if self.model.tokens_per_pass < self.planned:
            self.model.tokens_per_pass = min(2 * self.model.tokens_per_pass, self.planned)
            self.since, self.has_grown = 0, True
            self._say("memory suffices again")

    def _say(self, why: str) -> None:
        print(f"{self.name}: {why}; goes on with {self.model.tokens_per_pass:,} tokens at once", flush=True)
