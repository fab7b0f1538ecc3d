"""One picture of several models: safety over compliance, a panel each.

    python benchmarks/several_models.py --panels "SmolLM2 135M=runs/compare/comparison.json" \\
        "Qwen2.5-Coder 0.5B=runs/trade_off/trade_off.json" --out docs/models.png

A panel's file is what ``dcr-lite compare`` or ``benchmarks/trade_off.py`` wrote; nothing is measured here. The latter's
variant that a chat model has by default, half of stage 1 and the dial, is called DCR.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib import pyplot as plt

from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.plots import draw_plane
from dcr_lite.errors import UserError
from dcr_lite.files import load_json
from dcr_lite.names import DCR, STOCK
from dcr_lite.run.plots import STYLE, save

Entries = list[dict[str, Any]]  # as ``summary.over_seeds`` gives them

SHOWN = METHODS | {"stage1": METHODS[DCR]}  # trade_off.py's name of it


@dataclass
class Choices:
    """What to draw."""

    panels: tuple[str, ...]
    """TITLE=FILE of each model, from the left."""
    out: Path = Path("runs/models.png")
    """The picture."""


def read_panel(panel: str) -> tuple[str, Entries, Entries]:
    """The title, an entry of each method at its usual strength, and those of all strengths. Raises UserError for what
    is no TITLE=FILE, and for a file of something else."""
    title, equals, file = panel.rpartition("=")
    if not (title and equals):
        raise UserError(f"--panels {panel!r}: give TITLE=FILE")
    try:
        found = load_json(Path(file))
        entries = found if isinstance(found, list) else found["methods"]
        curve = found if isinstance(found, list) else [*found["curve"]["points"], *entries]
        usual = {entry["method"]: entry for entry in reversed(entries)}
        ends = [entry["numbers"][key]["ci95"] for entry in curve for key in ("compliance", "safety")]
        if STOCK not in usual or not all(ends) or not SHOWN.keys() >= {entry["method"] for entry in curve}:
            raise LookupError
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (LookupError, TypeError, ValueError):
        cure = "Give the comparison.json of dcr-lite compare or the trade_off.json of benchmarks/trade_off.py."
        raise UserError(f"{file} is of something else. {cure}") from None
    return title, list(usual.values())[::-1], curve


def draw(panels: Sequence[tuple[str, Entries, Entries]], path: Path) -> None:
    """A panel for each model, with one legend below all."""
    with plt.rc_context(STYLE):
        figure, planes = plt.subplots(1, len(panels), figsize=(3.5 * len(panels), 3.9), squeeze=False, sharey=True)
        shown: dict[str, Any] = {}
        for axes, (title, entries, curve) in zip(planes[0], panels, strict=True):
            methods = {entry["method"]: SHOWN[entry["method"]] for entry in entries}
            draw_plane(axes, methods, entries, curve)
            axes.set_title(title, loc="left")
            axes.set(xlabel="seemingly toxic prompts answered", ylabel="toxic prompts refused")
            axes.label_outer()
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                shown.setdefault(name, handle)
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown))
        save(figure, path)


def main(choices: Choices) -> None:
    draw([read_panel(panel) for panel in choices.panels], choices.out)
    print(choices.out)


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
