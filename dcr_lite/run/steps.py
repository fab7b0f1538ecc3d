"""The steps that every recipe calls, in their order. Each is done once: a run that goes on takes what is finished from
its folder."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from dcr_lite.data.rows import Conversation
from dcr_lite.measure.answers import Measured, measure, method_result, read_answers, write_answers
from dcr_lite.method.contrastive import (
    contrastive_refinement,
    encode_pairs,
    stock_geometry,
)
from dcr_lite.method.loop import Progress
from dcr_lite.method.safety_sft import SafetySFT, safety_sft
from dcr_lite.model import adapters, distributed
from dcr_lite.model.adapters import save_adapter
from dcr_lite.model.chat import encode_conversations, encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, DCR, LABELS, STOCK
from dcr_lite.run.inputs import Data
from dcr_lite.run.machine import hardware, peak_memory_bytes, versions
from dcr_lite.run.plots import draw_refusal_during_sft, draw_refusal_rates, draw_refusal_scores
from dcr_lite.run.report import model_card, write_report
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.stored_states import (
    _draw_states,
    contrastive_settings,
    fit_discernments,
    stage1_states,
    stage2_above,
    stage2_rows,
)
from dcr_lite.run.terminal import stage
from dcr_lite.settings import Settings


def _train(
    run: RunFolder, model: Model, name: str, adapter: str, title: str, steps: int, train: Callable[..., Progress]
) -> None:
    """Run a training stage unless it is done, with its bar, its checkpoint and its adapter saved at the end."""
    folder = run.path / name
    if run.finished(name):
        adapters.set_adapter_weights(model, adapter, load_file(folder / "adapter_model.safetensors"))
        return
    model.tokens_per_pass = model.tokens_in.get(name, model.tokens_per_pass)
    with stage(title, steps) as shown:

        def told(row: dict[str, Any]) -> None:
            run.log(row)
            shown.row(row)

        progress = train(checkpoint=run.checkpoint(name), report=told)
    if distributed.is_main():
        save_adapter(model, adapter, folder)
    facts = {"seconds": progress.seconds, "best_step": progress.best_step, "best": progress.best}
    run.finish(name, facts | {"peak_memory_bytes": peak_memory_bytes()})


def _require_room(model: Model, data: Data, settings: Settings) -> None:
    """Raises UserError for a row longer than the model's window: before the work begins, not after half of it."""
    encode_pairs(model, data.training + data.development)
    for rows in (data.baseline_mixture, data.refusals):
        encode_conversations(model.tokenizer, [r.prompt for r in rows], [r.response for r in rows], model.window)
    encode_prompts(model.tokenizer, [p.prompt for p in data.held_out], model.window - settings.answer_tokens)


