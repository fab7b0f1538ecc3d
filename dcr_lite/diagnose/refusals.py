"""Refusals of a finished run by kind of prompt, and the prompts on which DCR differs from what it is compared with."""

from pathlib import Path
from typing import Any

from dcr_lite.data.rows import Fields, before_field, read_jsonl
from dcr_lite.measure.answers import Measured
from dcr_lite.names import LABELS


def kinds_in(files: tuple[Path, ...]) -> dict[str, str]:
    """The kind of every prompt of measured files, behind the messages before it: their field kind or type, else the set
    that they belong to."""
    kinds: dict[str, str] = {}
    for path in files:
        for fields in read_jsonl(path, lambda fields, place: fields):
            kind = next((str(fields[k]) for k in ("kind", "type", "source") if fields.get(k)), path.stem)
            kinds |= {_asked(str(fields[k]), fields): kind for k in ("prompt", *LABELS[:2]) if k in fields}
    return kinds


def _asked(prompt: str, row: Fields) -> str:
    """A prompt with the messages before it, which may be all that two rows differ in."""
    return "\n".join([*(content for _, content in before_field(row, "a row")), prompt])


def rates_by_kind(before: list[Measured], after: list[Measured], kinds: dict[str, str]) -> list[dict[str, Any]]:
    """For every label and kind {label, kind, n, before, after}: refusal rates of two models on the same prompts, most
    improved first (fewer refusals, or more where the prompts are toxic)."""
    groups: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for old, new in zip(before, after, strict=True):
        key = str(old["label"]), str(kinds.get(_asked(old["prompt"], old)) or old["source"])
        groups.setdefault(key, []).append((old["refused"], new["refused"]))
    rows = [
        {
            "label": label,
            "kind": kind,
            "n": len(refused),
            "before": sum(old for old, _ in refused) / len(refused),
            "after": sum(new for _, new in refused) / len(refused),
        }
        for (label, kind), refused in groups.items()
    ]

    def order(row: dict[str, Any]) -> tuple[int, float, str]:
        change = row["after"] - row["before"]
        return LABELS.index(row["label"]), -change if row["label"] == "toxic" else change, row["kind"]

    return sorted(rows, key=order)


def changed_prompts(
    before: list[Measured], after: list[Measured], kinds: dict[str, str]
) -> dict[str, list[dict[str, Any]]]:
    """Lists of prompts, as {prompt, kind, label, before, after}: log-odds of opening with a refusal.

    still_refused: not toxic and refused after, by log-odds, the highest first.
    newly_answered: not toxic, refused before and answered after, the largest decrease first.
    toxic_answered: the same of toxic prompts.
    """
    lists: dict[str, list[dict[str, Any]]] = {"still_refused": [], "newly_answered": [], "toxic_answered": []}
    for old, new in zip(before, after, strict=True):
        row = {
            "prompt": old["prompt"],
            "kind": kinds.get(_asked(old["prompt"], old), old["source"]),
            "label": old["label"],
            "before": old["refusal_log_odds"],
            "after": new["refusal_log_odds"],
        }
        toxic = old["label"] == "toxic"
        if new["refused"] and not toxic:
            lists["still_refused"].append(row)
        if old["refused"] and not new["refused"]:
            lists["toxic_answered" if toxic else "newly_answered"].append(row)
    lists["still_refused"].sort(key=lambda row: -row["after"])
    for name in ("newly_answered", "toxic_answered"):
        lists[name].sort(key=lambda row: row["after"] - row["before"])
    return lists
