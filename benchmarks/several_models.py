"""Several models side by side: each one's comparison, their tables on one page, and a picture with a panel each.

    python benchmarks/several_models.py --models "SmolLM2 135M=smollm2_135m" "Qwen2.5-Coder 0.5B=FOLDER05" \\
        "Qwen2.5-Coder 1.5B=FOLDER15" --methods safety_sft dcr --rows 20 --prompts FILES --out runs/models

Each model is a recipe, or a chat model whose settings are found, and is compared as ``dcr-lite compare`` does, under
``--out``: the same command goes on. In the place of a model can stand what ``dcr-lite compare`` or
``benchmarks/trade_off.py`` wrote, a .json file: then nothing is measured. The latter's variant that a chat model has by
default, half of stage 1 and the dial, is called DCR.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib import pyplot as plt

from dcr_lite.compare.command import SEEDS, compare, require_all
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.plots import draw_plane
from dcr_lite.compare.tables import marked, methods_table, unranked_of
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, write_text
from dcr_lite.names import DCR, STOCK
from dcr_lite.run.plots import STYLE, save
from dcr_lite.run.recipes import recipe_or_model, recipe_titles

Entries = list[dict[str, Any]]  # as ``summary.over_seeds`` gives them
Panel = tuple[str, Entries, Entries]  # the title, an entry of each method at its usual strength, those of all strengths

SHOWN = METHODS | {"stage1": METHODS[DCR]}  # trade_off.py's name of it


@dataclass
class Choices:
    """What to compare, and what to draw."""

    models: tuple[str, ...]
    """TITLE=MODEL of each, from the left: a recipe's name, a chat model's folder or name on the Hub, or a .json file of
    what was measured."""
    seeds: tuple[int, ...] = SEEDS
    """As of dcr-lite compare, like all below; no curve is measured."""
    seeds_of: tuple[str, ...] = ()
    """TITLE=SEED,SEED of a model with seeds of its own: a large one may have fewer."""
    prompts: tuple[Path, ...] = ()
    rows: int | None = None
    methods: tuple[str, ...] = ()
    out: Path = Path("runs/models")
    """Folder of models.md, models.png and of the comparisons."""


def own_seeds(choices: Choices) -> dict[str, tuple[int, ...]]:
    """The seeds of the models that have their own, by title. Raises UserError for other titles and what is no seed."""
    found: dict[str, tuple[int, ...]] = {}
    titles = {text.rpartition("=")[0] for text in choices.models}
    for text in choices.seeds_of:
        title, _, seeds = text.rpartition("=")
        if title not in titles or not re.fullmatch(r"\d+(,\d+)*", seeds):
            raise UserError(f"--seeds-of {text!r}: give TITLE=SEED,SEED with a title of --models")
        found[title] = tuple(map(int, seeds.split(",")))
    return found


def file_of(title: str, model: str, choices: Choices) -> Path:
    """The file of a model's numbers, which are measured unless it is one."""
    if model.endswith(".json"):
        return Path(model)
    recipe = recipe_or_model(*((model, None) if model in recipe_titles() else (None, model)))
    out = choices.out / re.sub(r"\W+", "_", title).lower()
    seeds = own_seeds(choices).get(title, choices.seeds)
    require_all(compare(recipe, seeds, choices.prompts, choices.rows, None, (), out, only=choices.methods), out)
    return out / "comparison.json"


def read_panel(title: str, file: Path) -> Panel:
    """The panel of a file. Raises UserError for a file of something else."""
    try:
        found = load_json(file)
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


def page(panels: Sequence[Panel]) -> str:
    """The table of each model under its title."""
    tables = []
    for title, entries, _ in panels:
        titles = [marked(entries, SHOWN)[entry["method"]].title for entry in entries]
        tables.append(f"## {title}\n\n{methods_table(entries, titles, unranked_of(entries))}\n")
    return "\n".join(tables)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """A panel for each model, with one legend below all."""
    with plt.rc_context(STYLE):
        figure, planes = plt.subplots(1, len(panels), figsize=(3.5 * len(panels), 3.9), squeeze=False, sharey=True)
        shown: dict[str, Any] = {}
        for axes, (title, entries, curve) in zip(planes[0], panels, strict=True):
            draw_plane(axes, marked(entries, SHOWN), entries, curve)
            axes.set_title(title, loc="left")
            axes.set(xlabel="seemingly toxic prompts answered", ylabel="toxic prompts refused")
            axes.label_outer()
            for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
                shown.setdefault(name, handle)
        figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown))
        save(figure, path)


def main(choices: Choices) -> None:
    named = [text.rpartition("=") for text in choices.models]
    if wrong := ["".join(parts) for parts in named if not all(parts)]:
        raise UserError(f"--models {wrong[0]!r}: give TITLE=MODEL")
    own_seeds(choices)  # before the hours of the first model
    panels = [read_panel(title, file_of(title, model, choices)) for title, _, model in named]
    write_text(choices.out / "models.md", page(panels))
    draw(panels, choices.out / "models.png")
    print(page(panels))


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
