"""The refusal judge against human labels: agreement, precision and recall, beside the string matches of the literature.

    python benchmarks/judge.py --labels xstest_v2_completions_llama2new.csv xstest_v2_completions_mistralguard.csv

Rows are {prompt, response, human_label | human | kind, model | method, type?}: JSON Lines, or the CSV files that XSTest
publishes (completion, final_label). A label is 1_full_compliance, 2_full_refusal or 3_partial_refusal, or true | false,
or one of the five kinds of answer by name: refusal, partial, evasion, broken, answer. ``kind`` is read where there is
no other label, so it has to be an annotator's and not that of ``dcr-lite judge``. Refused in full or in part counts as
refused. Where labels tell kinds apart, precision and recall of each kind are measured as well, and what is lost where
generation stops once a refusal is sure.

Two judges are measured. "judge": the package's, with its points as they are. "refit": the same cues, their points
fitted anew for each model by logistic regression on the answers of all other models (in full and cut to 35 words) and
on the shipped refusals and helpful answers, so that no label of the measured model is used. The wording of the cues is
not refitted: docs/measuring.md says which answers were read while it was written.

--second: the same answers, labelled again by somebody who did not see the first labels. Tells how far labels repeat,
which bounds what any judge can reach.
"""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from sklearn.linear_model import LogisticRegression

from dcr_lite.data.rows import read_conversations, read_jsonl
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED, write_json
from dcr_lite.judges.agreement import kappa
from dcr_lite.measure.judge import CUES, STEPS, evidence, is_refusal, opening_match, string_match, verdict_is_final
from dcr_lite.measure.kinds import KIND_TITLES, REFUSING, kind_of
from dcr_lite.measure.metrics import wilson_interval, with_interval
from dcr_lite.run.report import markdown_table

FIT_WORDS = 35  # about 48 tokens: evaluations cut answers off
LOOK_EVERY = 3  # words; about the 4 tokens after which generation looks
INVERSE_PENALTY = 10.0  # C of the logistic regression: cues are few and answers many
FULL, PARTIAL = (KIND_TITLES[kind] for kind in REFUSING)
COMPLIANCE = "compliance"  # of whatever kind
LABELS: dict[Any, str] = {
    True: "refusal",  # in full or in part
    False: COMPLIANCE,
    "1_full_compliance": COMPLIANCE,
    "2_full_refusal": FULL,
    "3_partial_refusal": PARTIAL,
    **KIND_TITLES,
}


@dataclass
class Judge:
    """What to measure."""

    labels: tuple[Path, ...]
    """Files of answers with human labels."""
    second: tuple[Path, ...] = ()
    """The same answers with labels of a second pass."""
    types: tuple[Path, ...] = ()
    """JSON Lines of {prompt, type}: for agreement by type of prompt, where the labels have no types."""
    json: Path | None = None
    """File for the numbers."""


@dataclass(frozen=True)
class Labelled:
    """An answer and its human label. kind: one of the values of LABELS."""

    prompt: str
    response: str
    model: str
    refused: bool
    kind: str
    type: str


def _row(fields: dict[str, Any], place: str, default_model: str) -> Labelled:
    response = fields.get("response", fields.get("completion"))
    names = ("human", "human_label", "final_label", "kind")
    label = next((fields[name] for name in names if fields.get(name) is not None), None)
    kind = LABELS.get(label) if isinstance(label, (bool, str)) else None
    if not isinstance(response, str) or kind is None:
        raise UserError(
            f"{place}: needs a response and a label (human: true | false, or {', '.join(list(LABELS)[2:])})"
        )
    model = str(fields.get("model") or fields.get("method") or default_model)
    refused = kind in ("refusal", FULL, PARTIAL)
    return Labelled(str(fields.get("prompt", "")), response, model, refused, kind, str(fields.get("type") or ""))


def read_labelled(path: Path) -> list[Labelled]:
    """Answers with labels; raises UserError naming file and line."""
    if path.suffix != ".csv":
        return read_jsonl(path, lambda fields, place: _row(fields, place, path.stem))
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        name = path.stem.removeprefix("xstest_v2_completions_")
        return [_row(row, f"{path}, line {reader.line_num}", name) for row in reader]


def agreement(rows: list[Labelled], verdicts: list[bool]) -> dict[str, Any]:
    """{n, agreement, ci95, precision, recall, recall of each kind}; precision and recall are of refusals, None where
    there is none."""
    right = sum(v == row.refused for v, row in zip(verdicts, rows, strict=True))
    hits = sum(v and row.refused for v, row in zip(verdicts, rows, strict=True))
    said, due = sum(verdicts), sum(row.refused for row in rows)
    result: dict[str, Any] = {
        "n": len(rows),
        "agreement": right / len(rows),
        "ci95": list(wilson_interval(right, len(rows))),
        "precision": hits / said if said else None,
        "recall": hits / due if due else None,
    }
    for kind in (FULL, PARTIAL):
        seen = [v for v, row in zip(verdicts, rows, strict=True) if row.kind == kind]
        result[f"recall of {kind}"] = sum(seen) / len(seen) if seen else None
    return result


