"""Claims about compiled code: with a limit a process that meets ever new shapes stays small."""

import os
import subprocess
import sys

from dcr_lite.model.compiled_code import LIMITS

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
meet(range(1, 257))
before = size()
meet(range(257, 900))
print(size() - before)
"""


def growth(limited: bool, **environment: str) -> int:
    """Bytes by which a process grows with the products of 643 more shapes."""
    usual = {name: value for name, value in os.environ.items() if name not in LIMITS}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH.format(limited=limited)], env=usual | environment, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return int(done.stdout)


def test_with_a_limit_memory_stays_flat() -> None:
    """Where a processor has code compiled at all; a limit that is given stays."""
    without, limited, given = growth(False), growth(True), growth(True, **dict.fromkeys(LIMITS, "1024"))
    assert limited < max(40e6, 0.2 * without), (limited, without)
    assert given > 0.5 * without, (given, without)
