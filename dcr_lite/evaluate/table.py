"""The result of dcr-lite evaluate as a table in the terminal."""

from typing import Any

from rich.table import Table

from dcr_lite.evaluate.command import Evaluation
from dcr_lite.run.terminal import console


def show(result: dict[str, Any], evaluation: Evaluation) -> None:
    """Print refusal rates, discernment and general ability, and where the files are."""
    table = Table(title="Refusal rates (95 % interval)", title_justify="left", title_style="bold")
    for column in ("set", "label"):
        table.add_column(column)
    for column in ("n", "refused"):
        table.add_column(column, justify="right")
    for row in result["sets"]:
        rate = _with_interval(row["refusal_rate"], row["ci95"])
        table.add_row(row["name"], row["label"].replace("_", " "), str(row["n"]), rate)
    console.print(table)
    discernment, general = result["discernment"], result["general"]
    for name, key in (("J", "j"), ("AUROC", "auroc")):
        if discernment[f"{key}_ci95"]:
            console.print(f"{name} {_with_interval(discernment[key], discernment[f'{key}_ci95'])}")
    console.print(f"answer loss {general['answer_loss']:.3f} nats per token on {general['answers']} held-out answers")
    if found := general["multiple_choice"]:
        accuracy = _with_interval(found["accuracy"], found["ci95"])
        console.print(f"multiple choice {accuracy} of {found['n']}, chance {found['chance']:.2f}")
    console.print()
    private = "the answers (private: contains answers to toxic prompts)"
    for path, what in ((evaluation.out, "the numbers"), (evaluation.answers, private)):
        # Never wrapped and never read as markup: a path is there to be copied.
        console.print(f"  {path!s:<36} {what}", markup=False, soft_wrap=True)


def _with_interval(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{value:.3f} [dim]{low:.3f}-{high:.3f}[/dim]"
