"""What bad input is tried on: a tiny model, a finished run of it, that run opened, and the demo served on it."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))


@dataclass(frozen=True)
class Ground:
    """model: the folder of a tiny model. run: a finished run of it, and opened. url: of the demo on it."""

    model: Path
    run: Path
    opened: Any
    url: str


@contextmanager
def prepared(folder: Path) -> Iterator[Ground]:
    """A ground in a folder, as the tests' fixtures have one."""
    import torch
    from small_runs import flags, run_here, save_rows
    from tiny_models import save_tiny
    from transformers.utils import logging as transformers_logging

    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model, run = folder / "model", folder / "run"
    save_tiny(model, "llama", {})
    done = run_here(flags(model, save_rows(folder / "rows"), run, sft_learning_rate=1e-2))
    assert done.code == 0, done.err
    with served(model, run) as ground:
        yield ground


@contextmanager
def served(model: Path, run: Path, opened: Any = None) -> Iterator[Ground]:
    """The ground of a finished run."""
    from dcr_lite.demo.blocks import build, launch
    from dcr_lite.demo.scoring import open_run

    opened = opened or open_run(run)
    page = build(opened)
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL + 1)  # it shows what it refuses with a traceback
    try:
        yield Ground(model, run, opened, url)
    finally:
        page.close()
