"""What the comparisons of settings share: variants by name, and results that are stored and not computed again."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _kept import CURE

from dcr_lite.errors import UserError
from dcr_lite.files import write_json


@dataclass
class Choices:
    """What to run."""

    only: tuple[str, ...] = ()
    """Run only variants whose name contains one of these words."""
    json: Path = Path("runs/choices.json")
    """File of the results; variants found there are not run again."""

    def named(self, variants: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
        """The variants to run."""
        return ((name, how) for name, how in variants.items() if not self.only or any(w in name for w in self.only))

    def stored(self, name: str, seed: int, digest: str) -> dict[str, Any] | None:
        """The result of a variant and seed, None where it has not been run. Raises UserError where it is of another
        digest (see _kept.py)."""
        row = next((row for row in self._rows() if (row["variant"], row["seed"]) == (name, seed)), None)
        if row and row.get("digest") != digest:
            raise UserError(f"{self.json}: {name}, seed {seed}, {CURE}")
        return row

    def checkpoint(self, name: str, seed: int, digest: str) -> Path:
        """Where the training of a variant is kept until its result is stored, that of another digest apart."""
        return self.json.with_suffix("") / f"{re.sub(r'[^a-z0-9]+', '_', name)}_{seed}_{digest[:8]}.pt"

    def store(self, name: str, seed: int, digest: str, result: dict[str, Any]) -> dict[str, Any]:
        """Adds a result to the file, for which its checkpoint is no longer needed; returns it with its name and
        seed."""
        row = {"variant": name, "seed": seed, "digest": digest, **result}
        write_json([*self._rows(), row], self.json)
        self.checkpoint(name, seed, digest).unlink(missing_ok=True)
        return row

    def _rows(self) -> list[dict[str, Any]]:
        return json.loads(self.json.read_text(encoding="utf-8")) if self.json.exists() else []
