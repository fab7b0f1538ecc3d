"""Attacks on what mending starts from: files of a user's prompts, and the demo's marks."""

from dataclasses import asdict
from pathlib import Path

from hypothesis import strategies as st

from dcr_lite.data.marks import Mark, append_mark, read_marks, remove_marks
from dcr_lite.data.near import normalised
from dcr_lite.demo import mend_markup
from dcr_lite.mend import prompts
from dcr_lite.mend.page import check_lines
from dcr_lite.mend.settings import MendSettings
from tests.faults.inputs import Attack, leaves_nothing, refused
from tests.faults.inputs_folders import require_inert
from tests.faults.inputs_texts import CELLS, JSON, TAGS, TEXT, WHOLE_TEXT, Tags, lines_of

MANY = st.lists(WHOLE_TEXT.map(lambda text: " ".join(text.split())), min_size=5, max_size=9).map("\n".join)
ODD_LINES = st.lists(CELLS | TEXT, max_size=7).map("\n".join)
TEXTS = st.one_of(MANY, MANY, ODD_LINES).map(lambda text: text.encode("utf-8", "surrogatepass"))
PAIRS = st.lists(lines_of("toxic", "seemingly_toxic"), min_size=3, max_size=4).map(b"\n".join)
ROWS = st.lists(lines_of("prompt", label=st.sampled_from(["toxic", "plain"])), min_size=3, max_size=4).map(b"\n".join)
FILES = st.tuples(st.one_of(TEXTS, TEXTS, PAIRS, ROWS, st.binary(max_size=60)), st.none() | st.none() | TEXTS | ROWS)
WANTED = st.sampled_from(["answer", "answer", "refuse", "Answer"])
MARKS = st.tuples(
    lines_of("prompt", wanted=WANTED) | lines_of("prompt", "said", "model", wanted=WANTED | JSON), WHOLE_TEXT, TEXT
)


def check_wishes(given: tuple[bytes, bytes | None], folder: Path) -> bool:
    """Prompts that are taken are those of the files, each once; a run keeps them as they are and divides them; its page
    has nothing active in it."""
    paths = [folder / "answer.txt", folder / "refuse.txt"]
    for path, raw in zip(paths, given, strict=True):
        path.write_bytes(raw or b"")
    refuse = None if given[1] is None else paths[1]
    settings = MendSettings(model="", run=folder / "run", answer=paths[0], refuse=refuse)
    wishes: list[prompts.Wish] = []
    with leaves_nothing(folder):
        if refused(lambda: wishes.extend(prompts.asked(settings))):
            return False
    keys = [normalised(wish.prompt) for wish in wishes]
    assert len(set(keys)) == len(keys) >= prompts.LEAST
    prompts.keep(settings.run, wishes)
    assert prompts.asked(settings) == wishes
    divided = prompts.divided(wishes, set(range(3)), set(), 0)
    assert all(wish.part for wish in divided)
    one = {"number": 1, "prompt": wishes[0].prompt, "reasons": ["reads as toxic"], "nearest": wishes[-1].prompt}
    same = {"number": 1, "kind": "answer", "set": "xstest", "prompt": wishes[-1].prompt}
    check = {"refused": [1], "answered_today": [], "refuse_answered_today": [], "compared_with": ["xstest"]}
    check |= {"doubtful": [one], "duplicates": [same], "words": {"answer": [wishes[0].prompt.split()[0]], "refuse": []}}
    require_inert("\n".join(check_lines(check, wishes)))
    return True


def check_marks(given: tuple[bytes, str, str], folder: Path) -> bool:
    """A file of marks that is read takes one more and gives it up again, and loses none; on the page it is text."""
    raw, prompt, said = given
    path = folder / "marks.jsonl"
    path.write_bytes(raw)
    marks: list[Mark] = []
    if refused(lambda: marks.extend(mark for mark, _ in read_marks(path))):
        return False
    seen = Tags()
    seen.feed(mend_markup.marks_table(marks, []))
    assert seen.tags <= TAGS | {"caption"}, seen.tags
    assert not {name for name in seen.attributes if name.startswith("on") or name in ("href", "src")}
    others = [asdict(mark) for mark in marks if mark.prompt != prompt]
    append_mark(path, Mark(prompt, "refuse", said))
    after = {mark.prompt: mark for mark, _ in read_marks(path)}
    assert after[prompt].wanted == "refuse"
    assert [asdict(mark) for mark in after.values() if mark.prompt != prompt] == others
    remove_marks(path, prompt)
    assert others == ([asdict(mark) for mark, _ in read_marks(path)] if path.exists() else [])
    return True


def mend_attacks() -> list[Attack]:
    return [
        Attack("prompts to mend by", 4_000, FILES, check_wishes),
        Attack("the demo's marks", 3_000, MARKS, check_marks),
    ]