def by_kind(rows: list[Labelled], verdicts: list[bool] | None = None) -> dict[str, dict[str, Any]]:
    """{kind: {n, judged, precision, recall}} of rows whose labels tell kinds apart; empty where none does. verdicts:
    whether each row is a refusal; None: as the judge says.

    Where some labels say compliance alone, evasions and broken answers count as that.
    """
    if verdicts is None:
        verdicts = [is_refusal(row.response) for row in rows]
    told = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row.kind != "refusal"]
    if not any(row.kind in KIND_TITLES.values() for row, _ in told):
        return {}
    coarse = any(row.kind == COMPLIANCE for row, _ in told)

    def name(kind: str) -> str:
        return COMPLIANCE if coarse and kind not in (FULL, PARTIAL) else kind

    pairs = [(name(row.kind), name(KIND_TITLES[kind_of(row.prompt, row.response, v)])) for row, v in told]
    result = {}
    for kind in dict.fromkeys(map(name, KIND_TITLES.values())):
        hits = sum(label == found == kind for label, found in pairs)
        due, said = (sum(pair[side] == kind for pair in pairs) for side in (0, 1))
        rates = {"precision": hits / said if said else None, "recall": hits / due if due else None}
        result[kind] = {"n": due, "judged": said} | rates
    return result


def stopped(rows: list[Labelled]) -> dict[str, Any]:
    """What is lost where generation stops once a refusal is sure: {refusals, words, partial, partial stopped, evasion,
    broken}: answers judged refusals, the share of their words that stopping leaves, how many of them are judged partial
    whole and stopped; and how many that the labels call no refusal are judged an evasion or broken."""
    refusals = [row for row in rows if is_refusal(row.response)]
    left = [_until_final(row.response) for row in refusals]
    others = [kind_of(row.prompt, row.response) for row in rows if not row.refused]
    return {
        "refusals": len(refusals),
        "words": sum(len(text.split()) for text in left) / max(1, sum(len(row.response.split()) for row in refusals)),
        "partial": sum(kind_of(row.prompt, row.response, True) == "partial" for row in refusals),
        "partial stopped": sum(
            kind_of(row.prompt, text, True) == "partial" for row, text in zip(refusals, left, strict=True)
        ),
        "evasion": others.count("evasion"),
        "broken": others.count("broken"),
    }


def repeated(rows: list[Labelled], again: list[Labelled]) -> dict[str, dict[str, Any]]:
    """How far the labels of two passes agree on the answers that are in both: {refused, kind: {n, agreement, kappa,
    ci95}} by Cohen's kappa with its bootstrap interval, None where it is undefined; kind only where both passes tell
    kinds apart. Raises UserError where no answer is in both."""
    second = {(row.model, row.prompt, row.response): row for row in again}
    both = [(row, second[key]) for row in rows if (key := (row.model, row.prompt, row.response)) in second]
    if not both:
        raise UserError("--second: none of its answers is among those of --labels")
    labels = {"refused": [(str(a.refused), str(b.refused)) for a, b in both]}
    kinds = [(a.kind, b.kind) for a, b in both]
    if all(kind in KIND_TITLES.values() for pair in kinds for kind in pair):
        labels["kind"] = kinds
    return {name: _repeat(pairs) for name, pairs in labels.items()}


def _repeat(pairs: list[tuple[str, str]]) -> dict[str, Any]:
    value, interval = kappa(*zip(*pairs, strict=True))
    return {"n": len(pairs), "agreement": float(np.mean([a == b for a, b in pairs])), "kappa": value, "ci95": interval}


def _until_final(response: str) -> str:
    """An answer up to where its verdict is final, as ``measure`` stops it; looked at every few words."""
    ends = [match.end() for match in re.finditer(r"\S+", response)][LOOK_EVERY - 1 :: LOOK_EVERY]
    return next((response[:end] for end in ends if verdict_is_final(response[:end])), response)


def refit(rows: list[Labelled], tested: str) -> list[bool]:
    """Verdicts on the answers of model ``tested`` by cues whose points were fitted without any of them."""
    names = [cue.name for cue in CUES] + [STEPS.name]

    def features(response: str) -> list[float]:
        found = evidence(response)
        return [float(name in found) for name in names]

    examples = [(row.response, row.refused) for row in rows if row.model != tested]
    for name, refuses in (("refusals", True), ("instructions", False), ("augmentation", False)):
        examples += [(row.response, refuses) for row in read_conversations(SHIPPED / f"{name}.jsonl")]
    examples += [(" ".join(text.split(" ")[:FIT_WORDS]), refused) for text, refused in examples]
    fitted = LogisticRegression(C=INVERSE_PENALTY, max_iter=5_000)
    fitted.fit([features(text) for text, _ in examples], [refused for _, refused in examples])
    verdicts = fitted.predict([features(row.response) for row in rows if row.model == tested])
    return [bool(v) for v in verdicts]


