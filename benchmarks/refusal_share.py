"""The trade-off of both methods: what each refuses as the share of refusals in safety SFT grows.

    python benchmarks/refusal_share.py                  # on development pairs: the recipe's shares come from here
    python benchmarks/refusal_share.py --held-out       # the same points on the held-out part: nothing is chosen there
    python benchmarks/refusal_share.py --folder runs/twice --settings.instructions 288 --settings.sft-epochs 2

Stage 1 runs once a seed. Every point is kept, so an interrupted sweep goes on where it stopped.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

sys.path.insert(0, str(Path(__file__).parent.parent))  # recipes/ is no package
sys.path.insert(0, str(Path(__file__).parent))

from seeds import gains_table

from dcr_lite.settings import Settings
from recipes.smollm2_135m import SETTINGS


@dataclass
class Sweep:
    """What to sweep."""

    dcr: tuple[int, ...] = (48, 64, 80)
    """Refusals in DCR's stage 2."""
    safety_sft: tuple[int, ...] = (96, 128, 160)
    """Refusals in safety SFT alone."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the adapter, the split and the order of rows."""
    held_out: bool = False
    """Show the held-out part instead of the development pairs; every point is measured on both."""
    folder: Path = Path("runs/refusal_share")
    """Where points and pictures are kept: one folder for one set of settings."""
    settings: Settings = field(default_factory=lambda: SETTINGS)
    """The recipe's own; shares and seed come from the sweep."""


def main(sweep: Sweep) -> None:
    import torch

    from dcr_lite import backend, job
    from dcr_lite.contrastive import contrastive_refinement, encode_pairs, stock_geometry
    from dcr_lite.data import Prompt, safety_mixture
    from dcr_lite.evaluation import measure
    from dcr_lite.report import method_result
    from dcr_lite.safety_sft import SafetySFT, safety_sft
    from dcr_lite.training import save_whole

    sweep.folder.mkdir(parents=True, exist_ok=True)
    _require_same_settings(sweep)
    kept = sweep.folder / "points.json"
    points: list[dict[str, Any]] = json.loads(kept.read_text()) if kept.exists() else []
    for seed in sweep.seeds:
        settings = replace(sweep.settings, seed=seed)
        wanted = [(m, n) for m, shares in (("dcr", sweep.dcr), ("safety_sft", sweep.safety_sft)) for n in shares]
        wanted = [w for w in wanted if not any((p["method"], p["refusals"], p["seed"]) == (*w, seed) for p in points)]
        if not wanted:
            continue
        data = job.load_data(settings)
        model, _ = job.load_model(settings)
        development = [Prompt(p.toxic, "toxic", "development") for p in data.development]
        development += [Prompt(p.seemingly_toxic, "seemingly_toxic", "development") for p in data.development]
        development += [p for p in data.watched if p.label == "plain"]
        prompts = {"development": development, "held_out": data.held_out}
        fresh = {name: backend.adapter_weights(model, name) for name in (job.DCR, job.BASELINE)}
        stage1 = sweep.folder / f"stage1_{seed}.pt"
        if not stage1.exists():
            how = job.contrastive_settings(settings)
            geometry = stock_geometry(model, encode_pairs(model, data.training), how)
            done = contrastive_refinement(model, job.DCR, data.training, data.development, how, seed, geometry)
            print(f"seed {seed}: stage 1 took {done.seconds:.0f} s, unseen pairs AUROC {done.best:.3f}", flush=True)
            states = job.stage1_states(model, data, settings, geometry)
            save_whole({"weights": backend.adapter_weights(model, job.DCR), "states": states}, stage1)
        refined = torch.load(stage1, weights_only=True)
        start = {job.DCR: refined["weights"], job.BASELINE: fresh[job.BASELINE]}
        for method, n in wanted:
            backend.set_adapter_weights(model, method, start[method])
            if method == job.DCR:
                rows = job.stage2_rows(data, replace(settings, refusals=n), refined["states"])
            else:
                rows = safety_mixture(data.instructions, data.refusals, settings.instructions, n, seed)
            above, keep = (job.stage2_above(settings), settings.keep) if method == job.DCR else (-1, 0.0)
            how_sft = SafetySFT(above, settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate, keep)
            seconds = safety_sft(model, method, rows, how_sft, seed).seconds
            backend.activate(model, method)
            point: dict[str, Any] = {"method": method, "refusals": n, "seed": seed, "seconds": seconds}
            for part, asked in prompts.items():
                point[part] = method_result(measure(model, asked, settings.answer_tokens))
            points.append(point)
            kept.write_text(json.dumps(points, indent=1))
            print(f"seed {seed}, {method}, {n} refusals, {seconds:.0f} s: {_line(point['development'])}", flush=True)
    part = "held_out" if sweep.held_out else "development"
    show(points, part, sweep.folder)
    shares = {"dcr": sweep.settings.refusals, "safety_sft": sweep.settings.baseline_refusals}
    usual: dict[int, dict[str, Any]] = {}
    for p in sorted(points, key=lambda p: p["seed"]):
        if p["refusals"] == shares[p["method"]]:
            usual.setdefault(p["seed"], {})[p["method"]] = p[part]
    usual = {seed: methods for seed, methods in usual.items() if len(methods) == 2}
    if usual:
        print(f"\nThe recipe's shares, {shares['dcr']} and {shares['safety_sft']}:\n\n{gains_table(usual)}")


