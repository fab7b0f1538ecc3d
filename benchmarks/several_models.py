"""Several models side by side: each one's comparison, their tables on one page, and a picture with a panel each.

    python benchmarks/several_models.py --models "SmolLM2 135M=smollm2_135m" "Qwen2.5-Coder 0.5B=FOLDER05" \\
        "Qwen2.5-Coder 1.5B=FOLDER15" --seeds-of "Qwen2.5-Coder 1.5B=0" "Qwen2.5-Coder 1.5B:dcr=0,1,2" \\
        --rows 20 --prompts FILES --held-out --out runs/models

Each model is a recipe, or a chat model whose settings are found, and is compared as ``dcr-lite compare`` does, under
``--out``: the same command goes on. First the settings of all of them are found, and the hours of the whole are
estimated; the page is written behind each model, and what could not be measured is an error at the end. In the place of
a model can stand what ``dcr-lite compare`` or ``benchmarks/trade_off.py`` wrote, a .json file: then nothing is
measured. The latter's variant that a chat model has by default, half of stage 1 and the dial, is called DCR, and those
with a stage 2 are left out.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from matplotlib import pyplot as plt

from dcr_lite.compare.command import SEEDS, compare, require_all, seconds_ahead
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.plots import draw_plane
from dcr_lite.compare.tables import marked, methods_table, unranked_of
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, write_text
from dcr_lite.names import DCR, STOCK
from dcr_lite.run.plots import STYLE, save
from dcr_lite.run.recipes import recipe_or_model, recipe_titles
from dcr_lite.settings import HELD_OUT_FILES, Settings

Entries = list[dict[str, Any]]  # as ``summary.over_seeds`` gives them
Panel = tuple[str, Entries, Entries]  # the title, an entry of each method at its usual strength, those of all strengths

REPORT = ("comparison.json", "comparison.md", "trade_off.png")  # what a comparison writes of its numbers
HELD_OUT = "held_out"
SHOWN = METHODS | {"stage1": METHODS[DCR]}  # trade_off.py's name of it
WITH_STAGE2 = ("own", "given")  # and its names of those, of other answers


@dataclass
class Choices:
    """What to compare, and what to draw."""

    models: tuple[str, ...]
    """TITLE=MODEL of each, from the left: a recipe's name, a chat model's folder or name on the Hub, or a .json file of
    what was measured."""
    seeds: tuple[int, ...] = SEEDS
    """As of dcr-lite compare, like all below; no curve is measured."""
    seeds_of: tuple[str, ...] = ()
    """TITLE=SEED,SEED of a model with seeds of its own, since a large one may have fewer, and TITLE:METHOD=SEED,SEED of
    one of its methods."""
    prompts: tuple[Path, ...] = ()
    rows: int | None = None
    methods: tuple[str, ...] = ()
    held_out: bool = False
    """Measure every model on the shipped held-out prompts too, for tables and a picture of their own."""
    out: Path = Path("runs/models")
    """Folder of models.md, models.png, models_held_out.png and of the comparisons."""


@dataclass(frozen=True)
class Asked:
    """A comparison to be made. seeds_of: of methods with seeds of their own. out: its folder."""

    recipe: Path | Settings
    seeds: tuple[int, ...]
    seeds_of: dict[str, tuple[int, ...]]
    out: Path

    @classmethod
    def of(cls, title: str, model: str, choices: Choices) -> "Asked":
        recipe = recipe_or_model(*((model, None) if model in recipe_titles() else (None, model)))
        found = own_seeds(choices)
        methods = {method: seeds for (of, method), seeds in found.items() if of == title and method}
        seeds = found.get((title, ""), choices.seeds)
        return cls(recipe, seeds, methods, choices.out / re.sub(r"\W+", "_", title).lower())

    def seconds_ahead(self, choices: Choices) -> float:
        """About how many are left to work."""
        files = list(prompts_of(choices).values())
        return seconds_ahead(self.recipe, self.seeds, files, choices.rows, self.out, choices.methods, self.seeds_of)

    def measure(self, part: str, choices: Choices) -> tuple[Path, str]:
        """The file of the numbers on a part of the prompts, and what of them could not be measured, if anything."""
        report = compare(
            self.recipe, self.seeds, prompts_of(choices)[part], choices.rows, None, (), self.out,
            only=choices.methods, seeds_of=self.seeds_of,
        )  # fmt: skip
        folder = self.out / part
        folder.mkdir(exist_ok=True)
        if folder != self.out:  # where the next report would take its place
            for name in REPORT:
                if (self.out / name).exists():
                    (self.out / name).replace(folder / name)
        try:
            require_all(report, folder)
        except UserError as error:
            return folder / REPORT[0], str(error)
        return folder / REPORT[0], ""


def prompts_of(choices: Choices) -> dict[str, tuple[Path, ...]]:
    """The files of each part of the prompts, by the folder of its report; --prompts last, so that theirs stays where a
    comparison's is."""
    return ({HELD_OUT: HELD_OUT_FILES} if choices.held_out else {}) | {"": choices.prompts}


