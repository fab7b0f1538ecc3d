"""Measures one model: refusal rates by set, discernment with intervals, general ability: ``dcr-lite evaluate``.

What is done is kept in files beside the result, so that the same command continues where it was stopped.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_lite.data.benchmarks import load_benchmark
from dcr_lite.data.rows import Choice, Conversation, Prompt, read_choices, read_conversations, read_prompts
from dcr_lite.data.splits import characters, digest_of, sample
from dcr_lite.errors import UserError
from dcr_lite.evaluate.kept import measure_kept, require_adapter
from dcr_lite.files import PARTIAL, OnlyOne, beside, read_state, set_aside, write_json, write_jsonl, write_state
from dcr_lite.judges.agreement import agreements, with_verdicts
from dcr_lite.judges.interface import Judge
from dcr_lite.judges.judging import judge_rows
from dcr_lite.judges.opening import DEFAULT, open_judges
from dcr_lite.judges.rates import exchanges, rates_by_judge
from dcr_lite.measure.answers import Measured, discernment_intervals, measure, method_result, read_answers
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS, answer_loss, multiple_choice
from dcr_lite.model.chat import can_think, encode_asked, prompt_window
from dcr_lite.model.loading import REFUSING_OPENINGS, Model
from dcr_lite.model.thinking import not_begun
from dcr_lite.names import ModelName
from dcr_lite.run.machine import hardware, peak_memory_bytes, versions
from dcr_lite.run.opening import Opened, open_model
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Device, Precision, Quantization

CHUNK = 256  # prompts between two savings: two full batches, so that saving costs no speed


@dataclass(frozen=True)
class Evaluation:
    """What to measure, on what, and how.

    model, method: as ``open_model`` takes them. rows: at most so many prompts of each set and label, see ``sample``.
    whole_answers: as ``whole`` of ``measure``. judges, judge_key: as ``open_judges`` takes them; the main numbers are
    by the first.
    thinking: let the model think before it answers; its general ability is measured without.
    out: the result; the other files lie beside it. kept: whether to measure how many of the stock model's answers the
    model keeps, which the stock model has to give first.
    """

    model: str
    out: Path
    prompts: tuple[Path, ...]
    benchmarks: tuple[str, ...] = ()
    method: ModelName = "dcr"
    rows: int | None = None
    instructions: Path = HELD_OUT_INSTRUCTIONS
    choices: Path | None = None
    answer_tokens: int = 40
    whole_answers: bool = False
    thinking: bool = False
    device: Device = "auto"
    precision: Precision = "auto"
    quantization: Quantization = "auto"
    judges: tuple[str, ...] = DEFAULT
    judge_key: str | None = None
    kept: bool = False

    @property
    def answers(self) -> Path:
        """The file of answers. Private: contains answers to toxic prompts."""
        return beside(self.out, ".answers.jsonl")

    @property
    def lock(self) -> Path:
        """The file that keeps a second process away."""
        return beside(self.out, ".lock")

    @property
    def unfinished(self) -> Path:
        """The file that is there until the evaluation is finished."""
        return beside(self.out, ".begun.json")

    @property
    def judging(self) -> Path:
        """The file of what judges have done, until the evaluation is finished."""
        return beside(self.out, ".judging.jsonl")


class StoredMeasurement:
    """What an unfinished evaluation has done: the results of its parts, and the seconds they took."""

    def __init__(self, evaluation: Evaluation, inputs: dict[str, Any]):
        """Begin, or continue what a stopped process has left. Raises UserError where that had other ``inputs``."""
        self.path, self.answers_path = evaluation.unfinished, evaluation.answers
        self.started = time.monotonic()
        if self.path.exists():
            kept = read_state(self.path, "Delete it to measure anew.")
            changed = [name for name in inputs if kept["state"].get(name) != inputs[name]]
            if changed:
                raise UserError(
                    f"{evaluation.out} was begun with other inputs ({', '.join(changed)}). Restore them, choose "
                    f"another --out, or delete {self.path} to start over."
                )
        else:
            kept = {"state": inputs, "seconds": 0.0, "parts": {}}
            set_aside(self.answers_path)  # of a result that was moved away, or of what is begun anew
        self.inputs, self.parts, self.before = inputs, kept["parts"], kept["seconds"]
        self.save()
        if not self.answers_path.exists():
            write_jsonl([], self.answers_path)

    def part(self, name: str, compute: Callable[..., dict[str, Any]], model: Model, rows: list[Any]) -> dict[str, Any]:
        """The result of a part: kept from a stopped process, or computed now and kept."""
        if name not in self.parts:
            with progress_bar(name, len(rows)) as shown:
                self.parts[name] = compute(model, rows, shown.advance)
            self.save()
        result: dict[str, Any] = self.parts[name]
        return result

    def answers(self) -> list[Measured]:
        """The answers so far, in any order; ``number`` is that of the prompt."""
        return read_answers(self.answers_path, f"Delete {self.answers_path} to have all answers given anew.")

    def keep_answers(self, answers: list[Measured]) -> None:
        """Write all answers so far."""
        write_jsonl(answers, self.answers_path)
        self.save()

    def seconds(self) -> float:
        """Wall time so far, without the pauses."""
        return self.before + time.monotonic() - self.started

    def save(self) -> None:
        """Write everything but the answers."""
        write_state({"state": self.inputs, "seconds": self.seconds(), "parts": self.parts}, self.path)


def _inputs(evaluation: Evaluation, opened: Opened, prompts: list[Prompt]) -> dict[str, Any]:
    """What has to be the same for an evaluation to be continued."""
    files = {"instructions": evaluation.instructions, "multiple choice": evaluation.choices}
    return {
        "model": evaluation.model,
        "method": evaluation.method,
        "adapter": opened.adapter_sha256,
        "prompts": digest_of(prompts),
        "answer tokens": evaluation.answer_tokens,
        "whole answers": evaluation.whole_answers,
        "thinking": evaluation.thinking,
        "openings": None if opened.model.openings == REFUSING_OPENINGS else list(opened.model.openings),
        "precision": str(opened.model.precision),
        "quantisation": opened.model.four_bit,
        **{name: hashlib.sha256(path.read_bytes()).hexdigest() if path else None for name, path in files.items()},
    }


def _answer_all(
    opened: Opened, prompts: list[Prompt], evaluation: Evaluation, progress: StoredMeasurement
) -> list[Measured]:
    """The judged answers in the order of ``prompts``; generated in the order of length, so that batches are even."""
    done = progress.answers()
    numbers = {row["number"] for row in done}
    todo = sorted((i for i in range(len(prompts)) if i not in numbers), key=lambda i: characters(prompts[i]))
    with progress_bar("Answers", len(prompts)) as shown:
        shown.start_at(len(done))
        for start in range(0, len(todo), CHUNK):
            chunk = todo[start : start + CHUNK]
            own = [prompts[i] for i in chunk]
            tokens, whole, thinking = evaluation.answer_tokens, evaluation.whole_answers, evaluation.thinking
            measured = measure(opened.model, own, tokens, shown.advance, whole, thinking)
            done += [{"number": i, **row} for i, row in zip(chunk, measured, strict=True)]
            progress.keep_answers(done)
    done.sort(key=lambda row: row["number"])
    progress.keep_answers(done)
    return done


def _require_new(evaluation: Evaluation) -> None:
    out = evaluation.out
    if out.is_dir():
        raise UserError(f"{out} is a folder. Give --out the name of a file, such as {out / 'result.json'}.")
    if out.exists():
        for left in (evaluation.unfinished, evaluation.judging, evaluation.lock):  # by one killed at its very end
            left.unlink(missing_ok=True)
        raise UserError(f"{out} holds a finished measurement. Move it away, or choose another --out.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}). Choose another --out.") from None


def measure_model(evaluation: Evaluation) -> dict[str, Any]:
    """Measure a model, write the result to ``evaluation.out`` and return it:

    sets: [{name, label, n, refusal_rate, ci95, kinds}], 95 % Wilson intervals; overall: the same by label.
    discernment: {auroc, auroc_ci95, j, j_ci95}, 95 % bootstrap intervals over prompts.
    judge: the one that these are by; judges, agreement: where others were asked for, ``rates_by_judge`` and
        ``agreements`` by label, else empty.
    not_begun: answers that were still thinking when their tokens were used up.
    general: {answer_loss, answers, tokens, multiple_choice: {accuracy, ci95, n, chance} or None}.
    kept: ``answers_kept`` by label, where it is asked for; else None.
    Beside these model, base, adapter_sha256, settings, seconds, memory, hardware, versions.

    Raises UserError for a wrong row (with file and line), a prompt that is too long, or a finished result in ``out``.
    """
    if evaluation.answer_tokens < 1:
        raise UserError(f"--answer-tokens {evaluation.answer_tokens}: at least 1 is needed")
    sets = [read_prompts(path) for path in evaluation.prompts] + [load_benchmark(b) for b in evaluation.benchmarks]
    prompts = sample([prompt for rows in sets for prompt in rows], evaluation.rows)
    instructions = read_conversations(evaluation.instructions)
    questions = read_choices(evaluation.choices) if evaluation.choices else []
    _require_new(evaluation)
    with OnlyOne(evaluation.lock, "choose another --out"):
        return _measure(evaluation, prompts, instructions, questions)


def _measure(
    evaluation: Evaluation, prompts: list[Prompt], instructions: list[Conversation], questions: list[Choice]
) -> dict[str, Any]:
    """Measure, alone at the place of the result."""
    # First, so that a judge that cannot be had is known before the model answers.
    judges = []
    if evaluation.judges != DEFAULT or evaluation.judge_key:
        judges = open_judges(evaluation.judges, evaluation.device, evaluation.judge_key)
    opened = open_model(
        evaluation.model, evaluation.method, device=evaluation.device, precision=evaluation.precision,
        quantization=evaluation.quantization,
    )  # fmt: skip
    model = opened.model
    if evaluation.thinking and not can_think(model.tokenizer):
        raise UserError(f"--thinking: the chat template of {evaluation.model} has no thinking to switch on")
    require_adapter(opened, evaluation.kept)
    tokens = evaluation.answer_tokens
    encode_asked(model.tokenizer, prompts, prompt_window(model.window, tokens), evaluation.thinking)
    progress = StoredMeasurement(evaluation, _inputs(evaluation, opened, prompts))
    measured = _answer_all(opened, prompts, evaluation, progress)
    general = progress.part("Answer loss", answer_loss, model, instructions)
    chosen = progress.part("Multiple choice", multiple_choice, model, questions) if questions else None
    judged = _judge(judges, measured, evaluation, progress)
    kept = measure_kept(model, prompts, measured, tokens, progress.parts, progress.save) if evaluation.kept else None
    result = {
        "model": evaluation.model,
        "method": evaluation.method if opened.adapter else "base",
        "base": opened.base,
        "source": opened.source,
        "adapter_sha256": opened.adapter_sha256,
        **method_result(measured),
        "discernment": discernment_intervals(measured),
        **judged,
        "not_begun": sum(not_begun(row["response"]) for row in measured),
        "general": {**general, "multiple_choice": chosen},
        "kept": kept,
        "settings": _settings(evaluation, opened),
        "seconds": progress.seconds(),
        "peak_memory_bytes": peak_memory_bytes(),
        "hardware": hardware(model.device),
        "versions": versions(),
    }
    if not evaluation.answers.exists():
        raise UserError(f"{evaluation.answers} was moved or removed meanwhile. Put it back, or measure anew.")
    write_json(result, evaluation.out)
    evaluation.unfinished.unlink(missing_ok=True)  # by another that came this moment, and found the result
    evaluation.judging.unlink(missing_ok=True)
    for path in (evaluation.answers, evaluation.unfinished):  # what a killed process was writing
        path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
    return result


def _judge(
    judges: list[Judge], measured: list[Measured], evaluation: Evaluation, progress: StoredMeasurement
) -> dict[str, Any]:
    """The fields of the result that judges give: those of the first take the place of the cue judge's. The answers are
    kept with every verdict. Without judges, those of the cue judge stand as they are."""
    if not judges:
        return {"judge": DEFAULT[0], "judges": [], "agreement": []}
    with progress_bar("Judging", len(measured) * len(judges)) as shown:
        scores = judge_rows(judges, exchanges(measured), evaluation.judging, shown.advance, shown.skip)
    progress.keep_answers(with_verdicts(measured, scores))
    rates = rates_by_judge(scores, measured)
    first = {name: rates[0][name] for name in ("sets", "overall", "discernment")}
    pairs = agreements(scores, [row["label"] for row in measured])
    return {**first, "judge": judges[0].name, "judges": rates, "agreement": pairs}


def _settings(evaluation: Evaluation, opened: Opened) -> dict[str, Any]:
    return {
        "prompts": [str(path) for path in evaluation.prompts],
        "benchmarks": list(evaluation.benchmarks),
        "rows": evaluation.rows,
        "instructions": evaluation.instructions.name,
        "multiple_choice": evaluation.choices and evaluation.choices.name,
        "answer_tokens": evaluation.answer_tokens,
        "whole_answers": evaluation.whole_answers,
        "thinking": evaluation.thinking,
        "openings": list(opened.model.openings),
        "precision": str(opened.model.precision).removeprefix("torch."),
        "four_bit": opened.model.four_bit,
    }
