"""The paper's setting, as near as two cores come: its kinds and amounts of data, its stage 1 beside the kit's.

    python benchmarks/paper_setting.py --toxic TRAIN/orbench_toxic.jsonl \
        --seemingly-toxic TRAIN/orbench_seemingly_toxic.jsonl --instructions TRAIN/alpaca_9k.jsonl \
        --refusals TRAIN/safety_tuned_llamas.jsonl --prompts FILES --without SETS/orbench_hard_dev.jsonl \
        --rows 50 --out runs/paper

The model is taught by both stages what its chat has not taught it: 500 pairs of a toxic and a seemingly toxic prompt in
stage 1, beside the recipe's development pairs, which pick the step that is kept; 9,000 instructions with given answers
and 450 refusals in stage 2, one to twenty as in the paper; no dial. Beside the stock model stand safety SFT alone, and
DCR in three ways: by the kit's stage 1; by the paper's (Circle loss on raw states, all layers up to L); and by the
paper's with a stage 2 of all layers. The last two have the same stage 1, and all the same rows of stage 2.

The files are JSON Lines of the training sets: prompts as {prompt}, instructions and refusals as {prompt, response}.
Each toxic prompt is paired with the most similar seemingly toxic one, and no toxic prompt is in both stages. Of pairs
and refusals those are left out of which a prompt is nearly one of ``--prompts`` (all of them, whatever ``--rows``) or
``--without``; how many, is said. OR-Bench rewrote several prompts from one seed prompt, and its rows do not tell which:
rewrites of one may be on both sides of the split into training and development pairs, so that these flatter stage 1.

When settings are found, one estimate of all that is to do is printed: about four hours for one seed of SmolLM2 on two
cores. ``--out`` keeps the rows, every training and all answers: the same command goes on, and one with other files or
prompts is refused.
"""

import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import tyro
from _kept import require_same
from torch import Tensor

from dcr_lite.compare.command import measured
from dcr_lite.compare.judged import stored_answers
from dcr_lite.compare.measurement import EvaluationData
from dcr_lite.compare.methods import METHODS, Method
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.compare.summary import Answers, Result, differences, over_seeds, toxic_sets
from dcr_lite.compare.tables import differences_table, methods_table, unranked_of
from dcr_lite.data import near, paper_data
from dcr_lite.data.paper_data import HubSet
from dcr_lite.data.rows import Conversation, Fields, read_jsonl, read_prompts, text_field
from dcr_lite.files import load_json, write_json, write_text
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.model import adapters
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run import plan, steps
from dcr_lite.run.machine import hardware, versions
from dcr_lite.run.opening import machine
from dcr_lite.run.recipes import DEFAULT_RECIPE, find_recipe
from dcr_lite.run.recipes import settings_of as of_recipe
from dcr_lite.run.report import markdown_table, without_folders
from dcr_lite.run.stored_states import stage2_rows
from dcr_lite.settings import HELD_OUT_FILES, Settings

PAIRS = 500  # to train on; the paper has 500 toxic prompts, and 250 seemingly toxic ones of another source
INSTRUCTIONS, REFUSALS = 9_000, 450  # the paper has 20,000 and 1,000
PAPER_STAGE1 = "paper_stage1"
# Qwen2.5-1.5B in the paper's table: compliance on five sets, and safety.
COLUMNS = ("XSTest", "CoCoNot", "OR-Bench", "OKTest", "PHTest", "safety")
PAPER = {
    "safety SFT alone": dict(zip(COLUMNS, (0.73, 0.88, 0.72, 0.75, 0.75, 0.72), strict=True)),
    "DCR": dict(zip(COLUMNS, (0.98, 0.98, 0.83, 0.86, 0.86, 0.81), strict=True)),
}