def own_seeds(choices: Choices) -> dict[tuple[str, str], tuple[int, ...]]:
    """The seeds of the models, "" for their method, and of the methods that have their own, by title and method. Raises
    UserError for other titles and methods and what is no seed."""
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    titles = {text.rpartition("=")[0] for text in choices.models}
    for text in choices.seeds_of:
        named, _, seeds = text.rpartition("=")
        title, _, method = (named, "", "") if named in titles else named.rpartition(":")
        known = title in titles and method in ("", *(choices.methods or METHODS))
        if not known or not re.fullmatch(r"\d+(,\d+)*", seeds):
            raise UserError(
                f"--seeds-of {text!r}: give TITLE=SEED,SEED with a title of --models, or TITLE:METHOD=SEED,SEED with a "
                "method that is compared"
            )
        found[title, method] = tuple(map(int, seeds.split(",")))
    return found


def read_panel(title: str, file: Path) -> Panel:
    """The panel of a file. Raises UserError for a file of something else."""
    try:
        found = load_json(file)
        if isinstance(found, list):
            entries = curve = [entry for entry in found if entry["method"] not in WITH_STAGE2]
        else:
            entries, curve = found["methods"], [*found["curve"]["points"], *found["methods"]]
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


def page(panels: dict[str, list[Panel]]) -> str:
    """The table of each model under its title, part by part of the prompts."""
    tables = []
    for part, of_part in panels.items():
        for title, entries, _ in of_part:
            named = [marked(entries, SHOWN)[entry["method"]].title + _seeds(entry, entries) for entry in entries]
            heading = f"## {title}{', held-out prompts' if part else ''}"
            tables.append(f"{heading}\n\n{methods_table(entries, named, unranked_of(entries))}\n")
    return "\n".join(tables)


def _seeds(entry: dict[str, Any], entries: Entries) -> str:
    """How many seeds an entry has, where others that are trained have another number."""
    counts = {number["n"] for one in entries if one["method"] != STOCK for number in [one["numbers"]["compliance"]]}
    n = entry["numbers"]["compliance"]["n"]
    return f", {n} seed{'s' * (n > 1)}" if len(counts) > 1 and entry["method"] != STOCK else ""


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


def show(panels: dict[str, list[Panel]], out: Path) -> None:
    """Write the page and the pictures."""
    write_text(out / "models.md", page(panels))
    for part, of_part in panels.items():
        if of_part:
            draw(of_part, out / f"models{part and f'_{part}'}.png")


def main(choices: Choices) -> None:
    named = [text.rpartition("=") for text in choices.models]
    if wrong := ["".join(parts) for parts in named if not all(parts)]:
        raise UserError(f"--models {wrong[0]!r}: give TITLE=MODEL")
    own_seeds(choices)  # this and the given files before the hours of the first model
    given = {title: read_panel(title, Path(model)) for title, _, model in named if model.endswith(".json")}
    asked = {title: Asked.of(title, model, choices) for title, _, model in named if not model.endswith(".json")}
    if asked:
        seconds = sum(one.seconds_ahead(choices) for one in asked.values())
        print(f"{len(asked)} models to compare: about {seconds / 3600:.1f} hours in all", flush=True)

    panels: dict[str, list[Panel]] = {part: [] for part in reversed(prompts_of(choices))}
    failures: list[str] = []
    for title, _, _ in named:
        if title in given:
            panels[""].append(given[title])
            continue
        for part in prompts_of(choices):
            try:
                file, why = asked[title].measure(part, choices)
                failures += [f"{title}: {why}"] if why else []
                panels[part].append(read_panel(title, file))
            except UserError as error:  # the other models can still be measured
                failures.append(f"{title}: {error}")
        show(panels, choices.out)  # whatever may happen to the next ones
    show(panels, choices.out)
    print(page(panels))
    if failures:
        raise UserError("\n".join(failures))


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
