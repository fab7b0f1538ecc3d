"""What tables say of the stock model's answers that other models keep."""

from collections.abc import Iterable
from typing import Any

from dcr_lite.measure.metrics import with_interval
from dcr_lite.names import KEPT_LABELS, LABEL_TITLES

Kept = dict[str, Any]  # of one model, as ``answers_kept`` gives it
WHAT = (
    "Kept: the share of its probability that a token of the stock model's own answer keeps under the model, 1 where "
    "nothing has changed; refusals of the stock model are left out."
)
HEAD = ("", "prompts", "answers", "kept ↑", "nats lost", "KL, first token", "KL", "words", "distinct-2")
COLUMNS = tuple(f"kept, {LABEL_TITLES[label]} ↑" for label in KEPT_LABELS)


def kept_cells(kept: Kept | None) -> list[str]:
    """Of COLUMNS, with 95 % intervals; a dash where nothing was measured."""
    return [_share(kept.get(label) if kept else None) for label in KEPT_LABELS]


def kept_rows(models: Iterable[tuple[str, Kept]]) -> list[list[str]]:
    """The cells of HEAD, a row for each label of each model, given with its title."""
    rows = []
    for title, kept in models:
        for label, of in kept.items():
            cells = [with_interval(of[name], form=".3f") for name in ("loss", "first_divergence", "divergence")]
            for name, form in (("words", ".0f"), ("distinct", ".2f")):
                cells.append(f"{with_interval(of[name], form=form)} of {with_interval(of[f'stock_{name}'], form=form)}")
            rows.append([title, LABEL_TITLES[label], str(of["n"]), _share(of), *cells])
    return rows


def kept_lines(kept: Kept) -> list[str]:
    """The same of one model as sentences."""
    lines = []
    for label, of in kept.items():
        if of["n"]:
            apart = f"KL {of['divergence']:.3f} nats per token, {of['first_divergence']:.3f} at the first"
            what = f"{of['n']} of the stock model's answers to {LABEL_TITLES[label]} prompts"
            lines.append(f"answers kept {_share(of)}, {apart}; {what}")
    return [*lines, *filter(None, [left_out(kept)])]


def left_out(kept: Kept) -> str:
    """How many of the stock model's answers were left out, as a sentence; empty where none was."""
    counts = [
        f"{of[what]} {name} to {LABEL_TITLES[label]} prompts"
        for label, of in kept.items()
        for what, name in (("refused", "refusals"), ("empty", "empty answers"))
        if of[what]
    ]
    return f"Of the stock model's answers these were left out: {', '.join(counts)}." if counts else ""


def _share(of: dict[str, Any] | None) -> str:
    return with_interval(of["kept"], of["kept_ci95"]) if of else "-"
