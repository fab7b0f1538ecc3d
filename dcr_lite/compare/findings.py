"""What a check of a submission finds, a line each: ok, differs (expected against found), or a note."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

EXACT = 1e-9  # two computations of one number from the same counts differ by rounding alone


State = Literal["ok", "differs", "note"]


@dataclass(frozen=True)
class Finding:
    """One line of ``dcr-lite verify``. A note says what is worth knowing and no fault."""

    state: State
    text: str

    def line(self) -> str:
        return f"{self.state:<8} {self.text}"


def differs(what: str, expected: Any, found: Any) -> Finding:
    """The finding of a value that is not what it should be."""
    return Finding("differs", f"{what}: expected {_shown(expected)}, found {_shown(found)}")


def checked(what: str, faults: Sequence[Finding]) -> list[Finding]:
    """The faults; where there are none, that ``what`` is in order."""
    return list(faults) or [Finding("ok", what)]


def same(expected: Any, found: Any, within: float = EXACT) -> bool:
    """Whether two numbers, or two intervals, are the same but for ``within``; other values, whether they are equal."""
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple):
        return len(expected) == len(found) and all(same(a, b, within) for a, b in zip(expected, found, strict=True))
    if _is_number(expected) and _is_number(found):
        return math.isclose(expected, found, rel_tol=EXACT, abs_tol=within + EXACT)
    return bool(expected == found)


def compared(what: str, expected: dict[str, Any], found: dict[str, Any]) -> list[Finding]:
    """A finding for each name at which two groups of values differ: one of them lacks it, or the values differ."""
    return [
        differs(f"{what}, {name}", expected.get(name), found.get(name))
        for name in dict.fromkeys([*expected, *found])
        if not (name in expected and name in found and same(expected[name], found[name]))
    ]


def compared_where_both(what: str, expected: dict[str, Any], found: dict[str, Any]) -> list[Finding]:
    """The same for the names that both have; of the others, which another version brings, a note."""
    both = expected.keys() & found.keys()
    others = sorted(expected.keys() ^ found.keys())
    notes = [Finding("note", f"{what}: another version has {', '.join(others)}")] if others else []
    of_both = ({name: value for name, value in one.items() if name in both} for one in (expected, found))
    return compared(what, *of_both) + notes


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_shown, value))}]"
    return "nothing" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
