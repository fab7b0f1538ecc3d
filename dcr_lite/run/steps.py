"""The steps that every recipe calls, in their order. Each is done once: a run that goes on takes what is finished from
its folder."""

import contextlib
import time
from pathlib import Path
from typing import Any

import torch

from dcr_lite.data.rows import Conversation, Prompt
from dcr_lite.files import damaged, load_tensors, sha256_of, write_text
from dcr_lite.measure.answers import Measured, measure, method_result, read_answers, write_answers
from dcr_lite.measure.trade_off import Goal
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.dial_fitting import PAIRS
from dcr_lite.method.loop import Loop, Stage
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters, distributed
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.free_memory import empty_cache
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE, DCR, STOCK, models_of
from dcr_lite.run import dial, found_settings, long_rows
from dcr_lite.run.begun_answers import refusals_behind_answers
from dcr_lite.run.caution import caution_of
from dcr_lite.run.dial_report import chosen_sentence
from dcr_lite.run.inputs import AnySettings, Data, require_work
from dcr_lite.run.kept import kept_of, measure_kept
from dcr_lite.run.machine import peak_memory_bytes
from dcr_lite.run.model_card import model_card
from dcr_lite.run.own_voice import in_own_voice
from dcr_lite.run.plots import draw_run
from dcr_lite.run.report import run_report, write_report
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.same_numbers import note_numbers, require_same_numbers
from dcr_lite.run.second_turns import with_second_turns
from dcr_lite.run.stored_states import (
    dial_readers,
    draw_states,
    fit_discernments,
    load_states,
    reads_for_dial,
    stage2_rows,
    store_states,
)
from dcr_lite.run.terminal import ProgressBar, progress_bar, show_line
from dcr_lite.settings import Settings

ALL_LAYERS = -1  # where safety SFT names the layer above which it trains


def find_settings(run: RunFolder, model: Model, data: Data, settings: AnySettings) -> AnySettings:
    """The settings with everything that was not set, found by evidence; the model knows how it refuses by itself.
    Raises UserError where the run was begun in other numbers than the model's."""
    require_same_numbers(run, model)
    note_numbers(run, model)
    found = found_settings.found(run, model, data, settings)
    model.openings = tuple(found["openings"])
    settings = found_settings.as_found(settings, found)
    require_work(settings)
    return settings


