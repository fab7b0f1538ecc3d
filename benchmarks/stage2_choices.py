"""What stage 2's defaults rest on: answers to development pairs after each variant of it, from the same stage 1.

    python benchmarks/stage2_choices.py --runs runs/compare/seed0 runs/compare/seed1 runs/compare/seed2

Each run folder holds a finished stage 1 of its own seed. One line per variant and seed: refusal rates on the
development pairs, J, the AUROC of the log-odds of opening with a refusal, and the loss on the answers of instructions
that no variant trains on (nats a token). The held-out prompts are not used.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import _choices
import tyro
from safetensors.torch import load_file

from dcr_lite.data.rows import Prompt
from dcr_lite.measure.answers import discernment_intervals, measure, overall_rate
from dcr_lite.measure.general_ability import answer_loss
from dcr_lite.method.contrastive import ContrastiveConfig, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters
from dcr_lite.names import DCR
from dcr_lite.run import inputs, opening, steps, stored_states
from dcr_lite.run.run_folder import read_settings
from dcr_lite.settings import Settings

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "all layers": {"sft_layers": "all"},
    "refusals drawn from all": {"discerned_refusals": False},
    "a quarter of the refusals": {"share": 0.25},
    "half of the refusals": {"share": 0.5},
    "a half more refusals": {"share": 1.5},
}


@dataclass(kw_only=True)
class Choices(_choices.Choices):
    """What to run."""

    runs: tuple[Path, ...]
    """Run folders with a finished stage 1."""
    json: Path = Path("runs/stage2_choices.json")
    """File of the results; variants found there are not run again."""


@lru_cache(maxsize=1)
def opened(folder: Path) -> tuple[Any, ...]:
    """(model, data, adapter after stage 1, states that stage 2 chooses refusals by) of a run."""
    settings = read_settings(folder)
    data, (model, _) = inputs.load_data(settings), opening.load_model(settings)
    refined = load_file(folder / "stage1" / "adapter_model.safetensors")
    adapters.set_adapter_weights(model, DCR, refined)
    geometry = stock_geometry(model, encode_pairs(model, data.training), ContrastiveConfig.of(settings))
    return model, data, refined, stored_states.compute_states(model, data, settings, geometry)


def variant(folder: Path, settings: Settings) -> dict[str, Any]:
    """Stage 2 under these settings, from the stage 1 of a run, measured on what is for development."""
    model, data, refined, states = opened(folder)
    adapters.set_adapter_weights(model, DCR, refined)
    rows = stored_states.stage2_rows(data, settings, states)
    used = {row.prompt for row in rows}
    above = steps.stage2_above(settings)
    config = SafetySFTConfig(above, settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate)
    seconds = Loop(SafetySFT("stage2", model, DCR, rows, config, settings.seed)).run().seconds
    adapters.activate(model, DCR)
    prompts = [Prompt(p.toxic, "toxic", "development") for p in data.development]
    prompts += [Prompt(p.seemingly_toxic, "seemingly_toxic", "development") for p in data.development]
    measured = measure(model, prompts, settings.answer_tokens)
    unused = [row for row in data.instructions if row.prompt not in used]
    return {
        **{label: overall_rate(measured, label) for label in ("toxic", "seemingly_toxic")},
        "discernment": discernment_intervals(measured),
        "answer_loss": answer_loss(model, unused)["answer_loss"],
        "refusals": settings.sizes["refusals"],
        "seconds": seconds,
    }


def _line(row: dict[str, Any]) -> str:
    def cell(value: float, ci95: list[float]) -> str:
        return f"{value:.2f} ({ci95[0]:.2f}-{ci95[1]:.2f})"

    found = row["discernment"]
    rates = [cell(row[label]["refusal_rate"], row[label]["ci95"]) for label in ("toxic", "seemingly_toxic")]
    both = [cell(found[key], found[f"{key}_ci95"]) for key in ("j", "auroc")]
    ends = [f"{row['answer_loss']:.3f}", f"{row['seconds']:.0f}"]
    return "| " + " | ".join([row["variant"], str(row["refusals"]), str(row["seed"]), *rates, *both, *ends]) + " |"


def main(choices: Choices) -> None:
    print("| stage 2 | refusals | seed | toxic ↑ | seemingly toxic ↓ | J ↑ | AUROC ↑ | answer loss ↓ | seconds |")
    print("|---|---|---|---|---|---|---|---|---|")
    for folder in choices.runs:
        usual = read_settings(folder)
        for name, changes in choices.named(VARIANTS):
            share = round(usual.sizes["refusals"] * changes.get("share", 1))
            settings = replace(usual, refusals=share, **{k: v for k, v in changes.items() if k != "share"})
            row = choices.stored(name, usual.seed) or choices.store(name, usual.seed, variant(folder, settings))
            print(_line(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
