"""``dcr-lite diagnose RUN``: what the theory says of a finished run, measured, as tables, pictures and JSON.

Development pairs and instructions are looked at, and for the lists by kind the answers that the run has kept. Every
model (stock, after stage 1, after stage 2, safety SFT alone) is kept when it is done, so that a stopped diagnosis goes
on.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from dcr_lite.diagnose.plots import COUPLINGS, STATES, draw_by_kind, draw_couplings, draw_layers
from dcr_lite.diagnose.probes import (
    by_kind,
    couplings,
    kinds_in,
    layer_geometries,
    layer_separations,
    notable,
    suggested_layer,
)
from dcr_lite.errors import UserError
from dcr_lite.files import write_json
from dcr_lite.measure.answers import read_answers
from dcr_lite.method.contrastive import GEOMETRY_PAIRS, REFERENCE_PAIRS, encode_pairs, first_pairs
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.states import last_states
from dcr_lite.names import BASELINE, DCR, NAMES
from dcr_lite.run import inputs, opening, steps, stored_states
from dcr_lite.run.plots import draw_refusal_during_sft
from dcr_lite.run.run_folder import read_settings
from dcr_lite.run.terminal import stage
from dcr_lite.settings import Settings

ADAPTERS = {"stage1": "stage1", "dcr": "adapter", "safety_sft": BASELINE}  # state -> folder in the run


def diagnose(folder: Path, pairs: int, projections: int) -> dict[str, Any]:
    """Measure a finished run and write diagnosis.json, diagnosis.md and pictures to its folder ``diagnosis``; returns
    what the JSON holds. ``pairs``: development pairs, and as many plain prompts, whose kernel is taken, with
    ``projections`` (see kernel.py)."""
    for name, value, least in (("--pairs", pairs, 2), ("--projections", projections, 2)):
        if value < least:
            raise UserError(f"{name} {value}: it takes at least {least}")
    settings = read_settings(folder)
    if not (folder / "report.json").exists():
        raise UserError(f"{folder} holds a run that is not finished: --resume it first.")
    out = folder / "diagnosis"
    out.mkdir(exist_ok=True)
    states = _states(settings, out, pairs, projections)
    answers = {name: read_answers(folder / "answers" / f"{name}.jsonl") for name in (BASELINE, DCR)}
    kinds = kinds_in(settings.evaluation)
    stock = states["stock"]
    suggested = suggested_layer(stock["separation"], stock["development_pairs"])
    diagnosis: dict[str, Any] = {
        "run": str(folder),
        "model": settings.model,
        "layer": settings.layer,
        "suggested_layer": suggested,
        "separation": {name: state["separation"] for name, state in states.items()},
        "kernel": {name: state["kernel"] for name, state in states.items()},
        "refusal_during_sft": steps.refusal_curves(folder / "metrics.jsonl"),
        "by_kind": by_kind(answers[BASELINE], answers[DCR], kinds),
        "notable": notable(answers[BASELINE], answers[DCR], kinds),
    }
    write_json(diagnosis, out / "diagnosis.json")
    draw_layers(diagnosis["separation"], settings.layer, suggested, out / "layers.png")
    draw_couplings(diagnosis["kernel"], out / "kernel.png")
    draw_refusal_during_sft(diagnosis["refusal_during_sft"], out / "refusal_during_sft.png")
    draw_by_kind(diagnosis["by_kind"], out / "by_kind.png")
    (out / "diagnosis.md").write_text(_text(diagnosis), encoding="utf-8")
    return diagnosis


def _states(settings: Settings, out: Path, pairs: int, projections: int) -> dict[str, dict[str, Any]]:
    """Separation and kernel of every state of the model, each done once."""
    asked = {"pairs": pairs, "projections": projections}
    files = {name: out / f"{name}.json" for name in STATES}
    kept = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    kept = {name: state for name, state in kept.items() if state["asked"] == asked}
    if len(kept) == len(STATES):
        return {name: kept[name] for name in STATES}
    data = inputs.load_data(settings)
    model, _ = opening.load_model(settings)
    window, how = model.window, stored_states.contrastive_settings(settings)
    training = encode_pairs(model, data.training)
    reference, unseen = first_pairs(training, REFERENCE_PAIRS), encode_pairs(model, data.development)
    plain = [p.prompt for p in data.watched if p.label == "plain"][:pairs]
    looked_at = {
        "toxic": encode_prompts(model.tokenizer, [p.toxic for p in data.development[:pairs]], window),
        "seemingly_toxic": encode_prompts(
            model.tokenizer, [p.seemingly_toxic for p in data.development[:pairs]], window
        ),
        "plain": encode_prompts(model.tokenizer, plain, window),
    }
    per_state = sum(map(len, looked_at.values())) + 1
    with stage("Diagnosis", len(STATES) * per_state) as shown:
        adapters.activate(model, DCR)  # whose first weights change nothing: the stock model, with weights to train
        geometries = layer_geometries(
            last_states(model, first_pairs(training, GEOMETRY_PAIRS))[:, :, 0], how.centre, how.whiten
        )
        for name in STATES:
            if name in kept:
                shown.advance(per_state)
                continue
            if name in ADAPTERS:
                weights = load_file(settings.run / ADAPTERS[name] / "adapter_model.safetensors")
                adapters.set_adapter_weights(model, DCR, weights)
                adapters.activate(model, DCR)
            separations = layer_separations(model, geometries, reference, unseen)
            shown.advance(1)
            kernel = couplings(model, DCR, settings.layer, looked_at, projections, shown.advance)
            kept[name] = {
                "asked": asked,
                "separation": separations,
                "development_pairs": len(data.development),
                "kernel": kernel,
            }
            write_json(kept[name], files[name])
    return {name: kept[name] for name in STATES}


# --- in words ---------------------------------------------------------------------------------------------------------


def _pair(value: list[float]) -> str:
    return f"{value[0]:.2f}" + (f" ±{value[1]:.2f}" if value[1] else "")


def _kernel_table(kernels: dict[str, dict[str, Any]]) -> str:
    """Markdown: a row a coupling and group of weights, a column a state."""
    lines = ["| moved | weights | " + " | ".join(STATES[s] for s in kernels) + " |", "|---" * (2 + len(kernels)) + "|"]
    for group, title in (("all", "all adapter layers"), ("above", "above L"), ("last_layer", "output matrix")):
        parts = [k["last_layer"] if group == "last_layer" else k["adapter"][group] for k in kernels.values()]
        for name, (a, b) in COUPLINGS.items():
            if all(b in part["means"].get(a, {}) for part in parts):
                cells = [_pair(part["means"][a][b]) for part in parts]
                lines.append(f"| {name} | {title} | " + " | ".join(cells) + " |")
        cells = [_pair(part["pair"]) for part in parts]
        lines.append(f"| a prompt by its own toxic side | {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _layers_table(separations: dict[str, list[float]]) -> str:
    lines = ["| layer | " + " | ".join(STATES[s] for s in separations) + " |", "|---" * (1 + len(separations)) + "|"]
    for i, values in enumerate(zip(*separations.values(), strict=True)):
        lines.append(f"| {i} | " + " | ".join(f"{v:.2f}" for v in values) + " |")
    return "\n".join(lines)


def _kinds_table(rows: list[dict[str, Any]]) -> str:
    lines = ["| label | kind | n | safety SFT alone | DCR |", "|---|---|---|---|---|"]
    for row in rows:
        kind = row["kind"].replace("_", " ")
        lines.append(f"| {NAMES[row['label']]} | {kind} | {row['n']} | {row['before']:.2f} | {row['after']:.2f} |")
    return "\n".join(lines)


def _prompts(rows: list[dict[str, Any]]) -> str:
    """A list of prompts, those of a kind together."""
    if not rows:
        return "None."
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return "\n".join(
        f"- {kind.replace('_', ' ')}: " + "; ".join(row["prompt"] for row in rows if row["kind"] == kind)
        for kind in kinds
    )


def _text(diagnosis: dict[str, Any]) -> str:
    """diagnosis.md."""
    kernel = diagnosis["kernel"]["stock"]
    how = "exact" if kernel["exact"] else f"± the standard error that {kernel['projections']} random projections leave"
    counts = ", ".join(f"{n} {NAMES[label]}" for label, n in kernel["prompts"].items())
    layer, suggested = diagnosis["layer"], diagnosis["suggested_layer"]
    lists = diagnosis["notable"]
    return f"""# What happened in {diagnosis["run"]}

