"""The paper's setting, as near as two cores come: its kinds and amounts of data, its stage 1 beside the kit's.

    python benchmarks/paper_setting.py --toxic F --seemingly-toxic F --instructions F --refusals F --prompts FILES \
        --rows 50 --out runs/paper

The model is taught by both stages what its chat has not taught it: 500 toxic and 500 seemingly toxic prompts in stage
1, 9,000 instructions with given answers and 1,000 refusals in stage 2, no dial. Three models beside the stock one:
safety SFT alone, DCR by the kit's stage 1, and DCR by the paper's (Circle loss on raw states, all layers up to L). The
last two have a stage 2 on the same rows.

The files are JSON Lines of the training sets: prompts as {prompt}, instructions and refusals as {prompt, response}.
Pairs and the rows of stage 2 are made by the same steps as those of --data full, which fetches its sets: each toxic
prompt is paired with the most similar seemingly toxic one, and no toxic prompt is in both stages. ``--out`` keeps them,
with every training and all answers: the same command goes on.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

from dcr_lite.compare.command import compare, require_all
from dcr_lite.compare.tables import methods_table
from dcr_lite.data import paper_data
from dcr_lite.data.paper_data import HubSet
from dcr_lite.files import load_jsonl, write_text
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run.recipes import DEFAULT_RECIPE, find_recipe
from dcr_lite.run.recipes import settings_of as of_recipe
from dcr_lite.settings import HELD_OUT_FILES, Settings

PAIRS = 500  # the paper has 500 toxic prompts, and 250 seemingly toxic ones of another source
INSTRUCTIONS, REFUSALS = 9_000, 1_000  # the paper has 20,000 of the first
WAYS = {"kit": False, "paper": True}  # folder of a comparison: whether by the paper's stage 1


@dataclass
class Choices:
    """What to run."""

    toxic: Path
    """Prompts of stage 1."""
    seemingly_toxic: Path
    """Prompts of stage 1, of the same source."""
    instructions: Path
    """Of stage 2, with answers."""
    refusals: Path
    """Of stage 2, with answers that refuse."""
    settings: Settings = field(default_factory=lambda: of_recipe(find_recipe(DEFAULT_RECIPE)))
    """Model and training settings, by default SmolLM2's; what is not given is found."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of every training."""
    prompts: tuple[Path, ...] = HELD_OUT_FILES
    """JSON Lines of {prompt, label, source?} or {toxic, seemingly_toxic} to measure on."""
    rows: int | None = None
    """At most so many prompts of each set and label."""
    without: tuple[Path, ...] = ()
    """Prompts of the same source that are measured on, which stage 1 leaves out."""
    out: Path = Path("runs/paper")
    """Folder of the rows, of both comparisons and of paper_setting.md."""


def rows_of_training(choices: Choices) -> paper_data.Files:
    """The files of training rows in ``choices.out``, made where they are not there."""
    files = paper_data.Files(*(choices.out / f"{name}.jsonl" for name in ("pairs", "instructions", "refusals")))

    def load(wanted: HubSet) -> Iterable[dict[str, Any]]:
        if wanted in paper_data.MEASURED:
            return [] if wanted != paper_data.MEASURED[0] else _prompts(choices.without)
        if wanted == paper_data.INSTRUCTIONS:
            rows = load_jsonl(choices.instructions)
            return [{"instruction": row["prompt"], "input": "", "output": row["response"]} for row in rows]
        if wanted == paper_data.REFUSALS:
            return [{"prompt": row["prompt"], "chosen": row["response"]} for row in load_jsonl(choices.refusals)]
        return _prompts((choices.toxic if wanted == paper_data.TOXIC else choices.seemingly_toxic,))

    if not all(path.exists() for path in vars(files).values()):
        paper_data.write_rows(files, load, paper_data.or_bench_pairs(load, PAIRS))
    return files


def _prompts(files: tuple[Path, ...]) -> list[dict[str, Any]]:
    """Of one category: these files have none."""
    return [{"prompt": row["prompt"], "category": ""} for file in files for row in load_jsonl(file)]


def settings_of(choices: Choices, files: paper_data.Files) -> Settings:
    """Those of both comparisons."""
    rows = {"pairs": files.pairs, "instruction_rows": files.instruction_rows, "refusal_rows": files.refusal_rows}
    sizes = {"instructions": INSTRUCTIONS, "refusals": REFUSALS, "baseline_refusals": REFUSALS}
    plain = {"answers": "given", "stage2": "yes", "dial": "none", "contrastive_share": 1.0, "discerned_refusals": False}
    return replace(choices.settings, **rows, **sizes, **plain)  # type: ignore[arg-type]


def main(choices: Choices) -> list[dict[str, Any]]:
    files = rows_of_training(choices)
    layer = choices.settings.layer
    entries, titles = [], {STOCK: "stock model", BASELINE: "safety SFT alone"}
    for way, paper in WAYS.items():
        settings = replace(settings_of(choices, files), paper=paper, layer=layer)
        report = compare(
            settings, choices.seeds, choices.prompts, choices.rows, None, (), choices.out / way,
            only=(DCR,) if paper else (BASELINE, DCR),
        )  # fmt: skip
        require_all(report, choices.out / way)
        layer = report["settings"]["layer"]  # found once, for both
        entries += [one | {"way": way} for one in report["methods"] if one["method"] == DCR or not paper]
    page = methods_table(entries, [titles.get(one["method"], f"DCR, stage 1 of the {one['way']}") for one in entries])
    write_text(choices.out / "paper_setting.md", page + "\n")
    print(page)
    return entries


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
