"""What stage 2's defaults rest on: answers to development pairs after each variant of it, from the same stage 1.

    python benchmarks/stage2_choices.py --runs runs/compare/seed0 runs/compare/seed1 runs/compare/seed2

Each run folder holds a finished stage 1 of its own seed. One line per variant and seed: refusal rates on the
development pairs, J and the AUROC of the log-odds of opening with a refusal. Then the model's voice: the median length
of answers to instructions that no variant trains on, in words; the log-probability of the stock model's own answers to
these under the model, and the divergence from the stock model on them, in nats per token; the divergence on its answers
to seemingly toxic prompts. The held-out prompts are not used.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import _choices
import tyro
import voice
from _kept import digest_of, require_same
from safetensors.torch import load_file

from dcr_lite.data.rows import prompts_of
from dcr_lite.files import load_jsonl, write_jsonl
from dcr_lite.measure.answers import discernment_intervals, measure, overall_rate
from dcr_lite.measure.metrics import with_interval
from dcr_lite.method.contrastive import ContrastiveConfig, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR
from dcr_lite.run import inputs, opening, own_voice, steps, stored_states
from dcr_lite.run.run_folder import read_settings
from dcr_lite.settings import Settings

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "all layers": {"sft_layers": "all"},
    "refusals drawn from all": {"discerned_refusals": False},
    "a quarter of the refusals": {"share": 0.25},
    "half of the refusals": {"share": 0.5},
    "a half more refusals": {"share": 1.5},
    "given answers": {"answers": "given"},
    "its own answers": {"answers": "own"},
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
    # With the first weights of the layers above L, which are not in the file: else each variant but the first would
    # begin with what the one before it has learnt in lora_A.
    refined = adapters.adapter_weights(model, DCR) | load_file(folder / "stage1" / adapters.WEIGHTS)
    adapters.set_adapter_weights(model, DCR, refined)
    geometry = stock_geometry(model, encode_pairs(model, data.training), ContrastiveConfig.of(settings))
    return model, data, refined, stored_states.compute_states(model, data, settings, geometry)


@lru_cache(maxsize=1)
def voice_of_stock(folder: Path) -> voice.Answers:
    """The stock model's answers to prompts that are not trained on, by kind."""
    model, data, *_ = opened(folder)
    used = {row.prompt for row in data.baseline_mixture}
    prompts = {
        "plain": [row.prompt for row in data.instructions if row.prompt not in used],
        "seemingly_toxic": [pair.seemingly_toxic for pair in data.development],
    }
    return voice.of_stock(model, prompts)


def in_own_voice(model: Model, data: inputs.Data, settings: Settings, path: Path) -> inputs.Data:
    """``data`` with the stock model's answers, which are kept in ``path``."""
    order = own_voice.candidates(model, data, settings.seed, model.window)
    rows, wanted = load_jsonl(path) if path.exists() else [], settings.sizes["instructions"]
    rows = own_voice.answers_of(
        model, order, wanted, settings.answer_tokens, rows, lambda some: write_jsonl(some, path)
    )
    return replace(data, instructions=own_voice.learnt(order, rows))


def variant(folder: Path, settings: Settings, own_answers: Path, checkpoint: Path) -> dict[str, Any]:
    """Stage 2 under these settings, from the stage 1 of a run, measured on what is for development. A training that was
    stopped goes on from the checkpoint."""
    model, data, refined, states = opened(folder)
    stock = voice_of_stock(folder)
    adapters.set_adapter_weights(model, DCR, refined)
    chosen = in_own_voice(model, data, settings, own_answers) if settings.answers == "own" else data
    rows = stored_states.stage2_rows(chosen, settings, states)
    above = steps.stage2_above(settings)
    config = SafetySFTConfig(above, settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    seconds = Loop(SafetySFT("stage2", model, DCR, rows, config, settings.seed), checkpoint).run().seconds
    adapters.activate(model, DCR)
    measured = measure(model, prompts_of(data.development, "development"), settings.answer_tokens)
    return {
        **{label: overall_rate(measured, label) for label in ("toxic", "seemingly_toxic")},
        "discernment": discernment_intervals(measured),
        "voice": voice.voice(model, stock),
        "refusals": settings.sizes["refusals"],
        "seconds": seconds,
    }


def _line(row: dict[str, Any]) -> str:
    found = row["discernment"]
    rates = [with_interval(row[label]["refusal_rate"], row[label]["ci95"]) for label in ("toxic", "seemingly_toxic")]
    both = [with_interval(found[key], found[f"{key}_ci95"]) for key in ("j", "auroc")]
    said = row["voice"]
    words = f"{said['words']:.0f} of {said['stock_words']:.0f}"
    near = f"{said['plain_log_probability']:.2f} of {said['plain_stock_log_probability']:.2f}"
    apart = [f"{said[f'{kind}_divergence']:.3f}" for kind in ("plain", "seemingly_toxic")]
    ends = [words, near, *apart, f"{row['seconds']:.0f}"]
    return "| " + " | ".join([row["variant"], str(row["refusals"]), str(row["seed"]), *rates, *both, *ends]) + " |"


def main(choices: Choices) -> None:
    print(
        "| stage 2 | refusals | seed | toxic ↑ | seemingly toxic ↓ | J ↑ | AUROC ↑ | words | log-probability ↑ "
        "| divergence, plain ↓ | divergence, seemingly toxic ↓ | seconds |"
    )
    print("|---" * 12 + "|")
    for folder in choices.runs:
        usual = read_settings(folder)
        for name, changes in choices.named(VARIANTS):
            share = round(usual.sizes["refusals"] * changes.get("share", 1))
            settings = replace(usual, refusals=share, **{k: v for k, v in changes.items() if k != "share"})
            of = digest_of(settings, *settings.files.values())
            own = choices.json.with_name(f"own_answers_{usual.seed}.jsonl")
            require_same(own, usual, *usual.files.values())
            found = choices.stored(name, usual.seed, of)
            checkpoint = choices.checkpoint(name, usual.seed, of)
            row = found or choices.store(name, usual.seed, of, variant(folder, settings, own, checkpoint))
            print(_line(row), flush=True)


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
