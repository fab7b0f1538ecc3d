"""What a part of the check has found, and what a part is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dcr_lite.settings import Settings


@dataclass
class Finding:
    """What one part has found.

    says: in words, a line each. values: the same as plain JSON values.
    problems: what stands in the way of the run, each a sentence with its cure. notes: what to know about the above.
    given: what later parts need of it; not shown, and not sent to the parent.
    seconds: that the part took. cut_short: it was ended at its time limit, or died; the rest is what it had found.
    """

    says: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    given: Any = None
    seconds: float = 0.0
    cut_short: bool = False


@dataclass(frozen=True)
class Task:
    """What a part is given: the settings of the run, what earlier parts have found by their names, and a function to
    call with what is found so far, which counts where the part is cut short."""

    settings: Settings
    before: dict[str, Finding]
    tell: Callable[[Finding], None] = lambda finding: None

    def given_by(self, part: str) -> Any:
        """What an earlier part leaves to later ones; None where it has failed."""
        return self.before[part].given if part in self.before else None
