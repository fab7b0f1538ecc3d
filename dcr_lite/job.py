"""The parts of a run that every recipe tells in the same order. Each does its work once: what a stopped run has
finished is taken from its folder."""

import json
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from dcr_lite import backend, distributed, loading, losses
from dcr_lite.backend import Model
from dcr_lite.chat import encode_conversations, encode_prompts
from dcr_lite.contrastive import (
    REFERENCE_PAIRS,
    Contrastive,
    contrastive_refinement,
    encode_pairs,
    first_pairs,
    layer_states,
    stock_geometry,
)  # fmt: skip
from dcr_lite.data import (
    LABELS,
    Conversation,
    Pair,
    Prompt,
    most_toxic,
    read_conversations,
    read_pairs,
    read_prompts,
    safety_mixture,
    split_by_focus,
)  # fmt: skip
from dcr_lite.discernment import MAP_PAIRS, Discernment, Discernments
from dcr_lite.errors import UserError
from dcr_lite.evaluation import Measured, measure
from dcr_lite.generation import answer
from dcr_lite.geometry import Geometry, reads_as_toxic, state_map
from dcr_lite.hidden_states import depth
from dcr_lite.losses import Loss
from dcr_lite.metrics import auroc
from dcr_lite.pictures import draw_refusal_during_sft, draw_refusal_rates, draw_refusal_scores, draw_state_map
from dcr_lite.report import method_result, model_card, read_answers, write_answers, write_report
from dcr_lite.run_folder import RunFolder, hardware, peak_memory_bytes, versions
from dcr_lite.safety_sft import SafetySFT, safety_sft
from dcr_lite.settings import Settings
from dcr_lite.terminal import stage
from dcr_lite.training import Progress

DCR, BASELINE = "dcr", "safety_sft"  # the two adapters on the one model
STOCK = "base"  # and the model without them
CURVE_PROMPTS = 16  # of each kind, watched along safety SFT: enough to see a curve, a second's work


LEAST = {
    "contrastive_steps": 1,
    "contrastive_batch": 4,  # two of each kind: below that no prompt has a positive
    "development_pairs": 1,
    "instructions": 1,
    "refusals": 0,
    "baseline_refusals": 0,
    "augmentations": 0,
    "sft_epochs": 1,
    "sft_batch": 1,
    "keep": 0,
    "rank": 1,
    "answer_tokens": 1,
}


@dataclass(frozen=True)
class Data:
    """Everything that a run trains on, watches and measures. No held-out prompt is seen before the measurement."""

    training: list[Pair]
    development: list[Pair]
    instructions: list[Conversation]  # to draw from
    refusals: list[Conversation]
    baseline_mixture: list[Conversation]  # what safety SFT alone draws
    watched: list[Prompt]  # development prompts of the three kinds
    held_out: list[Prompt]


