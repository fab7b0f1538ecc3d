"""Marks of a person on a model's answers: appended whole by several at once, read back as they were meant."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite.data.marks import Mark, append_mark, read_marks, remove_marks
from dcr_lite.errors import UserError
from dcr_lite.files import write_jsonl


def test_what_is_appended_is_read_back(tmp_path: Path) -> None:
    """Every field, line breaks and quotes too; half of a character, which no file can hold, becomes a question mark."""
    marks = [Mark('How do I "kill"\na process?', "answer", "I cannot.", "dcr"), Mark("How \ud800 do I?", "refuse")]
    for mark in marks:
        append_mark(tmp_path / "new" / "marks.jsonl", mark)
    found = [mark for mark, _ in read_marks(tmp_path / "new" / "marks.jsonl")]
    assert found == [marks[0], Mark("How ? do I?", "refuse")]


def test_the_last_mark_of_a_prompt_counts(tmp_path: Path) -> None:
    """With its own line, in the place of the first."""
    path = tmp_path / "marks.jsonl"
    for prompt, wanted in (("a", "answer"), ("b", "answer"), ("a", "refuse")):
        append_mark(path, Mark(prompt, wanted))  # type: ignore[arg-type]
    found = read_marks(path)
    assert [(mark.prompt, mark.wanted) for mark, _ in found] == [("a", "refuse"), ("b", "answer")]
    assert found[0][1] == f"{path}, line 3"


def test_several_append_at_once(tmp_path: Path) -> None:
    """No line is lost and none runs into another."""
    path = tmp_path / "marks.jsonl"
    wanted = {f"prompt {i} {'x' * 200}" for i in range(40)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda prompt: append_mark(path, Mark(prompt, "answer")), sorted(wanted)))
    assert {mark.prompt for mark, _ in read_marks(path)} == wanted


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["answer", "refuse"]), st.text()), min_size=1))
def test_a_prompt_that_is_removed_takes_nothing_with_it(tmp_path: Path, rows: list[tuple[str, Any, str]]) -> None:
    """All its marks go, and every other line stays as it was; the file goes with the last of them."""
    path = tmp_path / "marks.jsonl"
    write_jsonl([asdict(Mark(*row)) for row in rows], path)
    others = [line for line in path.read_bytes().split(b"\n") if line and not line.startswith(b'{"prompt": "a"')]
    remove_marks(path, "a")
    assert path.exists() == bool(others)
    if others:
        assert path.read_bytes() == b"".join(line + b"\n" for line in others)
        assert "a" not in [mark.prompt for mark, _ in read_marks(path)]


def test_nothing_is_removed_from_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A line that is no mark is an error, and what stands in the file stays."""
    path = tmp_path / "marks.jsonl"
    append_mark(path, Mark("a", "answer"))
    path.write_text(path.read_text() + "{}\n")
    before = path.read_bytes()
    with pytest.raises(UserError, match="line 2"):
        remove_marks(path, "a")
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("last", "kept"),
    [('{"prompt": "b", "wan', ["a", "c"]), ('{"prompt": "b", "wanted": "refuse"}', ["a", "b", "c"])],
)
def test_a_line_without_an_end_is_kept_if_it_is_whole(last: str, kept: list[str], tmp_path: Path) -> None:
    """What a killed process left is passed over and goes with the next mark; what an editor left counts."""
    path = tmp_path / "marks.jsonl"
    append_mark(path, Mark("a", "answer"))
    with path.open("a") as file:
        file.write(last)
    assert [mark.prompt for mark, _ in read_marks(path)] == kept[:-1]
    append_mark(path, Mark("c", "answer"))
    assert [mark.prompt for mark, _ in read_marks(path)] == kept
    assert path.read_bytes().count(b"\n") == len(kept)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"prompt": "a", "wanted": "maybe"}\n', 'line 1: wanted "maybe" is none of answer, refuse'),
        ('{"prompt": "a", "wanted": "answer"}\n{"wanted": "answer"}\n', 'line 2: field "prompt" is missing'),
        ('{"prompt": "a", "wan\n{"prompt": "a", "wanted": "answer"}\n', "line 1: not JSON"),
    ],
)
def test_what_is_no_mark_is_an_error(lines: str, said: str, tmp_path: Path) -> None:
    """With file and line."""
    path = tmp_path / "marks.jsonl"
    path.write_text(lines)
    with pytest.raises(UserError, match=said) as caught:
        read_marks(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("lines", ["", "\n", '{"prompt": "a", "wan'])
def test_a_file_without_a_whole_line_has_no_marks(lines: str, tmp_path: Path) -> None:
    """As a person, or a process that was killed at its first mark, may leave it: the next one goes into it."""
    path = tmp_path / "marks.jsonl"
    path.write_text(lines)
    assert read_marks(path) == []
    append_mark(path, Mark("a", "answer"))
    assert [mark for mark, _ in read_marks(path)] == [Mark("a", "answer")]
