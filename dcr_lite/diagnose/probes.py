"""What a finished run shows, in numbers: how tightly kinds of prompt are coupled, at which layer they can be told
apart, whom the method helped and whom it did not."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dcr_lite.data.rows import read_jsonl
from dcr_lite.diagnose.ntk import gradients, last_layer_similarity, mean_similarity, products
from dcr_lite.measure.answers import Measured
from dcr_lite.method.geometry import Centre, Geometry
from dcr_lite.method.read_out import separation
from dcr_lite.model.adapters import train_only
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states
from dcr_lite.names import LABELS

SHOWN = 20  # prompts of each list: enough to see what they have in common
GROUPS = ("all", "above")  # adapter layers: all, and those above L, which stage 2 trains


# --- layers -----------------------------------------------------------------------------------------------------------


def layer_geometries(stock_states: Tensor, centre: Centre, whiten: bool) -> list[Geometry]:
    """The stock model's geometry at every layer, from its states of training pairs (layers, prompts, d_model)."""
    return [Geometry.fit(states, centre, whiten) for states in stock_states]


def layer_separations(
    model: Model, geometries: list[Geometry], reference: list[list[int]], unseen: list[list[int]]
) -> list[float]:
    """AUROC of unseen pairs at every layer of the model as it stands, read as stage 1 reads its development pairs."""
    seen, new = (last_states(model, rows)[:, :, 0] for rows in (reference, unseen))
    return [separation(geometry, *states) for geometry, *states in zip(geometries, seen, new, strict=True)]


def auroc_error(auroc: float, n: int) -> float:
    """Standard error of an AUROC from n prompts of each kind (Hanley and McNeil, 1982)."""
    q1, q2 = auroc / (2 - auroc), 2 * auroc**2 / (1 + auroc)
    variance = (auroc * (1 - auroc) + (n - 1) * (q1 + q2 - 2 * auroc**2)) / n**2
    return float(max(variance, 0.0) ** 0.5)


def suggested_layer(separations: list[float], n: int) -> int:
    """The lowest layer that separates the stock model's ``n`` unseen pairs within one standard error of the best one:
    lower layers train faster, and leave more of the model to stage 2. Never the last, above which nothing is left."""
    candidates = separations[:-1]
    enough = max(candidates) - auroc_error(max(candidates), n)
    return next(i for i, value in enumerate(candidates) if value >= enough)


# --- the kernel -------------------------------------------------------------------------------------------------------


def couplings(
    model: Model,
    adapter: str,
    layer: int,
    kinds: dict[str, list[list[int]]],
    projections: int,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """How far a step on prompts of one kind moves the first token of another, for the adapter as it stands.

    ``kinds``: rows of token ids by label; toxic and seemingly toxic ones are pairs. Returns {exact, projections,
    adapter: {all, above: {means, pair}}, last_layer: {means, pair}}: means[moved][by] and pair are [similarity,
    standard error]; pair is that of a seemingly toxic prompt moved by its own toxic side.
    """
    labels = [label for label in LABELS if kinds.get(label)]
    rows = [row for label in labels for row in kinds[label]]
    label_of = [label for label in labels for _ in kinds[label]]
    below = train_only(model, adapter, range(layer + 1))
    above = train_only(model, adapter, range(layer + 1, depth(model.network)))
    found = gradients(model, [below, above], rows, projections, progress=progress)
    others = ~torch.eye(len(rows), dtype=torch.bool)

    def of(moved: str, by: str) -> Tensor:
        a, b = (torch.tensor([label == wanted for label in label_of]) for wanted in (moved, by))
        return a[:, None] & b[None] & others

    own = torch.zeros(len(rows), len(rows), dtype=torch.bool)
    n = len(kinds["toxic"])
    own[torch.arange(n, 2 * n), torch.arange(n)] = True

    def summary(mean: Callable[[Tensor], list[float]]) -> dict[str, Any]:
        means = {a: {b: mean(of(a, b)) for b in labels if of(a, b).any()} for a in labels}
        return {"means": means, "pair": mean(own)}

    by_group = {}
    for group, first in zip(GROUPS, (0, 1), strict=True):
        blocks = products(found.left[first:], found.right[first:])
        by_group[group] = summary(partial(_value_and_error, blocks, found.exact))
    last = last_layer_similarity(found.states)
    return {
        "exact": found.exact,
        "projections": projections,
        "prompts": {label: len(kinds[label]) for label in labels},
        "adapter": by_group,
        "last_layer": summary(lambda pairs: [float(last[pairs].mean()), 0.0]),
    }


def _value_and_error(blocks: Tensor, exact: bool, pairs: Tensor) -> list[float]:
    return list(mean_similarity(blocks, pairs, exact))


# --- who was helped ---------------------------------------------------------------------------------------------------


def kinds_in(files: tuple[Path, ...]) -> dict[str, str]:
    """The kind of every prompt of measured files: their field kind or type, else the set that they belong to."""
    kinds: dict[str, str] = {}
    for path in files:

        def parse(fields: dict[str, object], place: str, path: Path = path) -> None:
            kind = next((str(fields[k]) for k in ("kind", "type", "source") if fields.get(k)), path.stem)
            kinds.update({str(fields[k]): kind for k in ("prompt", *LABELS[:2]) if isinstance(fields.get(k), str)})

        read_jsonl(path, parse)
    return kinds


def by_kind(before: list[Measured], after: list[Measured], kinds: dict[str, str]) -> list[dict[str, Any]]:
    """For every label and kind {label, kind, n, before, after}: refusal rates of two models on the same prompts, most
    improved first (fewer refusals, or more where the prompts are toxic)."""
    groups: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for old, new in zip(before, after, strict=True):
        key = str(old["label"]), str(kinds.get(old["prompt"]) or old["source"])
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

    def gain(row: dict[str, Any]) -> float:
        change = float(row["before"] - row["after"])
        return -change if row["label"] == "toxic" else change

    return sorted(rows, key=lambda row: (LABELS.index(row["label"]), -gain(row), row["kind"]))


def notable(before: list[Measured], after: list[Measured], kinds: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Prompts worth reading, at most SHOWN of each list, as {prompt, kind, label, before, after}: log-odds of opening
    with a refusal.

    still_refused: not toxic, and refused after; the surest refusals first. helped: not toxic, refused before and
    answered after; lost: toxic, refused before and answered after; the largest falls first.
    """
    lists: dict[str, list[dict[str, Any]]] = {"still_refused": [], "helped": [], "lost": []}
    for old, new in zip(before, after, strict=True):
        row = {
            "prompt": old["prompt"],
            "kind": kinds.get(old["prompt"], old["source"]),
            "label": old["label"],
            "before": old["refusal_log_odds"],
            "after": new["refusal_log_odds"],
        }
        if new["refused"] and old["label"] != "toxic":
            lists["still_refused"].append(row)
        if old["refused"] and not new["refused"]:
            lists["lost" if old["label"] == "toxic" else "helped"].append(row)
    lists["still_refused"].sort(key=lambda row: -row["after"])
    for name in ("helped", "lost"):
        lists[name].sort(key=lambda row: row["after"] - row["before"])
    return {name: rows[:SHOWN] for name, rows in lists.items()}