def measure(rows: list[Labelled]) -> dict[str, Any]:
    """{judge name: {model: agreement, ..., "mean": ...}, "by type": {...}, "by kind": {...}}; "refit" only where there
    are models to fit on, "by kind" of models whose labels tell kinds apart: by the judge's verdict, by the labels', and
    what stopping loses."""
    models = sorted({row.model for row in rows})
    judges: dict[str, Callable[[list[Labelled], str], list[bool]]] = {
        name: lambda own, model, decide=decide: [decide(row.response) for row in own]
        for name, decide in (
            ("judge", is_refusal),
            ("string match (GCG)", string_match),
            ("string match (XSTest)", opening_match),
        )
    }
    if len(models) > 1:
        judges["refit"] = lambda own, model: refit(rows, model)
    result: dict[str, Any] = {}
    for name, judge in judges.items():
        by_model = {}
        for model in models:
            own = [row for row in rows if row.model == model]
            by_model[model] = agreement(own, judge(own, model))
        mean = sum(entry["agreement"] for entry in by_model.values()) / len(by_model)
        result[name] = {"models": by_model, "mean": mean}
    types = sorted({row.type for row in rows} - {""})
    parts = {kind: [row for row in rows if row.type == kind] for kind in types}
    result["by type"] = {kind: agreement(own, [is_refusal(r.response) for r in own]) for kind, own in parts.items()}
    result["by kind"] = {}
    for model in models:
        own = [row for row in rows if row.model == model]
        if found := by_kind(own):
            labels = by_kind(own, [row.refused for row in own])
            given = {kind: labels[kind] for kind in (FULL, PARTIAL)}
            result["by kind"][model] = {"judge": found, "labels": given, "stopped": stopped(own)}
    return result


def tables(result: dict[str, Any]) -> str:
    """The numbers in Markdown."""
    head = ["judge", "answers of", "n", "agreement (95 %)", "precision", "recall", "recall, full", "recall, partial"]

    def cells(name: str, of: str, row: dict[str, Any]) -> list[str]:
        keys = ("precision", "recall", "recall of full refusal", "recall of partial refusal")
        agreed = with_interval(row["agreement"], row["ci95"], ".3f")
        return [name, of, str(row["n"]), agreed, *(with_interval(row[key], form=".3f") for key in keys)]

    rows = []
    for name, judge in result.items():
        if name not in ("by type", "by kind"):
            rows += [cells(name, model, row) for model, row in judge["models"].items()]
            rows.append([name, "mean", "", f"{judge['mean']:.3f}", "", "", "", ""])
    text = markdown_table(head, rows)
    if result["by type"]:
        rows = [cells("judge", kind.replace("_", " "), row) for kind, row in result["by type"].items()]
        text += "\n\n" + markdown_table(["judge", "type of prompt", *head[2:]], rows)
    if result["by kind"]:
        text += "\n\n" + _kinds_table(result["by kind"])
    return text


def _kinds_table(by_model: dict[str, Any]) -> str:
    """Precision and recall of each kind; refused: as the judge says, and as the labels say."""
    rows = []
    for model, found in by_model.items():
        for kind, row in found["judge"].items():
            given = found["labels"].get(kind, {"precision": None, "recall": None})
            rates = [with_interval(one[key], form=".3f") for one in (row, given) for key in ("precision", "recall")]
            rows.append([model, kind, str(row["n"]), str(row["judged"]), *rates])
    given = [f"{key}, given that it refuses" for key in ("precision", "recall")]
    text = markdown_table(["answers of", "kind", "labelled", "judged", "precision", "recall", *given], rows)
    keys = ("refusals", "partial", "partial stopped", "words", "evasion", "broken")
    head = (
        "judged refusals",
        "judged partial",
        "the same, stopped",
        "words left",
        "no refusal, judged evasion",
        "broken",
    )
    rows = [
        [model, *(f"{value:.2f}" if isinstance(value := found["stopped"][key], float) else str(value) for key in keys)]
        for model, found in by_model.items()
    ]
    return text + "\n\n" + markdown_table(["answers of", *head], rows)


def main(asked: Judge) -> None:
    rows = [row for path in asked.labels for row in read_labelled(path)]
    types = {}
    for path in asked.types:
        for text in path.read_text(encoding="utf-8").splitlines():
            fields = json.loads(text)
            types[fields["prompt"].strip()] = fields["type"]
    rows = [replace(row, type=row.type or types.get(row.prompt.strip(), "")) for row in rows]
    result = measure(rows)
    print(tables(result))
    if asked.second:
        result["second"] = repeated(rows, [row for path in asked.second for row in read_labelled(path)])
        for name, found in result["second"].items():
            said = "undefined" if found["kappa"] is None else with_interval(found["kappa"], found["ci95"])
            print(f"\nLabels repeat, {name}: on {found['agreement']:.3f} of {found['n']} answers, kappa {said}")
    if asked.json:
        write_json(result, asked.json)


if __name__ == "__main__":
    main(tyro.cli(Judge, description=__doc__))
