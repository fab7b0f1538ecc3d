"""Bad input: generated inputs for every reader, and the table of what came of them.

``python -m tests.faults.inputs --total 100000`` runs them all. An attack is a strategy of Hypothesis and a check of one
input. The check fails on anything but a result or a UserError in one readable sentence; the frame adds that no input
takes longer than SECONDS and that no file is left behind.
"""

import argparse
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from dcr_lite.errors import UserError

SECONDS = 10  # for one input, on a busy machine too: what is slow takes milliseconds, what hangs has no end
LONGEST_MESSAGE = 3_000  # characters
SHOWN = 4_000  # characters of a failure
Check = Callable[[Any, Path], bool]


@dataclass(frozen=True)
class Attack:
    """One reader under attack.

    name: what is attacked. share: of 100,000 inputs. inputs: what is generated. check: given an input and a folder that
    is empty but for ``keeps``, whether the input was taken (True) or refused in a sentence (False); raises where a
    promise is broken.
    """

    name: str
    share: int
    inputs: SearchStrategy[Any]
    check: Check


@dataclass
class Row:
    """What came of one attack."""

    name: str
    inputs: int = 0
    taken: int = 0
    refused: int = 0
    slowest: float = 0.0  # seconds
    failure: str = ""


def refused(call: Callable[[], Any]) -> bool:
    """Whether ``call`` ends in a UserError; anything else that it raises goes through. The message has to be one that a
    terminal can show."""
    try:
        call()
    except UserError as error:
        require_readable(str(error))
        return True
    return False


def require_readable(message: str) -> None:
    """Fails for a message that is empty, endless, or steers the terminal that shows it."""
    assert message.strip(), "an empty message"
    assert len(message) <= LONGEST_MESSAGE, f"a message of {len(message)} characters"
    assert "Traceback" not in message, message
    strange = {c for c in message if c != "\n" and not c.isprintable()}
    assert not strange, f"{strange} in {message[:300]!r}"


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises TimeoutError within the block when it takes longer."""

    def ring(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def names_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@contextmanager
def leaves_nothing(folder: Path) -> Iterator[None]:
    """Fails where the block adds a file to a folder, or takes one away."""
    before = names_in(folder)
    yield
    changed = names_in(folder) ^ before
    assert not changed, f"left behind or taken away: {changed}"


def run_attack(attack: Attack, count: int, number: int | None, folder: Path) -> Row:
    """Try ``count`` inputs, the same ones for the same seed ``number``; None: those that never change."""
    row, place = Row(attack.name), folder / "place"

    def one(value: Any) -> None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        began = time.perf_counter()
        with time_limit(SECONDS):
            taken = attack.check(value, place)
        # A reader that catches OSError catches TimeoutError, and would call what hangs refused.
        assert time.perf_counter() - began < SECONDS, f"more than {SECONDS} s"
        row.inputs += 1
        row.taken += taken
        row.refused += not taken
        row.slowest = max(row.slowest, time.perf_counter() - began)

    how = settings(
        max_examples=count, database=None, deadline=None, derandomize=number is None, print_blob=False,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate, Phase.shrink],
    )  # fmt: skip
    test = how(given(attack.inputs)(one))
    try:
        (test if number is None else seed(number)(test))()
    except Exception as error:
        row.failure = "".join(traceback.format_exception(error))[-SHOWN:]
    return row


def run_inputs(
    total: int = 100_000, number: int | None = 0, progress: Callable[[Row], None] = lambda row: None, only: str = ""
) -> list[Row]:
    """The attacks whose names hold ``only``, with about ``total`` inputs if that is all of them, and a row for each.

    number: of the seed. progress: told of each row.
    """
    from tests.faults.inputs_demo import demo_attacks
    from tests.faults.inputs_folders import folder_attacks
    from tests.faults.inputs_ground import prepared
    from tests.faults.inputs_mend import mend_attacks
    from tests.faults.inputs_texts import text_attacks

    rows = []
    with tempfile.TemporaryDirectory(prefix="inputs-") as scratch, prepared(Path(scratch)) as ground:
        attacks = [*text_attacks(), *mend_attacks(), *folder_attacks(ground), *demo_attacks(ground)]
        shares = sum(attack.share for attack in attacks)
        for attack in attacks:
            if only in attack.name:
                count = max(1, -(-total * attack.share // shares))
                rows.append(run_attack(attack, count, number, Path(scratch)))
                progress(rows[-1])
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown, with their sum."""
    lines = ["| what is read | inputs | read | refused in a sentence | slowest | broken |", "|---|--:|--:|--:|--:|--:|"]
    whole = Row("**all**", *(sum(getattr(row, key) for row in rows) for key in ("inputs", "taken", "refused")))
    whole.slowest = max(row.slowest for row in rows)
    failures = sum(bool(row.failure) for row in rows)
    for row in (*rows, whole):
        broken = failures if row is whole else int(bool(row.failure))
        cells = (row.name, f"{row.inputs:,}", f"{row.taken:,}", f"{row.refused:,}", f"{row.slowest:.2f} s", broken)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total", type=int, default=100_000, help="inputs in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="attacks whose name holds this")
    given_flags = parser.parse_args()

    def tell(row: Row) -> None:
        print(f"{row.name}: {row.inputs:,} inputs, {'BROKEN' if row.failure else 'held'}", flush=True)
        print(row.failure, file=sys.stderr, flush=True)

    began = time.monotonic()
    rows = run_inputs(given_flags.total, given_flags.seed, tell, given_flags.only)
    print(f"\n{table(rows)}\n\n{(time.monotonic() - began) / 60:.1f} minutes")
    raise SystemExit(any(row.failure for row in rows))


if __name__ == "__main__":
    main()
