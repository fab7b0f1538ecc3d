"""RUN/mend.md: the user's prompts before and after mending, and what was seen of them before."""

from collections.abc import Callable, Sequence
from typing import Any

from dcr_lite.data.benchmarks import BENCHMARKS
from dcr_lite.data.near import near_groups
from dcr_lite.measure.answers import Measured
from dcr_lite.measure.metrics import with_interval
from dcr_lite.mend.checks import Check
from dcr_lite.mend.outcome import Numbers
from dcr_lite.mend.prompts import Wish
from dcr_lite.run.kept_report import HEAD, WHAT, kept_rows
from dcr_lite.run.report import markdown_table, plain

Quoted = Callable[[str], str]
PAGE = """# Mended

**{verdict}**

Private: this page has your prompts and the answers to them. report.md has everything else of this run.

## Your prompts to answer

{answer_table}

{explained}

## Safety

Refusal rates of toxic prompts, and their change with its 95 % interval.

{safety}

## Answers kept elsewhere

{what_kept}

{kept_table}

## What was seen before

{check}

## Answers

{answers}
"""
ANSWER_HEAD = ["", "prompts", "refused before", "of these answered now", "share ↑", "newly refused"]
SAFETY_HEAD = ["", "prompts", "before ↑", "after ↑", "change"]
TITLES = {
    "kept": "kept, not trained on",
    "trained": "trained on",
    "calibrating": "set the dial by",
    "left_out": "left out",
}
EXPLAINED = (
    "How often others of their kind are answered now, those that were kept say: nothing like them was trained on."
)
NEAR = (
    "Held-out toxic prompts that are nearly the same as one of yours say nothing of others and are left out, before "
    "and after: {}."
)
ALL_TRAINED = (
    "They are few, or nearly the same, so all that it refused were trained on, and their answers say little of others. "
    "What is known of others: by the stock model's states alone, {with_others} of {n} read as seemingly toxic when all "
    "the others are known to be, and {alone} without that."
)


def page(
    verdict: str, found: Numbers, wishes: Sequence[Wish], before: Sequence[Measured], after: Sequence[Measured],
    kept: dict[str, Any],
) -> str:  # fmt: skip
    """The page. before, after: the answers to ``wishes``. kept: the answers that the mended model keeps."""
    few = found["cross_validated"]
    return PAGE.format(
        verdict=plain(verdict),
        answer_table=markdown_table(ANSWER_HEAD, answer_rows(found["answer"])),
        explained=EXPLAINED if few is None else ALL_TRAINED.format(**few),
        safety=f"{markdown_table(SAFETY_HEAD, safety_rows(found))}\n\n{near_sentence(found)}".rstrip(),
        what_kept=WHAT,
        kept_table=markdown_table(HEAD, kept_rows([("mended", kept)])),
        check="\n".join(check_lines(found["check"], wishes)),
        answers="\n\n".join(map(_answers, wishes, before, after)),
    )


def answer_rows(parts: dict[str, Numbers]) -> list[list[str]]:
    """The cells of the table on the prompts to answer, below ANSWER_HEAD. parts: ``answer`` of the outcome."""
    rows = []
    for part, of in parts.items():
        counts = map(str, (of["n"], of["refused"], of["answered"]))
        rows.append([TITLES[part], *counts, with_interval(of["rate"], of["ci95"]), str(of["newly_refused"])])
    return rows


def safety_rows(found: Numbers) -> list[list[str]]:
    """The cells of the table on the toxic prompts of an outcome, below SAFETY_HEAD."""
    rows = {"held-out toxic prompts": found["held_out"]} if found["held_out"] else {}
    rows |= {f"yours to refuse, {TITLES[part]}": of for part, of in found["refuse"].items()}
    cells = []
    for title, of in rows.items():
        interval = "" if of["ci95"] is None else f" ({of['ci95'][0]:+.2f} to {of['ci95'][1]:+.2f})"
        rates = f"{of['before']:.2f}", f"{of['after']:.2f}", f"{of['change']:+.2f}{interval}"
        cells.append([title, str(of["n"]), *rates])
    return cells


def near_sentence(found: Numbers) -> str:
    """How many held-out prompts an outcome leaves out, in a sentence; empty where it leaves out none."""
    near = found["held_out_near"]
    return NEAR.format(near) if near else ""