def set_dial(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Choose how much DCR refuses, by development prompts, and put that into its adapter."""
    if settings.dial == "none":
        return
    if not (run.finished("dial") and dial.is_there(run.path)):  # a damaged one is deleted to be fitted again
        started = time.monotonic()
        goal = Goal(settings.dial)  # type: ignore[arg-type]  # what was found is never auto

        def find() -> None:
            setting = dial.find_setting(run.path, model, data, settings, goal, dial_readers(run))
            dial.record(run.path, setting)
            show_line(chosen_sentence(setting))

        distributed.on_main(find)
        run.finish("dial", {"seconds": time.monotonic() - started})
    dial.restore(model, run.path)


def refine(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Stage 1, contrastive refinement, on the DCR adapter; keeps what later steps read at layer L."""
    dial.prepare(model, settings)
    model.plan_passes("stage1")  # first: what comes later goes through in the same passes where this is done
    if run.finished("stage1") and run.layer_states.exists():
        return restore(run, model, "stage1", DCR)
    config = ContrastiveConfig.of(settings)
    geometry = stock_geometry(model, encode_pairs(model, data.training), config)
    last = PAIRS if reads_for_dial(settings) else 0
    stage1 = ContrastiveRefinement(model, DCR, data.training, data.development, config, geometry, settings.seed, last)
    train(run, stage1, "Stage 1: contrastive", settings.patience, settings.contrastive_share or 1.0)
    return distributed.on_main(lambda: store_states(run, model, data, settings, geometry, stage1.states))


def teach_refusals(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Stage 2, safety SFT, on the DCR adapter; nothing where the settings leave it out."""
    if settings.stage2 == "no":
        return
    data = in_own_voice(run, model, data, settings)
    rows = distributed.on_main(lambda: rows_of_stage2(run, model, data, settings))
    train_safety_sft(run, model, "stage2", DCR, "Stage 2: safety SFT", rows, stage2_above(settings), data, settings)


def rows_of_stage2(run: RunFolder, model: Model, data: Data, settings: Settings) -> list[Conversation]:
    """What DCR's stage 2 learns."""
    rows = stage2_rows(data, settings, load_states(run))
    if settings.begun_refusals:
        rows = rows + refusals_behind_answers(model, rows, settings)
    rows = rows + data.joined_refusals  # last: the stock model refuses these, and has begun no answer to them
    if settings.second_turns:
        most = long_rows.longest_row(run, model)
        rows = with_second_turns(model.tokenizer, rows, settings.second_turns, settings.seed, most)
    return rows


def teach_refusals_alone(run: RunFolder, model: Model, data: Data, settings: Settings) -> None:
    """Safety SFT of the stock model, on all layers: a baseline to compare DCR with, where it is asked for. It learns
    nothing that has joined: of the user's prompts it could take those to refuse alone."""
    if BASELINE not in settings.compare_with:
        return
    rows = in_own_voice(run, model, data, settings).baseline_mixture
    train_safety_sft(run, model, BASELINE, BASELINE, "Safety SFT alone", rows, ALL_LAYERS, data, settings)


def stage2_above(settings: Settings) -> int:
    """The layer above which stage 2 of DCR trains."""
    return settings.layer if settings.sft_layers == "above" else ALL_LAYERS


def train_safety_sft(
    run: RunFolder, model: Model, name: str, adapter: str, title: str, rows: list[Conversation], above: int,
    data: Data, settings: Settings,
) -> None:  # fmt: skip
    """Safety SFT on ``rows`` of an adapter above layer ``above``, as the part ``name`` of the run."""
    model.plan_passes(name)
    if run.finished(name):
        return restore(run, model, name, adapter)
    config = SafetySFTConfig(above, settings.sft_epochs, settings.sft_batch, settings.sft_learning_rate)
    watched = encode_asked(model.tokenizer, data.watched, model.window)
    labels = [p.label for p in data.watched]

    def refusal_probabilities() -> dict[str, Any]:
        """The mean probability of opening with a refusal by label."""
        odds = torch.tensor([a.refusal_log_odds for a in answer(model, watched, max_new_tokens=0)])
        of_label = {label: [i for i, other in enumerate(labels) if other == label] for label in dict.fromkeys(labels)}
        return {label: odds[places].sigmoid().mean().item() for label, places in of_label.items()}

    sft = SafetySFT(name, model, adapter, rows, config, settings.seed, refusal_probabilities)
    return train(run, sft, title)


def train(run: RunFolder, stage: Stage, title: str, patience: int = 0, share: float = 1.0, **noted: Any) -> None:
    """Train a stage unless it is done, with its progress bar and its checkpoint; its adapter is saved at the end.
    patience: see ``Loop``. share: of what was learnt stays. noted: further facts of the finished part."""
    if run.finished(stage.name):
        return restore(run, stage.model, stage.name, stage.adapter)
    with progress_bar(title, stage.steps) as shown:

        def report(row: dict[str, Any]) -> None:
            run.log(row)
            shown.row(row)

        progress = Loop(stage, run.checkpoint(stage.name), report, patience).run()
    empty_cache()  # what comes next needs memory of its own
    adapters.scale(stage.model, stage.adapter, share)
    if distributed.is_main():
        adapters.save_adapter(stage.model, stage.adapter, run.path / stage.name)
    facts = {"seconds": progress.seconds, "best_step": progress.best_step, "best": progress.best}
    run.finish(stage.name, facts | {"peak_memory_bytes": peak_memory_bytes(), **noted})
    return None


def restore(run: RunFolder, model: Model, name: str, adapter: str) -> None:
    """Give the adapter the weights that the finished stage ``name`` left."""
    cure = f"Delete {run.note(name)} to have it trained again."
    adapters.set_adapter_weights(model, adapter, load_tensors(run.path / name / adapters.WEIGHTS, cure))


def evaluate(run: RunFolder, model: Model, data: Data, settings: Settings) -> dict[str, list[Measured]]:
    """Answers of the stock model, of the baseline if there is one, and of DCR to every held-out prompt, judged; and how
    many of the stock model's answers the others keep."""
    methods, tokens = models_of(settings.compare_with), settings.answer_tokens
    paths = {method: run.path / "answers" / f"{method}.jsonl" for method in methods}
    own = distributed.share(data.held_out)
    with progress_bar("Evaluation", max(1, len(methods) * len(own))) as shown:
        for method in methods:
            answer_with(run, model, method, f"evaluate_{method}", own, paths[method], tokens, shown)
    answers: dict[str, list[Measured]] = distributed.on_main(
        lambda: {method: answers_given(run, f"evaluate_{method}", path) for method, path in paths.items()}
    )
    measure_kept(run, model, answers)
    return answers


def answer_with(
    run: RunFolder, model: Model, method: str, part: str, own: list[Prompt], path: Path, answer_tokens: int,
    shown: ProgressBar, whole: bool = False,
) -> None:  # fmt: skip
    """Let one of the run's models answer this process's share of some prompts, as the part ``part`` of the run; the
    judged answers of all are written to ``path``. answer_tokens, whole: as ``measure``."""
    if run.finished(part):
        shown.skip(len(own))
        return
    started = time.monotonic()
    if method != STOCK:
        adapters.activate(model, method)
    with adapters.stock(model) if method == STOCK else contextlib.nullcontext():
        measured = distributed.gathered(measure(model, own, answer_tokens, shown.advance, whole))
    digest = write_answers(measured, path) if distributed.is_main() else ""
    run.finish(part, {"seconds": time.monotonic() - started, "answers_sha256": digest})


def answers_given(run: RunFolder, part: str, path: Path) -> list[Measured]:
    """The answers of a finished part, which have to be those that were written."""
    if not path.exists() or (run.finished(part) or {}).get("answers_sha256") != sha256_of(path):
        raise damaged(path, f"Delete {run.note(part)} to have them given again.")
    return read_answers(path)


def write_up(
    run: RunFolder, model: Model, source: str, data: Data, settings: Settings, answers: dict[str, list[Measured]],
    note: str = "",
) -> dict[str, Any]:  # fmt: skip
    """report.json, report.md, the pictures, the adapter with its model card; returns the report. note: Markdown that
    stands first in it."""

    def write() -> dict[str, Any]:
        started = time.monotonic()
        results = {name: method_result(measured) | kept_of(run, name) for name, measured in answers.items()}
        run.tidy_metrics()
        draw_run(run.path, results, answers)
        states = load_states(run)
        draw_states(run, data, settings, states)
        report = run_report(run, model, source, data, settings, results, time.monotonic() - started)
        report["note"] = note
        with dial.as_trained(model, run.path):
            readings = fit_discernments(model, data, settings, states)

        def beside(folder: Path) -> None:
            readings.save(folder)
            write_text(folder / "README.md", model_card(report, "adapter", caution_of(run.path)))

        adapters.save_adapter(model, DCR, run.path / "adapter", beside)
        write_report(report, run.path)
        run.close(report)
        return report

    return distributed.on_main(write)
