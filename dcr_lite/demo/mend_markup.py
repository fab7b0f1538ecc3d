"""Marks, progress, findings and outcome of mending as HTML. Every text from outside is escaped."""

from collections.abc import Sequence
from html import escape

from dcr_lite.data.marks import Mark
from dcr_lite.data.near import normalised
from dcr_lite.demo import texts
from dcr_lite.demo.markup import box, table
from dcr_lite.demo.mending import Mending, Status
from dcr_lite.measure.answers import Measured
from dcr_lite.mend.checks import Check
from dcr_lite.mend.page import (
    ANSWER_HEAD,
    SAFETY_HEAD,
    TITLES,
    answer_rows,
    near_sentence,
    safety_rows,
    said_in,
    seen_beside,
    seen_today,
)
from dcr_lite.mend.prompts import Wish
from dcr_lite.mend.results import Outcome
from dcr_lite.model.titles import model_title
from dcr_lite.run.caution import caution_of
from dcr_lite.run.report import without_folders
from dcr_lite.run.terminal import quoted

OPEN = 10  # prompts whose answers are shown unasked; the list of more is to be opened


def what_it_mends(mending: Mending) -> str:
    """Which model is mended and, on the page of a run, how its DCR can be."""
    marks, model = without_folders(mending.marks), model_title(mending.model)  # no paths outside, as elsewhere
    said = f"<p>{escape(texts.MENDS.format(model=model, marks=marks))}</p>"
    if run := mending.trained:
        merged, marks = quoted(run / "merged"), quoted(mending.marks)
        into = quoted(run.with_name(f"{run.name}_mended"))
        export = f"dcr-lite export {quoted(run)} --to merged"
        mend = f"dcr-lite mend --model {merged} --marks {marks} --run {into}"
        said += f"<p>{escape(texts.MENDS_DCR)}</p>{_commands([export, mend])}"
    return box(said)


def marks_table(marks: Sequence[Mark], wishes: Sequence[Wish]) -> str:
    """The marks, and what has become of each in the run that has ``wishes``."""
    if not marks:
        return box(f"<p>{escape(texts.NO_MARKS)}</p>")
    parts = {(normalised(wish.prompt), wish.answered): TITLES.get(wish.part, texts.IN_RUN) for wish in wishes}
    rows = [
        (
            mark.prompt,
            mark.wanted,
            mark.model,
            parts.get((normalised(mark.prompt), mark.wanted == "answer"), texts.NEW_MARK),
        )
        for mark in marks
    ]
    return box(table(texts.MARK_COLUMNS, rows, texts.MARKS), texts.MARKS, "region")


def status(status: Status, marks: Sequence[Mark], problem: str = "", opened: bool = False) -> str:
    """What a screen reader says of where mending stands. problem: what has just gone wrong, in a sentence. opened:
    whether the mended model is open in the other tabs; what speaks against it is said with that."""
    if status.stopping:
        said = [texts.STOPPING]
    elif status.step == "unchecked" and not marks:
        said = []
    else:
        wanted = [mark.wanted for mark in marks]
        counts = {kind: wanted.count(kind) for kind in ("answer", "refuse")}
        said = [texts.STEPS[status.step].format(run=without_folders(status.run), **counts)]
    if status.changed and status.step in ("checked", "stopped", "mended"):
        said.append(texts.CHANGED)
    if opened:
        said.append(texts.OPENED)
    shown = "".join(f"<p>{escape(sentence)}</p>" for sentence in said)
    if opened and (caution := caution_of(status.run)):
        shown += f'<p class="problem">{escape(caution)}</p>'
    if problem or status.error:
        problem = _begins_large(problem) or texts.ENDED.format(error=status.error)
        shown = f'<p class="problem">{escape(problem)}</p>{shown}'
    return f'<div class="dcr mending" role="status">{shown}</div>'


def progress(status: Status) -> str:
    """How far the process is: a bar of the part that it is in, the parts that are done, and what is left in all."""
    if not status.works:
        return ""
    in_all = texts.WHOLE if status.step == "checking" else texts.WHOLE_LEFT
    whole = f"<p>{in_all.format(time=_in_words(status.whole))}</p>" if status.whole else ""
    if not status.stages:
        title = texts.STARTING
        return box(f'<progress aria-label="{title}"></progress><p>{title} \N{HORIZONTAL ELLIPSIS}</p>{whole}', title)
    *done, now = status.stages
    said = texts.PROGRESS.format(title=now.title, done=now.done, total=now.total)
    left = f", {texts.LEFT.format(left=_in_words(status.left))}" if now.done < now.total and status.left else ""
    finished = texts.FINISHED.format(titles=", ".join(dict.fromkeys(stage.title for stage in done))) if done else ""
    return box(
        f'<progress aria-label="{escape(now.title)}" value="{now.done}" max="{now.total}"></progress>'
        f"<p>{escape(said)}{left}</p><p>{escape(finished)}</p>{whole}",
        now.title,
    )


def findings(check: Check, wishes: Sequence[Wish]) -> str:
    """What the check found, without the doubtful prompts, which are there to be ticked."""
    said = [*seen_today(check, wishes, escape), *seen_beside(check, wishes, escape)]
    items = "".join(f"<li>{sentence}</li>" for sentence in said)
    return box(f"<h2>{texts.SEEN}</h2><ul>{items}</ul>", texts.SEEN, "region")


def outcome(found: Outcome) -> str:
    """How mending came out: the verdict, the tables of mend.md, what to do next, and each prompt with both answers."""
    answers = table(ANSWER_HEAD, answer_rows(found.found["answer"]), texts.YOURS)
    safety = f"{table(SAFETY_HEAD, safety_rows(found.found), texts.SAFETY)}<p>{near_sentence(found.found)}</p>"
    shown = "".join(map(_both_answers, found.wishes, found.before, found.after))
    title = texts.BEFORE_AFTER.format(count=len(found.wishes))
    opened = " open" if len(found.wishes) <= OPEN else ""
    return box(
        f"<p class='headline'>{escape(found.verdict)}</p>{answers}{safety}"
        f"<p>{texts.NEXT_OLD_STAYS if found.old_stays else texts.NEXT}</p>"
        f"{_commands(found.commands)}"
        f"<details{opened}><summary>{title}</summary>{shown}</details>",
        texts.MEND_TAB,
        "region",
    )


def _commands(commands: Sequence[str]) -> str:
    lines = "".join(f"<code>{escape(command)}</code>" for command in commands)
    return f"<pre>{lines}</pre>"


def _both_answers(wish: Wish, before: Measured, after: Measured) -> str:
    wanted = f"to {'answer' if wish.answered else 'refuse'}; {TITLES.get(wish.part, texts.IN_RUN)}"
    sides = "".join(
        f"<div><b>{_sign(row['refused'])} {when}, {texts.SAID[row['refused']]}</b>"
        f"<p>{escape(said_in(row) or texts.NOTHING_SAID)}</p></div>"
        for when, row in ((texts.BEFORE, before), (texts.AFTER, after))
    )
    return f'<h3>{escape(wish.prompt)} <small>({wanted})</small></h3><div class="sides">{sides}</div>'


def _sign(refused: bool) -> str:
    sign, colour = ("\N{MULTIPLICATION X}", "refuses") if refused else ("\N{CHECK MARK}", "answers")
    return f'<span aria-hidden="true" style="color: var(--{colour})">{sign}</span>'


def _in_words(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _begins_large(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
