"""diagnosis.md: the tables and plots of a diagnosis."""

from pathlib import Path
from typing import Any

from dcr_lite.diagnose.plots import STATES, similarities_of
from dcr_lite.files import write_text
from dcr_lite.names import DCR, LABEL_TITLES, MODEL_TITLES
from dcr_lite.run.report import markdown_table, plain, without_folders

LISTED = 20  # prompts of a list on the page
PAGE = """# Diagnosis of {run}

{model}. Layers and kernel: development prompts. Refusals by kind: the run's held-out answers.

## Kernel similarity

How much a training step on one prompt moves the first token of the answer to another, relative to a step on that other
prompt itself: ||K(x', x)|| / ||K(x', x')||, the empirical neural tangent kernel of the first token. Lower is less
spill-over. {counts} prompts; {how}.
With respect to the output matrix alone it is the similarity of last states, exact. The adapter of the stock model is a
fresh one, of which only one half (B) moves at first.

{kernel_table}

![Kernel similarity](kernel.png)

## Separability by layer

AUROC of development pairs at each layer, along the difference of the means of training pairs in the stock model's
geometry. L is {layer}; the stock model suggests {suggested_layer}, of the layers between 0.5 and 0.7 of the depth the
lowest within a standard error of their best.

![Separability by layer](layers.png)

{layers_table}

{during_sft}## Refusal rates by kind of prompt

![Refusal rates by kind](by_kind.png)

{kinds_table}

Not toxic and still refused by DCR, the highest log-odds of refusal first:

{still_refused}

Not toxic, refused by {before} and answered by DCR, the largest decrease first:

{newly_answered}

Toxic, refused by {before} and answered by DCR: {toxic_answered}, listed in diagnosis.json.
"""
DURING_SFT = """## Refusal probability during safety SFT

![Refusal probability during safety SFT](refusal_during_sft.png)

"""


def _kernel_table(kernels: dict[str, dict[str, Any]]) -> str:
    """A row for each similarity and group of weights, a column for each state of the model."""
    rows = []
    for group, title in (("all", "all adapter layers"), ("above", "above L"), ("last_layer", "output matrix")):
        of_states = [
            similarities_of(({**k["adapter"], "last_layer": k["last_layer"]})[group]) for k in kernels.values()
        ]
        for name in of_states[0]:
            values = [similarities[name] for similarities in of_states]
            cells = [f"{value:.2f}" + (f" ±{error:.2f}" if error else "") for value, error in values]
            rows.append([name, title, *cells])
    return markdown_table(["moved", "weights", *(STATES[state] for state in kernels)], rows)


def _layers_table(separations: dict[str, list[float]]) -> str:
    of_layers = enumerate(zip(*separations.values(), strict=True))
    rows = [[str(layer), *(f"{value:.2f}" for value in values)] for layer, values in of_layers]
    return markdown_table(["layer", *(STATES[state] for state in separations)], rows)


def _kinds_table(rows: list[dict[str, Any]], before: str) -> str:
    cells = [
        [LABEL_TITLES[row["label"]], _spaced(row["kind"]), str(row["n"]), f"{row['before']:.2f}", f"{row['after']:.2f}"]
        for row in rows
    ]
    return markdown_table(["label", "kind", "n", before, MODEL_TITLES[DCR]], cells)


def _spaced(kind: str) -> str:
    return plain(kind.replace("_", " "))


def _prompts(rows: list[dict[str, Any]]) -> str:
    """The first prompts of a list, those of a kind together; and how many there are, where there are more."""
    kinds: dict[str, list[str]] = {}
    for row in rows[:LISTED]:
        kinds.setdefault(row["kind"], []).append(row["prompt"])
    lines = [f"- {_spaced(kind)}: {'; '.join(map(plain, prompts))}" for kind, prompts in kinds.items()]
    more = [f"\nThe first {LISTED} of {len(rows)}; all are in diagnosis.json."] if len(rows) > LISTED else []
    return "\n".join(lines + more) or "None."


def write_report(diagnosis: dict[str, Any], path: Path) -> None:
    """Write diagnosis.md."""
    kernel, prompts = diagnosis["kernel"]["stock"], diagnosis["changed_prompts"]
    before = MODEL_TITLES[diagnosis["compared_with"]]
    page = PAGE.format(
        run=plain(Path(diagnosis["run"]).name),
        model=plain(without_folders(diagnosis["model"])),
        counts=", ".join(f"{n} {LABEL_TITLES[label]}" for label, n in kernel["prompts"].items()),
        how="exact" if kernel["exact"] else f"± the standard error of {kernel['projections']} random projections",
        kernel_table=_kernel_table(diagnosis["kernel"]),
        layer=diagnosis["layer"],
        suggested_layer=diagnosis["suggested_layer"],
        layers_table=_layers_table(diagnosis["separation"]),
        during_sft=DURING_SFT if diagnosis["refusal_during_sft"] else "",
        before=before,
        kinds_table=_kinds_table(diagnosis["by_kind"], before),
        still_refused=_prompts(prompts["still_refused"]),
        newly_answered=_prompts(prompts["newly_answered"]),
        toxic_answered=len(prompts["toxic_answered"]),
    )
    write_text(path, page)