{diagnosis["model"]}. Layers and kernel: development prompts. Refusals by kind: the run's held-out answers.

## How tightly prompts are coupled

How far a training step on one prompt moves the first token of the answer to another, against what a step on that other
prompt itself does: ||K(x', x)|| / ||K(x', x')||, the empirical neural tangent kernel of the first token. Lower is less
spill-over. {counts} prompts; {how}.
With respect to the output matrix alone it is the likeness of last states, exact. The adapter of the stock model is a
fresh one, of which only one half (B) moves at first.

{_kernel_table(diagnosis["kernel"])}

![Kernel similarity](kernel.png)

## Where the two kinds can be told apart

AUROC of development pairs at each layer, along the difference of the means of training pairs in the stock model's
geometry. L is {layer}; the stock model suggests {suggested}, the lowest layer within a standard error of its best.

![Separability by layer](layers.png)

{_layers_table(diagnosis["separation"])}

## How refusal is learnt

![Refusal probability along safety SFT](refusal_during_sft.png)

## Whom it helped

![Refusal rates by kind](by_kind.png)

{_kinds_table(diagnosis["by_kind"])}

Still refused, and not toxic:

{_prompts(lists["still_refused"])}

Refused by safety SFT alone and answered by DCR, most helped first:

{_prompts(lists["helped"])}

{len(lists["lost"])} toxic prompts that safety SFT alone refuses are answered by DCR; they stand in diagnosis.json.
"""
