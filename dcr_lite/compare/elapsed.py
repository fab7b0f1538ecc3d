"""How long a comparison has taken, over all the processes that have worked on it."""

import time
from pathlib import Path

from dcr_lite.files import read_state, write_state


class Elapsed:
    """The seconds that all processes together have worked on a comparison, kept in its folder as elapsed.json."""

    def __init__(self, out: Path):
        """From here on this process works. Raises UserError where the file is damaged."""
        self.path, self._started = out / "elapsed.json", time.monotonic()
        cure = "Delete it to count the seconds from here on."
        self._before = float(read_state(self.path, cure)["seconds"]) if self.path.exists() else 0.0

    def keep(self) -> float:
        """Write the seconds so far, and return them."""
        seconds = self._before + time.monotonic() - self._started
        write_state({"seconds": seconds}, self.path)
        return seconds
