"""Pictures: blank ones wherever no test looks at them, since drawing takes a third of a tiny run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

DRAW = Figure.savefig
BLANK = (  # a PNG of one white pixel
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\xb18\xf6\x14\0\0\0\0IEND\xaeB`\x82"
)


def blank(figure: Figure, path: Path, **options: Any) -> None:
    """In the place of savefig."""
    Path(path).write_bytes(BLANK)


@contextmanager
def drawing() -> Iterator[None]:
    """Pictures are drawn in this block."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", DRAW)
        yield
