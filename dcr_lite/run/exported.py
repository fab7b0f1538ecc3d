"""What the model of a run is called where it is exported, and the commands that take it to Ollama."""

import re
from pathlib import Path
from typing import Any

from dcr_lite.run.joined import has_joined
from dcr_lite.run.model_card import base_of
from dcr_lite.run.terminal import quoted


def aligned_name(report: dict[str, Any], run: Path) -> str:
    """The name of the model of a run with this report: that of its base, or, of a mended one, that of the run, since a
    base can be mended often and be called after what it is."""
    return f"{run.resolve().name if has_joined(run) else Path(base_of(report)).name}-DCR"


def served_name(report: dict[str, Any], run: Path) -> str:
    """The same in the characters that Ollama, vLLM and the Hub take for a name."""
    return re.sub(r"[^a-z0-9._-]+", "-", aligned_name(report, run).lower()).strip("-.")


def create_command(name: str, modelfile: Path) -> str:
    """What gives Ollama an exported model under a name."""
    return f"ollama create {name} -f {quoted(modelfile)}"
