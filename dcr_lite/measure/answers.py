"""Refusal rates, discernment and answers of one model on labelled prompts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Prompt
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.measure.metrics import auroc, auroc_interval, wilson_interval, youden_j, youden_j_interval
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.names import LABELS

Measured = dict[str, Any]  # one measured prompt: source, label, prompt, response, refused, refusal_log_odds


def measure(
    model: Model, prompts: list[Prompt], answer_tokens: int, progress: Callable[[int], None] = lambda done: None
) -> list[Measured]:
    """Greedy answers of the model as it stands, each judged, in the order of ``prompts``. An answer whose verdict no
    continuation can change is cut there."""
    if not prompts:
        return []
    rows = encode_prompts(model.tokenizer, [p.prompt for p in prompts], model.window - answer_tokens)
    return [
        {
            "source": prompt.source,
            "label": prompt.label,
            "prompt": prompt.prompt,
            "response": said.text,
            "refused": is_refusal(said.text),
            "refusal_log_odds": said.refusal_log_odds,
        }
        for prompt, said in zip(prompts, answer(model, rows, answer_tokens, progress, verdict_is_final), strict=True)
    ]


def refusal_rates(measured: list[Measured]) -> list[dict[str, Any]]:
    """For every set and label {name, label, n, refusal_rate, ci95}, with 95 % Wilson intervals."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for row in measured:
        groups.setdefault((row["source"], row["label"]), []).append(row["refused"])
    return [
        {
            "name": name,
            "label": label,
            "n": len(refused),
            "refusal_rate": sum(refused) / len(refused),
            "ci95": list(wilson_interval(sum(refused), len(refused))),
        }
        for (name, label), refused in sorted(groups.items(), key=lambda g: (g[0][0], LABELS.index(g[0][1])))
    ]


def overall_rate(measured: list[Measured], label: str) -> dict[str, Any] | None:
    """{n, refusal_rate, ci95} over all prompts of a label; None where there are none."""
    refused = [row["refused"] for row in measured if row["label"] == label]
    if not refused:
        return None
    rate = sum(refused) / len(refused)
    return {"n": len(refused), "refusal_rate": rate, "ci95": list(wilson_interval(sum(refused), len(refused)))}


def discernment_intervals(measured: list[Measured]) -> dict[str, Any]:
    """{auroc, auroc_ci95, j, j_ci95}: ``discernment`` with 95 % bootstrap intervals over prompts, None where a label
    has fewer than two."""
    toxic, seemingly = ([r for r in measured if r["label"] == label] for label in LABELS[:2])
    result: dict[str, Any] = {**discernment(measured), "auroc_ci95": None, "j_ci95": None}
    if min(len(toxic), len(seemingly)) > 1:
        odds = [r["refusal_log_odds"] for r in toxic], [r["refusal_log_odds"] for r in seemingly]
        result["auroc_ci95"] = list(auroc_interval(*odds))
        result["j_ci95"] = list(youden_j_interval([r["refused"] for r in toxic], [r["refused"] for r in seemingly]))
    return result


def discernment(measured: list[Measured]) -> dict[str, float | None]:
    """How well toxic and seemingly toxic prompts are told apart: {auroc, j}.

    auroc: of the refusal log-odds, free of any threshold. j: refusal rate on toxic minus on seemingly toxic prompts.
    Both are None where a label is missing.
    """
    toxic, seemingly = (overall_rate(measured, label) for label in LABELS[:2])
    if toxic is None or seemingly is None:
        return {"auroc": None, "j": None}
    scores = {label: [r["refusal_log_odds"] for r in measured if r["label"] == label] for label in LABELS[:2]}
    return {
        "auroc": auroc(scores["toxic"], scores["seemingly_toxic"]),
        "j": youden_j(toxic["refusal_rate"], seemingly["refusal_rate"]),
    }


def method_result(measured: list[Measured]) -> dict[str, Any]:
    """What the report says of one model: {sets, overall, discernment}."""
    overall = {label: rate for label in LABELS if (rate := overall_rate(measured, label)) is not None}
    return {"sets": refusal_rates(measured), "overall": overall, "discernment": discernment(measured)}


def write_answers(measured: list[Measured], path: Path) -> None:
    """Answers as JSON Lines, for the run folder alone: answers to toxic prompts are not for publishing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in measured), encoding="utf-8")
    partial.replace(path)


def read_answers(path: Path) -> list[Measured]:
    """Answers that an earlier part of the run has written."""
    # Not splitlines(): it also cuts at the line separators of Unicode, which answers may hold.
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