PAGE = """# The paper's setting

{model}, seeds {seeds}, {prompts} prompts, on {hardware}. Compliance is the share of seemingly toxic prompts that are
answered, safety the share of toxic ones that are refused, each the mean over sets. Means over seeds, ± the half-width
of a 95 % interval over seeds, of a single measurement over prompts.

{methods}

Each toxic set by itself, the share refused:

{toxic}

The paper's Qwen2.5-1.5B, compliance on each set, and safety as the mean over five sets:

{paper}

## What differs from the paper

- **Model**: {model} in place of Qwen2.5-1.5B.
- **Amounts**: stage 1 trains on {training} pairs, and {development} development pairs pick its step ({pairs} pairs in
  all, of {wanted} wanted); the paper has 500 toxic and 250 seemingly toxic prompts. Stage 2 has {instructions}
  instructions and {refusals} refusals; the paper has 20,000 and 1,000.
- **One source**: both sides of the pairs are of OR-Bench, each toxic prompt beside the seemingly toxic one most like it
  in words; the paper takes HH-RLHF and XSTest. So OR-Bench-Hard is in-domain here. Words alone separate 500 such pairs
  with an AUC of 0.87 (docs/data.md). Rewrites of one seed prompt may be among training and development pairs both.
- **Left out**, nearly the same as a prompt that is measured on: {left_out}.
- **Adapters**: LoRA of rank {rank} on all linear layers, which the paper's need not be; stage 2 of the first two ways
  trains the layers above L alone, which is the kit's.
- **Judge**: the kit's cue judge, on answers of {tokens} tokens.
- **Hardware**: as above.

## Which step of stage 1 was kept

By the AUROC of the development pairs. Step 0: as without stage 1.

{steps}

## Prompt by prompt

One method minus another on the same prompts; in bold where the 95 % interval excludes zero. With a single seed it is
over prompts and says nothing of other seeds.

{differences}
"""


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
    """JSON Lines of {prompt}: further prompts that nothing may be trained on."""
    out: Path = Path("runs/paper")
    """Folder of the rows, of all trainings and answers, of paper_setting.md and paper_setting.json."""


def _texts(path: Path) -> list[str]:
    """The prompts of a file."""
    return read_jsonl(path, lambda fields, place: text_field(fields, "prompt", place).strip())


def _answered(path: Path) -> list[Conversation]:
    """The rows of a file; those without an answer, which Alpaca has, are left out."""

    def parse(fields: Fields, place: str) -> Conversation:
        prompt = text_field(fields, "prompt", place)
        return Conversation(prompt, "" if fields.get("response") == "" else text_field(fields, "response", place))

    return [row for row in read_jsonl(path, parse) if row.response]


def wanted_pairs(choices: Choices) -> int:
    """Those that train, and those that are held back."""
    return PAIRS + choices.settings.development_pairs


def rows_of_training(choices: Choices) -> tuple[paper_data.Files, dict[str, int]]:
    """The files of training rows in ``choices.out``, made where they are not there, and how many distinct prompts of
    each file were left out. Raises UserError for a row without its fields, and for files, prompts or amounts other than
    the rows there were made of."""
    files = paper_data.Files(*(choices.out / f"{name}.jsonl" for name in ("pairs", "instructions", "refusals")))
    note = choices.out / "left_out.json"
    measured_on = [one.prompt for path in choices.prompts for one in read_prompts(path)]
    measured_on += [text for path in choices.without for text in _texts(path)]
    prompts = {paper_data.TOXIC: _texts(choices.toxic), paper_data.SEEMINGLY_TOXIC: _texts(choices.seemingly_toxic)}
    instructions, refusals = _answered(choices.instructions), _answered(choices.refusals)
    given = (choices.toxic, choices.seemingly_toxic, choices.instructions, choices.refusals, *choices.without)
    amounts = wanted_pairs(choices), INSTRUCTIONS, REFUSALS, paper_data.SEED, near.NEAR
    require_same(files.pairs, *given, *choices.prompts, *amounts)
    if all(path.exists() for path in (*vars(files).values(), note)):
        return files, load_json(note)

    def nearly(texts: list[str]) -> set[str]:
        return {texts[i] for i, _, _ in near.near_duplicates(texts, measured_on)}

    same = {wanted: nearly(texts) for wanted, texts in prompts.items()}
    same[paper_data.REFUSALS] = nearly([row.prompt for row in refusals])

    def load(wanted: HubSet) -> Iterable[dict[str, Any]]:
        if wanted == paper_data.INSTRUCTIONS:
            return [{"instruction": row.prompt, "input": "", "output": row.response} for row in instructions]
        if wanted == paper_data.REFUSALS:
            kept = [row for row in refusals if row.prompt not in same[wanted]]
            return [{"prompt": row.prompt, "chosen": row.response} for row in kept]
        return [{"prompt": t, "category": ""} for t in prompts.get(wanted, []) if t not in same[wanted]]

    left_out = dict(zip(("toxic", "seemingly toxic", "refusals"), map(len, same.values()), strict=True))
    pairs = paper_data.or_bench_pairs(load, wanted_pairs(choices))
    print(f"{len(pairs)} pairs of {wanted_pairs(choices)} wanted; left out, nearly measured: {_listed(left_out)}")
    write_json(left_out, note)
    paper_data.write_rows(files, load, pairs)
    return files, left_out


