"""Claims about compiled code: with a limit a process that meets ever new shapes stays small."""

import os
import subprocess
import sys

import pytest

from dcr_lite.model.compiled_code import LIMITS, SHAPES, keep_little_code, unlimited

GROWTH = """
import psutil, torch
from dcr_lite.model.compiled_code import keep_little_code
if {limited}:
    keep_little_code()
weight = torch.zeros(512, 512, dtype=torch.bfloat16)
def size(): return psutil.Process().memory_info().rss
def meet(shapes):
    for n in shapes:
        torch.nn.functional.linear(torch.zeros(n, 512, dtype=torch.bfloat16), weight)
meet(range(1, 700))  # what is dropped is smaller than what takes its place, until all that is kept is of later shapes
sizes = [size()]
for first in (700, 800, 900):
    meet(range(first, first + 100))
    sizes.append(size())
print(sorted(after - before for before, after in zip(sizes, sizes[1:]))[1])
"""


def growth(limited: bool, **environment: str) -> int:
    """Bytes by which a process grows with the products of 100 more shapes: the median of three times, since an
    allocator may take a hundred megabytes at once."""
    usual = {name: value for name, value in os.environ.items() if name not in LIMITS}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH.format(limited=limited)], env=usual | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_with_a_limit_memory_stays_flat() -> None:
    """Where a processor has code compiled at all; a limit that is given stays."""
    without, limited, given = growth(False), growth(True), growth(True, **dict.fromkeys(LIMITS, "1024"))
    assert limited < max(10e6, 0.2 * without), (limited, without)
    if without > 25e6:
        assert given > 0.5 * without, (given, without)


def test_a_process_that_trains_gets_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in LIMITS:
        monkeypatch.delenv(limit, raising=False)
    monkeypatch.setenv(LIMITS[0], "7")
    keep_little_code()
    limited = dict(os.environ)
    assert [limited[limit] for limit in LIMITS] == ["7", str(SHAPES)]
    assert unlimited(limited) == {name: value for name, value in limited.items() if name != LIMITS[1]}
