"""What stage 1's defaults rest on: separation of development pairs (AUROC of the read-out) after each variant.

    python benchmarks/stage1_choices.py                      # all variants, seed 0, about two minutes each on two cores
    python benchmarks/stage1_choices.py --only circle layer  # those whose name contains one of the words

One line a variant. Development pairs share no focus word with the pairs that stage 1 trains on; the held-out part stays
out of it. Results are kept in --json, and variants found there are not run again.
"""

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))  # recipes/ is no package

from recipes.smollm2_135m import SETTINGS

VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "supervised contrastive, temperature 1": {"temperature": 1.0},
    "supervised contrastive, temperature 0.2": {"temperature": 0.2},
    "supervised contrastive, temperature 0.1": {"temperature": 0.1},
    "info nce": {"contrastive_loss": "info_nce"},
    "circle": {"contrastive_loss": "circle"},
    "not whitened": {"whiten": False},
    "centred by the stock mean": {"centre": "stock"},
    "centred by the stock mean, not whitened": {"centre": "stock", "whiten": False},
    "the paper's (circle, raw states)": {"paper": True},
    "layer 10": {"layer": 10},
    "layer 20": {"layer": 20},
    "half the learning rate": {"contrastive_learning_rate": SETTINGS.contrastive_learning_rate / 2},
    "twice the learning rate": {"contrastive_learning_rate": SETTINGS.contrastive_learning_rate * 2},
    "batch of 64": {"contrastive_batch": 64},
    "half the steps": {"contrastive_steps": SETTINGS.contrastive_steps // 2},
}


@dataclass
class Choices:
    """What to run."""

    only: tuple[str, ...] = ()
    """Run only variants whose name contains one of these words."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the adapter, the split and the order of pairs."""
    json: Path = Path("runs/stage1_choices.json")
    """Where results are kept."""


def main(choices: Choices) -> None:
    from dcr_lite import backend, job
    from dcr_lite.contrastive import contrastive_refinement

    choices.json.parent.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = json.loads(choices.json.read_text()) if choices.json.exists() else []
    print("| variant | seed | stock | best | at step | last | seconds |\n|---|---|---|---|---|---|---|")
    for seed in choices.seeds:
        model, fresh = None, {}
        for name, changes in VARIANTS.items():
            if choices.only and not any(word in name for word in choices.only):
                continue
            row = next((r for r in results if (r["variant"], r["seed"]) == (name, seed)), None)
            if row is None:
                settings = replace(SETTINGS, seed=seed, **changes)
                data = job.load_data(settings)
                if model is None:
                    model, _ = job.load_model(settings)
                    fresh = backend.adapter_weights(model, job.DCR)
                backend.set_adapter_weights(model, job.DCR, fresh)
                how = job.contrastive_settings(settings)
                done = contrastive_refinement(model, job.DCR, data.training, data.development, how, seed)
                seen = [m["development_auroc"] for m in done.metrics if "development_auroc" in m]
                row = {"variant": name, "seed": seed, "development_auroc": seen, "best": done.best}
                row |= {"best_step": done.best_step, "seconds": done.seconds}
                results.append(row)
                choices.json.write_text(json.dumps(results, indent=1))
            seen = row["development_auroc"]
            print(
                f"| {name} | {seed} | {seen[0]:.3f} | {row['best']:.3f} | {row['best_step']} | {seen[-1]:.3f} | "
                f"{row['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main(tyro.cli(Choices, description=__doc__))