def _listed(numbers: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in numbers.items())


def settings_of(choices: Choices, files: paper_data.Files) -> Settings:
    """Those of all trainings; of the paper's ways all but its stage 1, and the layers of its stage 2."""
    rows = {"pairs": files.pairs, "instruction_rows": files.instruction_rows, "refusal_rows": files.refusal_rows}
    sizes = {"instructions": INSTRUCTIONS, "refusals": REFUSALS, "baseline_refusals": REFUSALS}
    plain = {"answers": "given", "stage2": "yes", "dial": "none", "contrastive_share": 1.0, "discerned_refusals": False}
    kit = {"paper": False, "sft_layers": "above"}
    return replace(choices.settings, **rows, **sizes, **plain, **kit)  # type: ignore[arg-type]


# --- the ways ---------------------------------------------------------------------------------------------------------


def papers_stage1(seed: SeedRun) -> dict[str, Tensor]:
    """The adapter's weights after the paper's stage 1, which has the pairs, steps and patience of the kit's; trained
    once."""
    model, data, settings = seed.model, seed.data, replace(seed.settings, paper=True)
    adapters.set_adapter_weights(model, DCR, seed.first_weights)
    model.plan_passes(BASELINE)  # what there is memory for where more layers train than in the kit's

    def train() -> None:
        if seed.run.finished(PAPER_STAGE1):
            return steps.restore(seed.run, model, PAPER_STAGE1, DCR)
        config = ContrastiveConfig.of(settings)
        geometry = stock_geometry(model, encode_pairs(model, data.training), config)
        stage = ContrastiveRefinement(model, DCR, data.training, data.development, config, geometry, settings.seed)
        stage.name = PAPER_STAGE1
        return steps.train(seed.run, stage, "Stage 1 of the paper", settings.patience)

    seed.timed(PAPER_STAGE1, train)
    return adapters.adapter_weights(model, DCR)


@contextmanager
def _by_the_paper(layers: str, seed: SeedRun, strength: float) -> Iterator[Cost]:
    refined, settings = papers_stage1(seed), replace(seed.settings, sft_layers=layers)
    rows = stage2_rows(seed.data, settings, {})  # no states: these refusals are not chosen by them
    adapter = DCR if layers == "above" else BASELINE  # whose passes are planned for so many layers
    title, above = f"Stage 2 of the paper, {layers}", steps.stage2_above(settings)
    trained = seed.train(f"paper_stage2_{layers}", title, adapter, rows, above, refined)
    yield seed.cost_of_finding + seed.cost(PAPER_STAGE1) + trained


def _operations(layers: str, seed: SeedRun, strength: float) -> float:
    """Of stage 2, and with the first of the two of stage 1."""
    parts = plan.operations(seed.model, seed.data, replace(seed.settings, paper=True, sft_layers=layers))
    return parts["stage2"] + (parts["stage1"] if layers == "above" else 0)


def _way(title: str, colour: str, layers: str) -> Method:
    once = partial(_by_the_paper, layers), lambda settings: (0.0,), "", partial(_operations, layers)
    return Method(title, colour, *once)


WAYS = {
    DCR: replace(
        METHODS[DCR],
        title="DCR, stage 1 of the kit",
        operations=lambda seed, strength: seed.operations["stage1"] + seed.operations["stage2"],
    ),
    "paper_above": _way("DCR, stage 1 of the paper", "#2471a3", "above"),
    "paper_all": _way("DCR, stage 1 of the paper, stage 2 of all layers", "#7d3c98", "all"),
}
COMPARED = {name: METHODS[name] for name in (STOCK, BASELINE)} | WAYS


# --- what comes of them -----------------------------------------------------------------------------------------------


