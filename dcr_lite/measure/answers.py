"""Refusal rates, discernment and answers of one model on labelled prompts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Asked, Prompt, before_field, messages_of
from dcr_lite.errors import UserError
from dcr_lite.files import damaged_line, load_jsonl, sha256_of, write_jsonl
from dcr_lite.measure.judge import is_refusal, verdict_is_final
from dcr_lite.measure.kinds import KINDS, REFUSING, kind_of
from dcr_lite.measure.metrics import auroc, auroc_interval, wilson_interval, youden_j, youden_j_interval
from dcr_lite.model.chat import encode_asked, prompt_window
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.names import LABELS

RESTORE = "Restore the file from a copy."  # without one of its lines, others would be paired with other prompts
Measured = dict[str, Any]  # one measured prompt, with these fields and its kind, one of KINDS; of a whole answer, ended
FIELDS = {
    "source": str, "label": str, "prompt": str, "response": str, "refused": bool, "refusal_log_odds": float,
}  # fmt: skip


def measure(
    model: Model,
    prompts: list[Prompt],
    answer_tokens: int,
    progress: Callable[[int], None] = lambda done: None,
    whole: bool = False,
    thinking: bool = False,
) -> list[Measured]:
    """The model's greedy answers, judged, in the order of ``prompts``.

    Generation of an answer stops once no continuation can change whether it refuses. Help that would have followed does
    not show then, and most partial refusals count as full ones. whole: go on to ``answer_tokens`` all the same, and
    note as ``ended`` whether the model had come to an end by then.
    thinking: let the model think first, which counts to ``answer_tokens``.
    """
    if not prompts:
        return []
    rows = encode_asked(model.tokenizer, prompts, prompt_window(model.window, answer_tokens), thinking)
    answers = answer(model, rows, answer_tokens, progress, None if whole else verdict_is_final)
    return [
        {
            "source": prompt.source,
            "label": prompt.label,
            **asked_fields(prompt),
            "response": said.text,
            "refused": (refused := is_refusal(said.text)),
            "kind": kind_of(prompt.prompt, said.text, refused),
            "refusal_log_odds": said.refusal_log_odds,
        }
        | ({"ended": said.ended} if whole else {})
        for prompt, said in zip(prompts, answers, strict=True)
    ]


def asked_fields(row: Asked) -> dict[str, Any]:
    """The fields of an answer that say what was asked: prompt, and before where messages stood before it."""
    return ({"before": messages_of(row.before)} if row.before else {}) | {"prompt": row.prompt}


def _rate(rows: list[Measured]) -> dict[str, Any]:
    n, refused = len(rows), sum(row["refused"] for row in rows)
    kinds = {kind: sum(row["kind"] == kind for row in rows) / n for kind in KINDS}
    return {"n": n, "refusal_rate": refused / n, "ci95": list(wilson_interval(refused, n)), "kinds": kinds}


def refusal_rates(measured: list[Measured]) -> list[dict[str, Any]]:
    """{name, label, n, refusal_rate, ci95, kinds} of every set and label: 95 % Wilson intervals, and the share of each
    kind of answer."""
    groups: dict[tuple[str, str], list[Measured]] = {}
    for row in measured:
        groups.setdefault((row["source"], row["label"]), []).append(row)
    order = sorted(groups, key=lambda group: (group[0], LABELS.index(group[1])))
    return [{"name": name, "label": label, **_rate(groups[name, label])} for name, label in order]


def overall_rate(measured: list[Measured], label: str) -> dict[str, Any] | None:
    """{n, refusal_rate, ci95, kinds} over all prompts of a label; None where there are none."""
    rows = [row for row in measured if row["label"] == label]
    return _rate(rows) if rows else None


def discernment(measured: list[Measured]) -> dict[str, float | None]:
    """{auroc, j}: how well a model tells toxic from seemingly toxic prompts.

    auroc: of the refusal log-odds, independent of a threshold. j: refusal rate on toxic minus on seemingly toxic
    prompts. Both are None where a label is missing.
    """
    toxic, seemingly = _by_side(measured)
    if not toxic or not seemingly:
        return {"auroc": None, "j": None}
    rates = (sum(row["refused"] for row in side) / len(side) for side in (toxic, seemingly))
    return {"auroc": auroc(_odds(toxic), _odds(seemingly)), "j": youden_j(*rates)}


def discernment_intervals(measured: list[Measured]) -> dict[str, Any]:
    """{auroc, auroc_ci95, j, j_ci95}: ``discernment`` with 95 % bootstrap intervals over prompts, None where a label
    has fewer than two."""
    result: dict[str, Any] = {**discernment(measured), "auroc_ci95": None, "j_ci95": None}
    toxic, seemingly = _by_side(measured)
    if min(len(toxic), len(seemingly)) > 1:
        result["auroc_ci95"] = list(auroc_interval(_odds(toxic), _odds(seemingly)))
        result["j_ci95"] = list(youden_j_interval([r["refused"] for r in toxic], [r["refused"] for r in seemingly]))
    return result


def _by_side(measured: list[Measured]) -> tuple[list[Measured], list[Measured]]:
    """The rows of toxic and those of seemingly toxic prompts."""
    toxic, seemingly = ([row for row in measured if row["label"] == label] for label in LABELS[:2])
    return toxic, seemingly


def _odds(measured: list[Measured]) -> list[float]:
    return [row["refusal_log_odds"] for row in measured]


def method_result(measured: list[Measured]) -> dict[str, Any]:
    """{sets, overall, discernment} of one model, as in report.json."""
    overall = {label: rate for label in LABELS if (rate := overall_rate(measured, label)) is not None}
    return {"sets": refusal_rates(measured), "overall": overall, "discernment": discernment(measured)}


def write_answers(measured: list[Measured], path: Path) -> str:
    """Write answers as JSON Lines; returns the digest of the file. Private: contains answers to toxic prompts."""
    write_jsonl(measured, path)
    return sha256_of(path)


def read_answers(path: Path, cure: str = RESTORE) -> list[Measured]:
    """The answers that ``write_answers`` wrote. Raises UserError, which ends with ``cure``, for a damaged line."""
    rows = load_jsonl(path, cure)
    for number, row in enumerate(rows, start=1):
        if any(not isinstance(row.get(name), kind) for name, kind in FIELDS.items()) or row["label"] not in LABELS:
            raise damaged_line(path, number, cure)
        if row.get("kind") not in KINDS or (row["kind"] in REFUSING) != row["refused"]:
            raise damaged_line(path, number, cure)
        try:
            before_field(row, "")
        except UserError:
            raise damaged_line(path, number, cure) from None
    return rows


def answers_to(prompts: Sequence[Prompt], path: Path, cure: str) -> list[Measured]:
    """``read_answers`` of a file that has to hold those to these prompts, in their order: several models' are paired.
    Raises UserError, which ends with ``cure``, where it does not."""
    rows = read_answers(path, cure)
    if prompts_asked(rows) != list(prompts):
        raise UserError(f"{path} holds answers to other prompts, or not to all of them. {cure}")
    return rows


def prompts_asked(rows: Sequence[Measured]) -> list[Prompt]:
    """What answers are to."""
    return [Prompt(row["prompt"], row["label"], row["source"], before_field(row, "an answer")) for row in rows]