def check_lines(check: Check, wishes: Sequence[Wish]) -> list[str]:
    """What the check found, as a list in Markdown."""
    lines = [f"- {said}" for said in seen_today(check, wishes)]
    if check["doubtful"]:
        left_out = sum(wish.part == "left_out" for wish in wishes)
        lines.append(
            f"- These seemed doubtful, and {left_out} of them were left out:"
            if any(wish.part for wish in wishes)  # they have been divided
            else "- Are you sure of these? They are left out unless --sure names their numbers, or all (with --resume):"
        )
    lines += [f"    - {doubt(one)}" for one in check["doubtful"]]
    return lines + [f"- {said}" for said in seen_beside(check, wishes)]


def seen_today(check: Check, wishes: Sequence[Wish], quoted: Quoted = plain) -> list[str]:
    """Sentences on what the model says to the prompts today. quoted: makes a text from outside part of them."""
    to_answer, to_refuse = _both(wishes)
    said = [f"The model refuses {len(check['refused'])} of {len(to_answer)} prompts that it should answer."]
    if check["answered_today"]:
        said.append(f"It answers these already: {_listed(check['answered_today'], to_answer, quoted)}")
    if check["refuse_answered_today"]:
        those = _listed(check["refuse_answered_today"], to_refuse, quoted)
        said.append(
            f"Of the {len(to_refuse)} that it should refuse it answers these, which mending does not aim at: {those}"
        )
    return said


def doubt(one: dict[str, Any], quoted: Quoted = plain) -> str:
    """A prompt that may be toxic after all, with its number, the reasons and the nearest toxic prompt."""
    reasons = " and ".join(map(quoted, one["reasons"]))
    return f"{one['number']}. {quoted(one['prompt'])}: {reasons}. Nearest: {quoted(one['nearest'])}"


def seen_beside(check: Check, wishes: Sequence[Wish], quoted: Quoted = plain) -> list[str]:
    """Sentences on what the prompts come near to, each other or public sets, and on words that alone tell the kinds
    apart."""
    to_answer, to_refuse = _both(wishes)
    said = []
    if alike := sum(len(group) for texts in (to_answer, to_refuse) for group in near_groups(texts) if len(group) > 1):
        said.append(
            f"{alike} of your prompts are nearly the same as another of them: what is nearly the same is trained on "
            "together or kept together."
        )
    for one in check["duplicates"]:
        own = (to_answer if one["kind"] == "answer" else to_refuse)[one["number"] - 1]
        said.append(
            f"{quoted(own)} is nearly the same as a prompt of {quoted(one['set'])}, on which the mended model can no "
            f"longer be measured fairly: {quoted(one['prompt'])}"
        )
    said.append(f"Compared with the sets that are here: {', '.join(map(quoted, check['compared_with'])) or 'none'}.")
    if missing := [name for name in BENCHMARKS if name not in check["compared_with"]]:
        said[-1] += (
            f" Not here, and so not compared: {', '.join(missing)}; dcr-lite evaluate --benchmarks fetches them."
        )
    for kind, other, words in (
        ("answer", "toxic", check["words"]["answer"]),
        ("refuse", "harmless", check["words"]["refuse"]),
    ):
        if words:
            said.append(
                f"These words alone tell your prompts to {kind} from the others: {', '.join(map(quoted, words))}. The "
                f"model may learn just that; some {other} prompts with the same words keep it from doing so."
            )
    return said


def _both(wishes: Sequence[Wish]) -> list[list[str]]:
    """The prompts to answer, and those to refuse."""
    return [[wish.prompt for wish in wishes if wish.answered == answered] for answered in (True, False)]


def _listed(numbers: Sequence[int], texts: Sequence[str], quoted: Quoted) -> str:
    return "; ".join(f"{number}. {quoted(texts[number - 1])}" for number in numbers)


def said_in(row: Measured) -> str:
    """What a model said, with an ellipsis where it had not come to an end."""
    said = str(row["response"]).strip()
    return said if row["ended"] else f"{said} \N{HORIZONTAL ELLIPSIS}"


def _answers(wish: Wish, before: Measured, after: Measured) -> str:
    """A prompt with both answers."""
    wanted = "to answer" if wish.answered else "to refuse"
    said = [
        f"- {when}, {'refused' if row['refused'] else 'answered'}: {plain(said_in(row)) or '(nothing)'}"
        for when, row in (("before", before), ("after", after))
    ]
    return "\n".join([f"**{plain(wish.prompt)}** ({wanted}; {TITLES[wish.part]})", "", *said])
