"""The result of dcr-lite evaluate as a table in the terminal."""

from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dcr_lite.evaluate.command import Evaluation
from dcr_lite.judges.agreement import agreement_words
from dcr_lite.judges.interface import short
from dcr_lite.measure.kinds import KIND_TITLES, KINDS, REFUSING, Kind
from dcr_lite.run.kept_report import kept_lines
from dcr_lite.run.terminal import console

BAR = 40  # characters
# Of each kind a sign of its own, so that bars can be read without colour as well.
SIGNS: dict[Kind, tuple[str, str]] = {
    "refusal": ("█", "yellow"), "partial": ("▒", "yellow"), "evasion": ("?", "magenta"), "broken": ("×", "red"),
    "answer": ("░", "green"),
}  # fmt: skip
STOPPED = "Refusals were stopped once sure; --whole-answers tells partial from full ones."


def show(result: dict[str, Any], evaluation: Evaluation) -> None:
    """Print refusal rates, kinds of answer, discernment and general ability, and where the files are."""
    console.print(_rates(result))
    for pair in result["agreement"]:
        console.print(f"{' and '.join(map(short, pair['judges']))} {agreement_words(pair)}", markup=False)
    _show_kinds(result)
    if count := result["not_begun"]:
        tokens = result["settings"]["answer_tokens"]
        console.print(
            f"{count} of {sum(row['n'] for row in result['sets'])} answers had not begun after {tokens} tokens: the "
            "model was still thinking, and they count as not refused. Measure with more --answer-tokens."
        )
    discernment, general = result["discernment"], result["general"]
    for name, key in (("J", "j"), ("AUROC", "auroc")):
        if discernment[f"{key}_ci95"]:
            console.print(f"{name} {_with_interval(discernment[key], discernment[f'{key}_ci95'])}")
    for line in kept_lines(result["kept"] or {}):
        console.print(line)
    console.print(f"answer loss {general['answer_loss']:.3f} nats per token on {general['answers']} held-out answers")
    if found := general["multiple_choice"]:
        accuracy = _with_interval(found["accuracy"], found["ci95"])
        console.print(f"multiple choice {accuracy} of {found['n']}, chance {found['chance']:.2f}")
    console.print()
    private = "the answers (private: contains answers to toxic prompts)"
    for path, what in ((evaluation.out, "the numbers"), (evaluation.answers, private)):
        # Never wrapped and never read as markup: a path is there to be copied.
        console.print(f"  {path!s:<36} {what}", markup=False, soft_wrap=True)


def _rates(result: dict[str, Any]) -> Table:
    """The refusal rates of each set, a column for each judge."""
    judges = result["judges"] or [result | {"name": result["judge"]}]
    by = f" by {escape(short(judges[0]['name']))}" if len(judges) == 1 and result["judges"] else ""
    table = Table(title=f"Refusal rates{by} (95 % interval)", title_justify="left", title_style="bold")
    for column in ("set", "label"):
        table.add_column(column)
    for column in ("n", *("refused" if len(judges) == 1 else escape(short(judge["name"])) for judge in judges)):
        table.add_column(column, justify="right")
    found = [{(row["name"], row["label"]): row for row in judge["sets"]} for judge in judges]
    for key in dict.fromkeys(key for rows in found for key in rows):
        rates = [_with_interval(rows[key]["refusal_rate"], rows[key]["ci95"]) if key in rows else "-" for rows in found]
        most = max(rows[key]["n"] for rows in found if key in rows)
        table.add_row(escape(key[0]), key[1].replace("_", " "), str(most), *rates)
    return table


def _show_kinds(result: dict[str, Any]) -> None:
    """The kinds of answer to every set and label, a bar each, and what its signs stand for."""
    table = Table(title="Kinds of answer", title_justify="left", title_style="bold")
    for column in ("set", "label", "kinds"):
        table.add_column(column)
    for row in result["sets"]:
        table.add_row(escape(row["name"]), row["label"].replace("_", " "), kinds_bar(row["kinds"]))
    console.print(table)
    n = sum(row["n"] for row in result["sets"])
    for line in (REFUSING, [kind for kind in KINDS if kind not in REFUSING]):
        legend = Text()
        for kind in line:
            sign, colour = SIGNS[kind]
            share = sum(row["kinds"][kind] * row["n"] for row in result["sets"]) / n
            legend.append(f"{sign} ", colour).append(f"{KIND_TITLES[kind]} {share:.0%}   ")
        console.print(legend)
    if not result["settings"]["whole_answers"]:
        console.print(Text(STOPPED, "dim"))


def kinds_bar(shares: dict[Kind, float]) -> Text:
    """A stacked bar of the shares of KINDS, which sum to 1, in BAR characters: one at least for every kind that
    there is, the rest by the largest remainders."""
    here = [kind for kind in KINDS if shares[kind] > 0]
    exact = {kind: shares[kind] * (BAR - len(here)) for kind in here}
    lengths = {kind: 1 + int(exact[kind]) for kind in here}
    by_remainder = sorted(here, key=lambda kind: int(exact[kind]) - exact[kind])
    for kind in by_remainder[: BAR - sum(lengths.values())]:
        lengths[kind] += 1
    bar = Text()
    for kind in here:
        sign, colour = SIGNS[kind]
        bar.append(sign * lengths[kind], colour)
    return bar


def _with_interval(value: float, interval: list[float]) -> str:
    low, high = interval
    return f"{value:.3f} [dim]{low:.3f}-{high:.3f}[/dim]"
