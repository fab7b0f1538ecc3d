"""How much compiled code a process keeps on a CPU.

oneDNN compiles code for every new shape of a product in bfloat16, half a megabyte each, and keeps that of 1,024
shapes; torch keeps as many beside it. A demo decodes as many prompts as there are, and so meets new shapes for hours.
"""

import os
from collections.abc import Mapping

SHAPES = 256  # whose code is kept: a step of a batch needs some ten
# Both are read at the first product; the second is that of torch's own layer (ideep).
LIMITS = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def keep_little_code() -> None:
    """Let this process, before its first product, keep the code of SHAPES shapes, unless the environment says how many.
    What was dropped is compiled again, in a few milliseconds."""
    for limit in LIMITS:
        os.environ.setdefault(limit, str(SHAPES))


def unlimited(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that trains, which meets the same many shapes in each step, without these limits;
    others that somebody gave stay."""
    return {name: value for name, value in environment.items() if name not in LIMITS or value != str(SHAPES)}
