"""Runs a script as on a machine where its package lies beside it and is not installed: ``not_installed.py APP``."""

import importlib.metadata
import runpy
import sys
from pathlib import Path
from typing import Any

installed = importlib.metadata.Distribution.from_name


def from_name(name: str) -> Any:
    if name == "dcr-lite":
        raise importlib.metadata.PackageNotFoundError(name)
    return installed(name)


if __name__ == "__main__":
    app = Path(sys.argv[1])
    importlib.metadata.Distribution.from_name = from_name  # type: ignore[method-assign]
    sys.argv, sys.path[0] = [str(app)], str(app.parent)
    runpy.run_path(str(app), run_name="__main__")