def load_data(settings: Settings) -> Data:
    """Read and check every file; raises UserError naming file and line, or the number that is too small."""
    for name, least in LEAST.items():
        if getattr(settings, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it takes at least {least}")
    if settings.contrastive_batch < distributed.world():
        raise UserError(f"--contrastive-batch {settings.contrastive_batch}: at least one prompt for each process")
    training, development = split_by_focus(read_pairs(settings.pairs), settings.development_pairs, settings.seed)
    if not development:
        raise UserError("--development-pairs: stage 1 needs some to pick its checkpoint; 1 or more")
    instructions = read_conversations(settings.instruction_rows)
    refusals = read_conversations(settings.refusal_rows)
    safety_mixture(instructions, refusals, settings.instructions, settings.refusals, settings.seed)  # enough of them?
    n = settings.baseline_refusals
    baseline_mixture = safety_mixture(instructions, refusals, settings.instructions, n, settings.seed)
    used = {row.prompt for row in baseline_mixture}
    plain = [row.prompt for row in instructions if row.prompt not in used][:CURVE_PROMPTS]
    watched = [Prompt(p.toxic, "toxic", "development") for p in development[:CURVE_PROMPTS]]
    watched += [Prompt(p.seemingly_toxic, "seemingly_toxic", "development") for p in development[:CURVE_PROMPTS]]
    watched += [Prompt(p, "plain", "development") for p in plain]
    held_out = [row for path in settings.evaluation for row in read_prompts(path)]
    if not held_out:
        raise UserError("nothing to measure on: give at least one file with --evaluation")
    return Data(training, development, instructions, refusals, baseline_mixture, watched, held_out)


def load_model(settings: Settings) -> tuple[Model, str]:
    """The base model with both adapters on it, and where it came from in words."""
    model, source = loading.load_base(settings)
    if not 0 <= settings.layer < depth(model.network) - 1:
        raise UserError(
            f"--layer {settings.layer}: {settings.model} has {depth(model.network)} layers, so L goes from 0 to "
            f"{depth(model.network) - 2} (stage 2 trains what is above). Half the depth is a good first choice."
        )
    backend.add_adapter(model, DCR, settings.rank, settings.seed)
    backend.add_adapter(model, BASELINE, settings.rank, settings.seed)
    for config in model.network.peft_config.values():
        config.base_model_name_or_path = settings.model  # not this machine's cache: the adapter travels
    return model, source


def loss_of(settings: Settings) -> Loss:
    """The contrastive loss that the settings name."""
    if settings.paper or settings.contrastive_loss == "circle":
        return losses.circle(settings.margin, settings.scale)
    if settings.contrastive_loss == "info_nce":
        return losses.info_nce(settings.temperature)
    return losses.supervised_contrastive(settings.temperature)


def _train(
    run: RunFolder, model: Model, name: str, adapter: str, title: str, steps: int, train: Callable[..., Progress]
) -> None:
    """Run a training stage unless it is done, with its bar, its checkpoint and its adapter saved at the end."""
    folder = run.path / name
    if run.finished(name):
        backend.set_adapter_weights(model, adapter, load_file(folder / "adapter_model.safetensors"))
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


def save_adapter(model: Model, adapter: str, folder: Path) -> None:
    """An adapter as peft reads it, with the tokenizer: whole before the run takes it for done."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(backend.adapter_weights(model, adapter), folder / "adapter_model.safetensors")
    model.network.peft_config[adapter].save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def _require_room(model: Model, data: Data, settings: Settings) -> None:
    """Raises UserError for a row longer than the model's window: before the work begins, not after half of it."""
    encode_pairs(model, data.training + data.development)
    for rows in (data.baseline_mixture, data.refusals):
        encode_conversations(model.tokenizer, [r.prompt for r in rows], [r.response for r in rows], model.window)
    encode_prompts(model.tokenizer, [p.prompt for p in data.held_out], model.window - settings.answer_tokens)


def contrastive_settings(settings: Settings) -> Contrastive:
    """How stage 1 trains under these settings."""
    return Contrastive(
        layer=settings.layer,
        loss=loss_of(settings),
        centre="none" if settings.paper else settings.centre,
        whiten=settings.whiten and not settings.paper,
        steps=settings.contrastive_steps,
        batch_size=settings.contrastive_batch,
        learning_rate=settings.contrastive_learning_rate,
    )


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


def stage1_states(model: Model, data: Data, settings: Settings, geometry: Geometry) -> dict[str, torch.Tensor]:
    """What later parts read at layer L, computed once: the geometry, and the states before (STOCK) and after (DCR)
    stage 1 of the pairs that read-outs rest on, of development pairs and of held-out prompts; after stage 1 also those
    of the toxic prompts that stage 2 may draw."""
    rows = {
        "reference": first_pairs(encode_pairs(model, data.training), REFERENCE_PAIRS),
        "development": encode_pairs(model, data.development),
    }
    if data.held_out:
        rows["held_out"] = encode_prompts(model.tokenizer, [p.prompt for p in data.held_out], model.window)
    kept = {"mean": geometry.mean}
    if geometry.whitening is not None:
        kept["whitening"] = geometry.whitening
    backend.activate(model, DCR)
    kept |= {f"{DCR}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    with backend.stock(model):
        kept |= {f"{STOCK}.{name}": layer_states(model, some, settings.layer) for name, some in rows.items()}
    if settings.discerned_refusals:
        backend.activate(model, DCR)
        prompts = encode_prompts(model.tokenizer, [row.prompt for row in data.refusals], model.window)
        kept[f"{DCR}.refusals"] = layer_states(model, prompts, settings.layer)
    return {name: tensor.cpu().contiguous() for name, tensor in kept.items()}


def stage2_rows(data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> list[Conversation]:
    """What DCR's stage 2 trains on. Stage 1 leaves some toxic prompts among the seemingly toxic ones; to refuse those
    would teach the look that the two kinds share, so they are left out. ``states``: see ``stage1_states``."""
    refusals = data.refusals
    if settings.discerned_refusals:
        geometry = _geometry_of(states, settings)
        toxicity = reads_as_toxic(geometry, states[f"{DCR}.reference"], states[f"{DCR}.refusals"]).tolist()
        refusals = most_toxic(refusals, toxicity, settings.refusals)
    return safety_mixture(data.instructions, refusals, settings.instructions, settings.refusals, settings.seed)


def _geometry_of(states: dict[str, torch.Tensor], settings: Settings) -> Geometry:
    return Geometry(contrastive_settings(settings).centre, states["mean"], states.get("whitening"))


def teach_refusals(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Stage 2 on the DCR adapter."""
    rows = distributed.on_main(lambda: stage2_rows(data, settings, load_file(run.layer_states)))
    train_safety_sft(run, model, "stage2", DCR, "Stage 2: safety SFT", rows, stage2_above(settings), data, settings)


def stage2_above(settings: Settings) -> int:
    """The layer above which stage 2 of DCR trains; -1 for all layers."""
    return settings.layer if settings.sft_layers == "above" else -1


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
                with backend.stock(model):
                    measured = measure(model, own, settings.answer_tokens, shown.advance)
            else:
                backend.activate(model, method)
                measured = measure(model, own, settings.answer_tokens, shown.advance)
            measured = distributed.gathered(measured)
            if distributed.is_main():
                write_answers(measured, paths[method])
            run.finish(f"evaluate_{method}", {"seconds": time.monotonic() - started})
    return distributed.on_main(lambda: {method: read_answers(path) for method, path in paths.items()})


def fit_discernments(model: Model, data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> Discernments:
    """How to read the layer-L states of the three models: from training and development pairs alone. ``states``: see
    ``stage1_states``; they are DCR's own to the end unless stage 2 trained all layers."""
    stale = [BASELINE] if settings.sft_layers == "above" else [BASELINE, DCR]
    fresh = {
        "reference": first_pairs(encode_pairs(model, data.training), REFERENCE_PAIRS),
        "development": encode_pairs(model, data.development),
    }
    for adapter in stale:
        backend.activate(model, adapter)
        states = states | {
            f"{adapter}.{name}": layer_states(model, rows, settings.layer).cpu() for name, rows in fresh.items()
        }
    geometry = _geometry_of(states, settings)
    models = {
        name: Discernment.fit(geometry, states[f"{name}.reference"], states[f"{name}.development"])
        for name in (DCR, BASELINE, STOCK)
    }
    shown = data.development[:MAP_PAIRS]
    return Discernments(settings.layer, [p.toxic for p in shown], [p.seemingly_toxic for p in shown], models)


def _draw_states(run: RunFolder, data: Data, settings: Settings, states: dict[str, torch.Tensor]) -> None:
    kinds = np.array([p.label for p in data.held_out])
    geometry = _geometry_of(states, settings)
    maps, aurocs = {}, {}
    for title, model in (("before stage 1", STOCK), ("after stage 1", DCR)):
        maps[title] = state_map(geometry, states[f"{model}.reference"], states[f"{model}.held_out"]).double().numpy()
        sides = [maps[title][kinds == label, 0].tolist() for label in LABELS[:2]]
        aurocs[title] = auroc(*sides) if all(sides) else None
    draw_state_map(maps, kinds, aurocs, settings.layer, run.path / "state_map.png")


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
