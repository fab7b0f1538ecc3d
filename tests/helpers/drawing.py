"""Pictures: blank ones wherever no test looks at them, since drawing takes half of a tiny run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import pyplot

BLANK = (  # a PNG of one white pixel
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc\xf8\x0f\0\x01\x01\x01\0\xb18\xf6\x14\0\0\0\0IEND\xaeB`\x82"
)


class Nothing:
    """In the place of a figure and of its axes: nothing comes of what is drawn on it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def get_legend_handles_labels(self) -> tuple[list[Any], list[str]]:
        return [], []

    def savefig(self, path: Path, **options: Any) -> None:
        Path(path).write_bytes(BLANK)


def blank_subplots(rows: int = 1, columns: int = 1, *, squeeze: bool = True, **options: Any) -> tuple[Any, Any]:
    """In the place of pyplot.subplots."""
    panels = np.empty((rows, columns), dtype=object)
    for place in np.ndindex(rows, columns):
        panels[place] = Nothing()
    if not squeeze:
        return Nothing(), panels
    return Nothing(), panels.item() if panels.size == 1 else panels.squeeze()


DRAWN = {"subplots": pyplot.subplots, "close": pyplot.close}
UNDRAWN = {"subplots": blank_subplots, "close": lambda figure: None}


def draw_nothing() -> None:
    """From here on, in this process, pictures are blank."""
    for name, part in UNDRAWN.items():
        setattr(pyplot, name, part)


@contextmanager
def drawing() -> Iterator[None]:
    """Pictures are drawn in this block."""
    before = {name: getattr(pyplot, name) for name in DRAWN}
    for name, part in DRAWN.items():
        setattr(pyplot, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(pyplot, name, part)