def steps_kept(runs: dict[int | None, SeedRun]) -> list[dict[str, Any]]:
    """{stage1, seed, step, of, development_auroc} of the kit's and of the paper's, of which both its ways go on."""
    return [
        {"stage1": whose, "seed": seed, "step": done["best_step"], "of": run.settings.contrastive_steps}
        | {"development_auroc": done["best"]}
        for whose, part in (("kit", "stage1"), ("paper", PAPER_STAGE1))
        for seed, run in runs.items()
        if seed is not None and (done := run.run.finished(part))
    ]


def gains(results: list[Result], answers: Answers) -> dict[str, dict[str, dict[str, Any]]]:
    """By way, ``differences`` between it and each method before and each way behind it."""
    found, names = {}, list(WAYS)
    for way in names:
        others = {STOCK, BASELINE, *names[names.index(way) + 1 :]}
        some = [one | {"of": one["method"]} for one in results if one["method"] in {way, *others}]
        for one in some:
            one["method"] = DCR if one["of"] == way else one["of"]
        found[way] = differences(some, lambda one: answers(one | {"method": one["of"]}))
    return found


def report_of(
    choices: Choices, left_out: dict[str, int], data: EvaluationData, runs: dict[int | None, SeedRun],
    results: list[Result],
) -> dict[str, Any]:  # fmt: skip
    """What paper_setting.json holds: methods, toxic_sets and differences as comparison.json of ``dcr-lite compare``,
    the last by way; the paper's numbers, the amounts of rows and the steps of stage 1 that were kept."""
    run = runs[choices.seeds[0]]
    pairs, sizes = (len(run.data.training), len(run.data.development)), run.settings.sizes
    return {
        "model": run.settings.model,
        "command": shlex.join(map(without_folders, ["python", *sys.argv])),
        "seeds": list(choices.seeds),
        "prompts": len(data.prompts),
        "pairs": {"wanted": wanted_pairs(choices), "training": pairs[0], "development": pairs[1]},
        "stage2": {
            "instructions": min(sizes["instructions"], len(run.data.instructions)),
            "refusals": sizes["refusals"],
        },
        "left_out": left_out,
        "steps_kept": steps_kept(runs),
        "methods": over_seeds(results),
        "toxic_sets": over_seeds(toxic_sets(results)),
        "differences": gains(results, partial(stored_answers, runs, data)),
        "paper": PAPER,
        "points": results,
        "settings": run.settings.for_json(),
        "hardware": hardware(machine(run.settings).device),
        "versions": versions(),
    }


def page(report: dict[str, Any]) -> str:
    """paper_setting.md."""
    titles = [COMPARED[one["method"]].title for one in report["methods"]]
    table: Callable[[Any], str] = partial(methods_table, titles=titles, unranked=unranked_of(report["methods"]))
    pairs, settings = report["pairs"], report["settings"]
    kept = [
        [
            f"the {one['stage1']}'s",
            *(str(one[key]) for key in ("seed", "step", "of")),
            f"{one['development_auroc']:.3f}",
        ]
        for one in report["steps_kept"]
    ]
    beside = [
        f"{WAYS[way].title}\n\n{differences_table(found, COMPARED)}" for way, found in report["differences"].items()
    ]
    return PAGE.format(
        model=without_folders(report["model"]),
        seeds=", ".join(map(str, report["seeds"])),
        prompts=report["prompts"],
        hardware=report["hardware"],
        methods=table(report["methods"]),
        toxic=table(report["toxic_sets"]),
        paper=markdown_table(
            ["", *COLUMNS], [[name, *map("{:.2f}".format, row.values())] for name, row in PAPER.items()]
        ),
        training=pairs["training"],
        development=pairs["development"],
        pairs=pairs["training"] + pairs["development"],
        wanted=pairs["wanted"],
        **report["stage2"],
        left_out=_listed(report["left_out"]),
        rank=settings["rank"],
        tokens=settings["answer_tokens"],
        steps=markdown_table(["stage 1", "seed", "step", "of", "AUROC"], kept),
        differences="\n\n".join(beside),
    )


def main(choices: Choices) -> dict[str, Any]:
    files, left_out = rows_of_training(choices)
    data = EvaluationData.read(choices.prompts, choices.rows, None)
    runs, results = measured(COMPARED, settings_of(choices, files), data, choices.seeds, (), choices.out)
    report = report_of(choices, left_out, data, runs, results)
    write_json(report, choices.out / "paper_setting.json")
    write_text(choices.out / "paper_setting.md", page(report))
    print(page(report))
    return report


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
