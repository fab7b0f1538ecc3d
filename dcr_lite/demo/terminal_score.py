"""Scores of one prompt in the terminal: a table of the models, two bars, the prompt's words, the answers."""

from rich.table import Table
from rich.text import Text

from dcr_lite.demo.score import Score
from dcr_lite.demo.texts import COLUMNS
from dcr_lite.names import LABEL_TITLES, MODEL_TITLES
from dcr_lite.run.terminal import console

BAR = 24  # characters
MARKED = 1 / 3  # of the largest weight: what is below stays unmarked


def show_score(title: str, note: str, scores: list[Score]) -> None:
    """Print the scores of one prompt, one for each model. Bars and words are of the first."""
    console.print(Text(title, "dim"))
    if note:
        console.print(Text(note, "yellow"))
    table = Table("", *COLUMNS[1:], box=None, padding=(0, 2, 0, 0))
    for score in scores:
        like = score.similarity
        numbers = (f"{like.toxic:.2f}", f"{like.seemingly_toxic:.2f}") if like else ("-", "-")
        table.add_row(MODEL_TITLES[score.model], score.verdict, f"{score.refusal_probability:.2f}", *numbers)
    console.print(table)
    _show_bars(scores[0])
    _show_words(scores[0])
    for score in scores:
        console.print(Text(f"\n{MODEL_TITLES[score.model]}:", "bold"))
        console.print(Text(score.answer))  # as Text: never read as markup


def _show_bars(score: Score) -> None:
    if score.similarity:
        console.print()
        for kind, value in (("toxic", score.similarity.toxic), ("seemingly_toxic", score.similarity.seemingly_toxic)):
            full = round(value * BAR)
            console.print(Text(f"{LABEL_TITLES[kind]:<16}{'█' * full}{'░' * (BAR - full)} {value:.2f}"))


def _show_words(score: Score) -> None:
    top = score.heaviest
    marked = Text("\n" + score.prompt)
    for word in score.words:
        if abs(word.weight) > abs(top[0].weight) * MARKED:
            marked.stylize("bold yellow" if word.weight > 0 else "bold green", word.start + 1, word.stop + 1)
    console.print(marked)
    console.print(Text("largest weights: " + ", ".join(f"{word.text} {word.weight:+.1f}" for word in top), "dim"))
