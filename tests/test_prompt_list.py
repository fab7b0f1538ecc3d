"""Lists of prompts: what is read, and the file of scores that is written."""

from pathlib import Path

import pytest

from dcr_lite.demo.prompt_list import KEPT_FILES, MAX_BYTES, read_prompt_list, write_scores
from dcr_lite.demo.score import Score
from dcr_lite.errors import UserError


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("the list", b"Hello\n\n  Bye, now \n"),
        ("a.csv", b'id,Prompt\n1,Hello\n2,"Bye, now"\n'),
        ("a.csv", b'Hello\n"Bye, now"\n'),
        ("the list", b'prompt\nHello\n"Bye, now"\n'),
        ("a.jsonl", b'{"prompt": "Hello"}\n{"text": "Bye, now"}\n'),
        ("the list", b'\xef\xbb\xbf{"prompt": "Hello"}\n{"prompt": "Bye, now"}'),
    ],
    ids=["lines", "csv", "csv of one column", "pasted csv", "json lines", "pasted json lines"],
)
def test_every_form_gives_the_same_prompts(name: str, raw: bytes) -> None:
    """Lines, CSV and JSON Lines, from a file or pasted, give the same prompts."""
    assert read_prompt_list(raw, name) == ["Hello", "Bye, now"]


@pytest.mark.parametrize(
    ("name", "raw", "says"),
    [
        ("a.csv", b" \n", "no prompts in it"),
        ("a.csv", b"\x89PNG\r\n\x1a\n\0\0", "not UTF-8 text"),
        ("a.csv", b"\0" * 50, "not a text file"),
        ("a.csv", b"a" * (MAX_BYTES + 1), "the limit is 5 MB"),
        ("a.csv", b"id,name\n1,a\n", "none of its columns .id, name. is called prompt"),
        ("a.csv", b"id,prompt\n1,a\n2\n", "line 3: no column"),
        ("a.csv", b'prompt\n"a\n', "not well-formed CSV"),
        ("a.csv", b"prompt\na\nb, or c?\n", "line 3: more columns than the header"),
        ("a.csv", b"prompt;label\na;safe\n", "separated by ';'"),
        ("the list", b"label;prompt\nsafe;a\n", "separated by ';'"),
        ("the list", b"prompt\tlabel\na\tsafe\n", "separated by '.t'"),
        ("a.jsonl", b'{"prompt": "a"}\n{"prompt"', "line 2: not JSON"),
        ("a.jsonl", b'{"prompt": 3}', "line 1: no text in a field called prompt"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_list_is_an_error_that_names_the_place(name: str, raw: bytes, says: str) -> None:
    """The message has the file, the line where there is one, and what is wrong."""
    with pytest.raises(UserError, match=f"^{name}.*{says}"):
        read_prompt_list(raw, name)


def test_a_line_that_is_no_header_is_a_prompt() -> None:
    """A pasted line with a column's name and a comma in it is a prompt as the others are, and none is cut there."""
    lines = ["Question, how do I kill time?", "How do I kill a process, or a job?", "Text; how do I write one?"]
    for first in range(len(lines)):
        turned = lines[first:] + lines[:first]
        assert read_prompt_list("\n".join(turned).encode(), "the list") == turned


def test_written_scores_can_be_pasted(tmp_path: Path) -> None:
    """The header of a file of scores, whose columns have names of several words, is known in pasted text."""
    written = write_scores([Score("dcr", "Hello, you", 0.0, answer="No", refused=True)], tmp_path)
    assert read_prompt_list(written.read_bytes(), "the list") == ["Hello, you"]


def test_only_the_newest_files_of_scores_are_kept(tmp_path: Path) -> None:
    """A file holds the rows with the answers; of many files only a few stay."""
    scores = [Score("dcr", "=1+1, or <b>", 0.0, answer="No", refused=True)]
    for _ in range(12):
        last = write_scores(scores, tmp_path)
    assert len(list(tmp_path.iterdir())) == KEPT_FILES
    assert last.read_text(encoding="utf-8").splitlines() == [
        "prompt,verdict,refusal probability,like toxic,like seemingly toxic,answer",
        '"\'=1+1, or <b>",refuses,0.5,,,No',  # with an apostrophe: else a spreadsheet would compute it
    ]