def refine(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Stage 1 on the DCR adapter."""
    _require_room(model, data, settings)
    how = contrastive_settings(settings)

    states_file = run.layer_states
    done = run.finished("stage1") and states_file.exists()
    geometry = None if done else stock_geometry(model, encode_pairs(model, data.training), how)

    def train(**kwargs: Any) -> Progress:
        return contrastive_refinement(
            model, DCR, data.training, data.development, how, settings.seed, geometry, **kwargs
        )

    _train(run, model, "stage1", DCR, "Stage 1: contrastive", how.steps, train)
    if geometry and distributed.is_main():
        partial = states_file.with_suffix(".partial")  # whole or absent, whenever the machine stops
        save_file(stage1_states(model, data, settings, geometry), partial)
        partial.replace(states_file)


def teach_refusals(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Stage 2 on the DCR adapter."""
    rows = distributed.on_main(lambda: stage2_rows(data, settings, load_file(run.layer_states)))
    train_safety_sft(run, model, "stage2", DCR, "Stage 2: safety SFT", rows, stage2_above(settings), data, settings)


def teach_refusals_alone(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Safety SFT of the stock model, on all layers: what DCR is compared with."""
    train_safety_sft(run, model, BASELINE, BASELINE, "Safety SFT alone", data.baseline_mixture, -1, data, settings)


def train_safety_sft(
    run: RunFolder, model: Model, name: str, adapter: str, title: str, rows: list[Conversation], above: int,
    data: Data, settings: Settings,
) -> None:  # fmt: skip
    """Safety SFT on ``rows`` of an adapter above layer ``above`` (-1: all layers), as the part ``name`` of the run."""
    keep = settings.keep if adapter == DCR else 0.0
    how = SafetySFT(above, settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate, keep)
    watched = encode_prompts(model.tokenizer, [p.prompt for p in data.watched], model.window)

    def observe(step: int) -> dict[str, Any]:
        odds = torch.tensor([a.refusal_log_odds for a in answer(model, watched, max_new_tokens=0)])
        labels = [p.label for p in data.watched]
        return {
            label: odds[[i for i, other in enumerate(labels) if other == label]].sigmoid().mean().item()
            for label in dict.fromkeys(labels)
        }

    def train(**kwargs: Any) -> Progress:
        return safety_sft(model, adapter, rows, how, settings.seed, name=name, observe=observe, **kwargs)

    steps = settings.sft_epochs * -(-len(rows) // settings.sft_batch)
    _train(run, model, name, adapter, title, steps, train)


def evaluate(run: RunFolder, model: Model, data: Data, settings: Settings) -> dict[str, list[Measured]]:
    """Answers of the stock model, of safety SFT alone and of DCR to every held-out prompt, judged."""
    methods = (STOCK, BASELINE, DCR)
    paths = {method: run.path / "answers" / f"{method}.jsonl" for method in methods}
    own = distributed.share(data.held_out)
    with stage("Evaluation", max(1, len(methods) * len(own))) as shown:
        for method in methods:
            if run.finished(f"evaluate_{method}"):
                shown.advance(len(own))
                continue
            started = time.monotonic()
            if method == STOCK:
                with adapters.stock(model):
                    measured = measure(model, own, settings.answer_tokens, shown.advance)
            else:
                adapters.activate(model, method)
                measured = measure(model, own, settings.answer_tokens, shown.advance)
            measured = distributed.gathered(measured)
            if distributed.is_main():
                write_answers(measured, paths[method])
            run.finish(f"evaluate_{method}", {"seconds": time.monotonic() - started})
    return distributed.on_main(lambda: {method: read_answers(path) for method, path in paths.items()})


def refusal_curves(metrics: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Mean refusal probability by method, label and step, from the tidy metrics.jsonl of a run."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {BASELINE: {}, DCR: {}}
    for line in metrics.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        method = {"stage2": DCR, BASELINE: BASELINE}.get(row["stage"])
        for label in LABELS:
            if method and label in row:
                curves[method].setdefault(label, []).append((row["step"], row[label]))
    return curves


def write_up(
    run: RunFolder, model: Model, source: str, data: Data, settings: Settings, answers: dict[str, list[Measured]]
) -> dict[str, Any]:
    """report.json, report.md, the pictures and the model card; returns the report."""
    return distributed.on_main(lambda: _write_up(run, model, source, data, settings, answers))


def _write_up(
    run: RunFolder, model: Model, source: str, data: Data, settings: Settings, answers: dict[str, list[Measured]]
) -> dict[str, Any]:
    started = time.monotonic()
    results = {method: method_result(measured) for method, measured in answers.items()}
    rates = {method: result["overall"] for method, result in results.items()}
    draw_refusal_rates(rates, run.path / "refusal_rates.png")
    scores = {
        method: {label: [r["refusal_log_odds"] for r in measured if r["label"] == label] for label in LABELS}
        for method, measured in answers.items()
    }
    aurocs = {method: result["discernment"]["auroc"] for method, result in results.items()}
    draw_refusal_scores(scores, aurocs, run.path / "refusal_scores.png")
    run.tidy_metrics()
    draw_refusal_during_sft(refusal_curves(run.metrics), run.path / "refusal_during_sft.png")
    states = load_file(run.layer_states)
    _draw_states(run, data, settings, states)

    done = {name: run.finished(name) or {} for name in ("stage1", "stage2", BASELINE)}
    seconds = {name: float(result.get("seconds", 0)) for name, result in done.items()}
    seconds["evaluate"] = sum(float((run.finished(f"evaluate_{m}") or {}).get("seconds", 0)) for m in answers)
    seconds["draw"] = time.monotonic() - started
    seconds["total"] = run.seconds()
    report = {
        "recipe": Path(sys.argv[0]).stem,
        "model": settings.model,
        "source": source,
        "four_bit": model.four_bit,
        "seed": settings.seed,
        "methods": results,
        "stage1": {k: done["stage1"].get(k) for k in ("best", "best_step")},
        "data": {
            "pairs": len(data.training),
            "development_pairs": len(data.development),
            "instructions": settings.instructions,
            "refusals": settings.refusals,
            "baseline_refusals": settings.baseline_refusals,
        },
        "seconds": seconds,
        "peak_memory_bytes": peak_memory_bytes(),
        "hardware": hardware(model.device),
        "processes": distributed.world(),
        "versions": versions(),
        "settings": settings.for_json(),
    }
    save_adapter(model, DCR, run.path / "adapter")
    fit_discernments(model, data, settings, states).save(run.path / "adapter")
    (run.path / "adapter" / "README.md").write_text(model_card(report, "adapter"), encoding="utf-8")
    write_report(report, shlex.join(["python", *sys.argv]), run.path / "report.md")
    run.close(report)
    return report