def _require_same_settings(sweep: Sweep) -> None:
    """One folder holds points of one set of settings; others would stand in its table unseen."""
    varied = ("seed", "refusals", "baseline_refusals", "run")
    now = {k: v for k, v in sweep.settings.for_json().items() if k not in varied}
    kept = sweep.folder / "settings.json"
    before = json.loads(kept.read_text()) if kept.exists() else now
    changed = [k for k in now if before.get(k) != now[k]]
    if changed:
        sys.exit(f"{sweep.folder} holds points of other settings ({', '.join(changed)}). Choose another --folder.")
    kept.write_text(json.dumps(now, indent=1))


def _line(result: dict[str, Any]) -> str:
    rates = "  ".join(f"{label} {r['refusal_rate']:.2f}" for label, r in result["overall"].items())
    return f"{rates}  J {result['discernment']['j']:.2f}  AUROC {result['discernment']['auroc']:.2f}"


def show(points: list[dict[str, Any]], part: str, folder: Path) -> None:
    """The table in Markdown, and the trade-off as a picture: one point a share, one line a method and seed."""
    from matplotlib import pyplot as plt

    from dcr_lite.pictures import METHODS, STYLE

    print("\n| method | refusals | seed | toxic ↑ | seemingly toxic ↓ | plain ↓ | J ↑ | AUROC ↑ |")
    print("|---|---|---|---|---|---|---|---|")
    points = sorted(points, key=lambda p: (p["method"], p["refusals"], p["seed"]))
    for p in points:
        p |= p[part]
        rates = [p["overall"][label] for label in ("toxic", "seemingly_toxic", "plain")]
        cells = [f"{r['refusal_rate']:.2f} ({r['ci95'][0]:.2f}-{r['ci95'][1]:.2f})" for r in rates]
        numbers = [f"{p['discernment'][k]:.2f}" for k in ("j", "auroc")]
        print("| " + " | ".join([METHODS[p["method"]], str(p["refusals"]), str(p["seed"]), *cells, *numbers]) + " |")
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(5.4, 4.6))
        axes.plot([0, 1], [1, 0], ":", color="#bbbbbb", lw=1)  # no discernment: both kinds refused alike
        seeds = sorted({p["seed"] for p in points})
        for method, colour in (("safety_sft", "#7f8c8d"), ("dcr", "#1e8449")):
            for seed in seeds:
                line = [p for p in points if (p["method"], p["seed"]) == (method, seed)]
                x = [1 - p["overall"]["seemingly_toxic"]["refusal_rate"] for p in line]
                y = [p["overall"]["toxic"]["refusal_rate"] for p in line]
                axes.plot(x, y, "o-", color=colour, ms=5, label=METHODS[method] if seed == seeds[0] else None)
                for p, a, b in zip(line, x, y, strict=True):
                    axes.annotate(str(p["refusals"]), (a, b), xytext=(4, 4), textcoords="offset points", fontsize=8)
        axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set(xlabel="answers what only sounds toxic", ylabel="refuses what is toxic")
        axes.set_title("Each point: so many refusals in safety SFT", loc="left")
        axes.legend(loc="lower left")
        picture = folder / f"{part}.png"
        figure.savefig(picture, facecolor="white")
    print(f"\n{picture}")


if __name__ == "__main__":
    main(tyro.cli(Sweep, description=__doc__))
