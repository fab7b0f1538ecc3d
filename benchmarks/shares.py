"""How much of stage 1 should stay in a model that is trained no further: what shares of it leave of discernment and of
the model's own answers, each with a dial of its own.

    python benchmarks/shares.py --settings.model FOLDER --settings.layer 14 --prompts FILES --out runs/shares

Stage 1 is trained once. With each share of what it changes in the weights a dial is fitted, and stands at 0 with a gain
of 1. AUROC of the log-odds of opening with a refusal, on development pairs, which share no focus word with training
pairs, on held-out pairs, and on all ``--prompts`` together, with 95 % bootstrap intervals over prompts; and how much of
the stock model's own answers to seemingly toxic ones of these is kept (docs/measuring.md). A share of 0 is the dial
alone. ``--out`` keeps what was trained and measured: the same command goes on.
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import tyro
from _kept import require_same
from pair_curve import DEVELOPMENT, SIDES, prompts_of

from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.data.rows import Prompt, read_pairs, read_prompts
from dcr_lite.data.sources import SMOLLM2
from dcr_lite.data.splits import sample
from dcr_lite.files import SHIPPED, load_json, write_json, write_text
from dcr_lite.measure.answers import measure
from dcr_lite.measure.kept import StockAnswers, distances, read_stock_answers, worth_keeping
from dcr_lite.measure.metrics import auroc, auroc_interval
from dcr_lite.method.dial import set_strength
from dcr_lite.method.dial_fitting import fit_dial
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.names import DCR
from dcr_lite.run import inputs
from dcr_lite.run.report import markdown_table
from dcr_lite.settings import Settings

HELD_OUT, PUBLIC = "held-out pairs", "public prompts"


@dataclass
class Choices:
    """What to run."""

    settings: Settings = field(default_factory=lambda: Settings.of_model(SMOLLM2))
    """Model, pairs and stage 1."""
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 1.0)
    """Of stage 1's change."""
    prompts: tuple[Path, ...] = ()
    """JSON Lines of {prompt, label, source} to read as well."""
    rows: int | None = 20
    """At most so many prompts of each set and label."""
    every: int = 1
    """Fit dials to every so many-th training pair alone, which is quicker."""
    answers: int = 72
    """Seemingly toxic prompts whose stock answers are to be kept: of development pairs and of --prompts."""
    seed: int = 0
    """Of stage 1 and of the split."""
    out: Path = Path("runs/shares")
    """Folder of shares.json and shares.md, and of the run."""


def unseen_sets(choices: Choices, run: SeedRun) -> dict[str, list[Prompt]]:
    """What is read, by name."""
    sets = {DEVELOPMENT: run.data.development, HELD_OUT: read_pairs(SHIPPED / "heldout_pairs.jsonl")}
    unseen = {name: prompts_of(pairs) for name, pairs in sets.items()}
    if choices.prompts:
        unseen[PUBLIC] = sample([prompt for path in choices.prompts for prompt in read_prompts(path)], choices.rows)
    return unseen


def own_answers(run: SeedRun, sets: dict[str, list[Prompt]], most: int) -> StockAnswers:
    """The stock model's answers to some of the seemingly toxic prompts, those that are no refusals."""
    asked = [p for name, some in sets.items() if name != HELD_OUT for p in some if p.label == SIDES[1]]
    chosen = [asked[i * len(asked) // min(most, len(asked))] for i in range(min(most, len(asked)))]
    with adapters.stock(run.model):
        return read_stock_answers(run.model, worth_keeping(measure(run.model, chosen, run.settings.answer_tokens)))


def measured(choices: Choices, run: SeedRun, share: float, sets: dict[str, list[Prompt]], stock: StockAnswers) -> Any:
    """{share, kept, divergence, sets: {name: {auroc, ci95}}} of the model with that share of stage 1 and a dial."""
    model, settings = run.model, run.settings
    run.refine()
    adapters.scale(model, DCR, share)
    dial = fit_dial(model, DCR, settings.layer, run.data.training[:: choices.every], run.data.instructions)
    set_strength(model, DCR, replace(dial, gain=1.0), 0)
    try:
        texts = list(dict.fromkeys(prompt.prompt for some in sets.values() for prompt in some))
        rows = encode_prompts(model.tokenizer, texts, model.window)
        odds = dict(zip(texts, (one.refusal_log_odds for one in answer(model, rows, 0)), strict=True))
        kept = distances(model, stock)
    finally:
        set_strength(model, DCR, dial, None)
    found = {"share": share, "kept": math.exp(-fmean(one["loss"] for one in kept)) if kept else None}
    found["divergence"] = fmean(one["divergence"] for one in kept) if kept else None
    sides = {name: [[odds[p.prompt] for p in some if p.label == side] for side in SIDES] for name, some in sets.items()}
    return found | {
        "sets": {name: {"auroc": auroc(*two), "ci95": list(auroc_interval(*two))} for name, two in sides.items()}
    }


def table(results: list[dict[str, Any]]) -> str:
    """A line for each share."""
    names = list(results[0]["sets"])
    lines = []
    for one in results:
        cells = ["{auroc:.3f} ({ci95[0]:.3f}-{ci95[1]:.3f})".format(**one["sets"][name]) for name in names]
        numbers = ["-" if one[key] is None else f"{one[key]:.3f}" for key in ("kept", "divergence")]
        lines.append([f"{one['share']:g}", *cells, *numbers])
    return markdown_table(["share", *(f"{name} ↑" for name in names), "kept ↑", "divergence ↓"], lines)


def main(choices: Choices) -> list[dict[str, Any]]:
    settings = replace(inputs.resolved(choices.settings), stage1="yes", stage2="no")
    run, kept = SeedRun(settings, choices.out / f"seed{choices.seed}", choices.seed), choices.out / "shares.json"
    require_same(
        kept, settings, choices.seed, *settings.files.values(), *choices.prompts, choices.rows, choices.every,
        choices.answers,
    )  # fmt: skip
    results: list[dict[str, Any]] = load_json(kept) if kept.exists() else []
    if left := [share for share in choices.shares if share not in {one["share"] for one in results}]:
        run.find_settings()
        run.settings = replace(run.settings, contrastive_share=1.0)
        sets = unseen_sets(choices, run)
        stock = own_answers(run, sets, choices.answers)
        for share in left:
            results = sorted([*results, measured(choices, run, share, sets, stock)], key=lambda one: one["share"])
            write_json(results, kept)
            write_text(choices.out / "shares.md", f"{table(results)}\n")
            print(f"{table(results)}\n", flush=True)
    run.run.leave()
    return results


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
