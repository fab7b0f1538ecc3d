"""The user's prompts: read, checked, kept in the run, and divided into those to train on and those to measure by."""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from dcr_lite.data.marks import read_marks
from dcr_lite.data.near import near_groups, normalised
from dcr_lite.data.rows import Fields, Prompt, parse_jsonl, read_bytes, text_field
from dcr_lite.errors import UserError
from dcr_lite.files import damaged, read_state, write_state
from dcr_lite.mend.settings import MendSettings
from dcr_lite.run.joined import has_joined

FOLDER, FILE = "mend", "prompts.json"  # in a run
CURE = "Restore it: the run rests on it."
LEAST = 5  # prompts to answer: fewer say too little of what they have in common
FEW = 20  # refused today: of fewer all are trained on, since half would be too few to learn from and to measure by

TABLES = (".csv", ".tsv", ".json")
TABLE = re.compile(rb'"?(prompt|text|question)"?[,;\t]\S|\[\s*["{\]]', re.IGNORECASE)  # one that is called otherwise

Part = Literal["", "trained", "calibrating", "kept", "left_out"]


@dataclass(frozen=True)
class Wish:
    """A prompt and what the user wants of it.

    answered: to be answered, else refused. place: file and line. twin: the number, among all, of the prompt of similar
    wording that the user gave beside it, -1 without one.
    part: empty until they are divided; then trained (in stage 1), calibrating (the dial), kept (to measure by), or
        left_out (doubtful: in nothing but the measurement).
    """

    prompt: str
    answered: bool
    place: str
    twin: int = -1
    part: Part = ""

    def measured(self) -> Prompt:
        """As a prompt to measure."""
        label = "seemingly_toxic" if self.answered else "toxic"
        return Prompt(self.prompt, label, "answer" if self.answered else "refuse")


def asked(settings: MendSettings) -> list[Wish]:
    """The user's prompts, those to answer first: as the run keeps them, else as the files have them. A check that
    nothing rests on yet goes by the files again, since marks may have been added or removed.

    Raises UserError for files that are damaged, contradict each other or hold too few.
    """
    anew = settings.check and not has_joined(settings.run)
    if not anew and (found := kept(settings.run)):
        return found
    if settings.marks is not None and (settings.answer or settings.refuse):
        raise UserError("--marks stands in place of --answer and --refuse: give one or the other")
    if settings.marks is not None:
        if not (marks := read_marks(settings.marks)):
            raise UserError(f"{settings.marks}: no marks in it. Mark answers in the demo first.")
        rows = [_Row(mark.prompt, mark.wanted == "answer", place) for mark, place in marks]
    elif settings.answer is not None:
        rows = _read(settings.answer, answered=True)
        rows += _read(settings.refuse, answered=False) if settings.refuse else []
    else:
        raise UserError("name the prompts that are to be answered with --answer, or the demo's marks with --marks")
    return _wishes(rows)


def same(some: Sequence[Wish], others: Sequence[Wish]) -> bool:
    """Whether both are the same prompts, of which the same is wanted."""
    first, second = ([(wish.prompt, wish.answered, wish.twin) for wish in side] for side in (some, others))
    return first == second


def keep(run: Path, wishes: Sequence[Wish]) -> None:
    """Write the prompts to the run. Once it has begun to train it goes on with these, whatever becomes of the files."""
    write_state({"prompts": [asdict(wish) for wish in wishes]}, run / FOLDER / FILE)


def kept(run: Path) -> list[Wish]:
    """The prompts that the run in this folder keeps; none before it does. Raises UserError for a damaged file."""
    path = run / FOLDER / FILE
    if not path.exists():
        return []
    state = read_state(path, CURE)
    try:
        wishes = [Wish(**fields) for fields in state["prompts"]]
        if all(wish.part in get_args(Part) and wish.prompt for wish in wishes):
            return wishes
    except (LookupError, TypeError):
        pass
    raise damaged(path, CURE)


# --- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Row:
    """A prompt as a file has it; ``toxic``: its toxic twin, empty without one."""

    prompt: str
    answered: bool
    place: str
    toxic: str = ""


