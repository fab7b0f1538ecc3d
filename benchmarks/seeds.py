"""Several finished runs of one recipe in one table: what differs between seeds, and the gain of DCR in each.

for seed in 0 1 2; do python recipes/smollm2_135m.py --seed $seed --run runs/seed$seed; done
python benchmarks/seeds.py --runs runs/seed0 runs/seed1 runs/seed2
"""

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import tyro


@dataclass
class Seeds:
    """What to compare."""

    runs: tuple[Path, ...]
    """Finished run folders."""


def gains_table(methods: dict[int, dict[str, Any]]) -> str:
    """What DCR gains over safety SFT alone, by seed, from {seed: {method: result}}, as a Markdown table."""
    gains = []
    for results in methods.values():
        sft, dcr = results["safety_sft"], results["dcr"]
        sft_rate, dcr_rate = ({k: v["refusal_rate"] for k, v in r["overall"].items()} for r in (sft, dcr))
        compliance = sft_rate["seemingly_toxic"] - dcr_rate["seemingly_toxic"]
        safety = dcr_rate["toxic"] - sft_rate["toxic"]
        gains.append((compliance, safety, dcr["discernment"]["auroc"] - sft["discernment"]["auroc"]))
    lines = [
        "| DCR against safety SFT alone | " + " | ".join(f"seed {seed}" for seed in methods) + " | mean |",
        "|---" * (len(methods) + 2) + "|",
    ]
    names = ("compliance on seemingly toxic prompts", "refusal of toxic prompts", "AUROC")
    for name, values in zip(names, zip(*gains, strict=True), strict=True):
        lines.append(f"| {name} | " + " | ".join(f"{v:+.2f}" for v in values) + f" | {mean(values):+.2f} |")
    return "\n".join(lines)


def main(seeds: Seeds) -> None:
    reports = [json.loads((run / "report.json").read_text()) for run in seeds.runs]
    print("| seed | model | toxic ↑ | seemingly toxic ↓ | plain ↓ | J ↑ | AUROC ↑ |\n|---|---|---|---|---|---|---|")
    for report in reports:
        for method, result in report["methods"].items():
            rates = [result["overall"][label] for label in ("toxic", "seemingly_toxic", "plain")]
            cells = [f"{r['refusal_rate']:.2f} ({r['ci95'][0]:.2f}-{r['ci95'][1]:.2f})" for r in rates]
            numbers = [f"{result['discernment'][key]:.2f}" for key in ("j", "auroc")]
            print("| " + " | ".join([str(report["seed"]), method, *cells, *numbers]) + " |")
    print("\n" + gains_table({report["seed"]: report["methods"] for report in reports}))
    minutes = ", ".join(f"{r['seconds']['total'] / 60:.1f}" for r in reports)
    memory = max(r["peak_memory_bytes"] for r in reports) / 1e9
    print(f"\nMinutes: {minutes}. Peak memory: at most {memory:.1f} GB. {reports[0]['hardware']}.")


if __name__ == "__main__":
    main(tyro.cli(Seeds, description=__doc__))