def _read(path: Path, answered: bool) -> list[_Row]:
    """The prompts of a text file, one a line, or of JSON Lines. Raises UserError with file and line, and for a table or
    a JSON array, of which every line would be a prompt."""
    raw = read_bytes(path)
    begins = raw.removeprefix(b"\xef\xbb\xbf").lstrip()
    if begins.startswith(b"{") or path.suffix.lower() == ".jsonl":
        return parse_jsonl(raw, str(path), lambda fields, place: _row(fields, place, answered))
    if path.suffix.lower() in TABLES or TABLE.match(begins):
        raise UserError(f"{path}: a table or a JSON array. Save its prompts one a line, in a .txt file.")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8. Save the file as UTF-8.") from None
    if "\0" in text:
        raise UserError(f"{path}: not a text file. Give one prompt a line, saved as UTF-8.")
    lines = enumerate(text.split("\n"), 1)
    rows = [_Row(line.strip(), answered, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{path}: no prompts in it. Write one a line.")
    return rows


def _row(fields: Fields, place: str, answered: bool) -> _Row:
    kind = "answer" if answered else "refuse"
    if fields.get("before"):
        raise UserError(f'{place}: messages before a prompt. Prompts to mend stand alone: take the field "before" out.')
    if "toxic" in fields and "seemingly_toxic" in fields:
        if not answered:
            raise UserError(f"{place}: a pair among the prompts to refuse. Give pairs with --answer.")
        toxic, seemingly_toxic = (text_field(fields, side, place) for side in ("toxic", "seemingly_toxic"))
        return _Row(seemingly_toxic, True, place, toxic)
    if fields.get("label") is not None and (str(fields["label"]).casefold() == "toxic") == answered:
        raise UserError(f'{place}: label "{fields["label"]}" among the prompts to {kind}. Take that row out.')
    return _Row(text_field(fields, "prompt", place), answered, place)


def _wishes(rows: list[_Row]) -> list[Wish]:
    """The rows as wishes, each prompt once, those to answer first and the toxic twins last. A twin of several prompts,
    or one that is in --refuse too, knows the first of them."""
    once: dict[tuple[str, bool], _Row] = {}
    for row in [*rows, *(_Row(row.toxic, False, row.place) for row in rows if row.toxic)]:
        once.setdefault((normalised(row.prompt), row.answered), row)
    keys = sorted(once, key=lambda key: not key[1])
    ordered = [once[key] for key in keys]
    for row in ordered:
        if row.answered and (other := once.get((normalised(row.prompt), False))):
            raise UserError(f"{row.place} is to be answered and {other.place} refused, the same prompt. Take one out.")
    to_answer = sum(row.answered for row in ordered)
    if to_answer < LEAST:
        raise UserError(f"{to_answer} prompts to answer, and {LEAST} are needed: add some of the same kind")
    wishes = [Wish(row.prompt, row.answered, row.place) for row in ordered]
    for i, row in enumerate(ordered):
        if row.toxic:
            twin = keys.index((normalised(row.toxic), False))
            wishes[i] = replace(wishes[i], twin=twin)
            if wishes[twin].twin < 0:
                wishes[twin] = replace(wishes[twin], twin=i)
    return wishes


# --- parts ------------------------------------------------------------------------------------------------------------


def divided(wishes: Sequence[Wish], refused: set[int], left_out: set[int], seed: int) -> list[Wish]:
    """The wishes with their parts. The numbers of those that are ``refused`` today, and of those to answer that are
    ``left_out`` as doubtful and not confirmed.

    To answer: of those that are refused half are trained on and half kept, and of the others; all are trained on where
    fewer than FEW are refused. To refuse: of every three one is trained on, one calibrates the dial and one is kept,
    likewise.
    Prompts that are nearly the same, or whose twins are, have the same part, so that of a large group all are trained
    on. A toxic twin goes with its prompt: it is trained on where one of those that it stands beside is. Raises
    UserError where fewer than LEAST are left to answer.
    """
    parts: dict[int, Part] = dict.fromkeys(left_out, "left_out")
    to_answer = [i for i, wish in enumerate(wishes) if wish.answered and i not in left_out]
    if len(to_answer) < LEAST:
        raise UserError(
            f"{len(to_answer)} prompts to answer are left and {LEAST} are needed: add some, or confirm those that are "
            "meant all the same with --sure and their numbers, or --sure all"
        )
    few = len(refused.intersection(to_answer)) < FEW
    halves: tuple[Part, ...] = ("trained",) if few else ("trained", "kept")
    thirds: tuple[Part, ...] = ("trained", "calibrating", "kept")
    to_refuse = [i for i, wish in enumerate(wishes) if not wish.answered and wish.twin < 0]
    for places, turns in ((to_answer, halves), (to_refuse, thirds)):
        twins = [wishes[wishes[i].twin].prompt if wishes[i].twin >= 0 else "" for i in places]
        groups = near_groups([wishes[i].prompt for i in places], twins)
        parts |= _dealt([[places[row] for row in group] for group in groups], refused, turns, seed)
    trained = {wish.twin for i, wish in enumerate(wishes) if wish.answered and parts[i] == "trained"}
    for i, wish in enumerate(wishes):
        if not wish.answered and wish.twin >= 0:
            parts[i] = "trained" if i in trained else "kept"
    return [replace(wish, part=parts[i]) for i, wish in enumerate(wishes)]


def _dealt(groups: list[list[int]], refused: set[int], turns: Sequence[Part], seed: int) -> dict[int, Part]:
    """The parts of numbers, one for each group. The largest groups come first, and each goes to the part that has least
    so far: one with any that is ``refused`` of these, then of all; the others, which come last, of all."""
    parts: dict[int, Part] = {}

    def size(numbers: Sequence[int]) -> tuple[int, int]:
        return len(refused.intersection(numbers)), len(numbers)

    for group in sorted(random.Random(seed).sample(groups, len(groups)), key=size, reverse=True):
        order = 1 if size(group)[0] else -1
        so_far = {part: size([i for i, of in parts.items() if of == part])[::order] for part in turns}
        parts |= dict.fromkeys(group, min(so_far, key=so_far.__getitem__))
    return parts
