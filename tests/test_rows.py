"""Reading rows: every error gives the file and the line, and harmless differences are read."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite.data.rows import (
    Choice,
    Conversation,
    Pair,
    Prompt,
    fields_of,
    messages_of,
    prompts_of,
    read_choices,
    read_conversations,
    read_jsonl,
    read_pairs,
    read_prompts,
)
from dcr_lite.data.splits import digest_of
from dcr_lite.errors import UserError

GOOD = '{"prompt": "Hi", "response": "Hello"}\n'
QUESTION = '{"question": "q", "choices": ["a", "b"], "answer": 0}\n'
SYSTEM, USER, ASSISTANT = (
    f'{{"role": "{role}", "content": "{role} says"}}' for role in ("system", "user", "assistant")
)
Reader = Callable[[Path], list[Any]]


def behind(before: str) -> str:
    """A second line with this field."""
    return f'{{"prompt": "a", "label": "toxic"}}\n{{"prompt": "a", "label": "toxic", "before": {before}}}\n'


def write(path: Path, content: str | bytes | list[dict[str, Any]]) -> Path:
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content))
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("reader", "content", "line", "says"),
    [
        (read_conversations, GOOD + "{not json}\n", 2, "not JSON"),
        (read_conversations, GOOD + "\n" + '{"prompt": "Hi"', 3, "not JSON"),
        (read_conversations, GOOD + '{"prompt": "Hi"}\n', 2, r'"response" is missing.*Found: prompt'),
        (read_conversations, '{"prompt": "", "response": "Hello"}\n', 1, '"prompt" is empty'),
        (read_conversations, GOOD + '{"prompt": null, "response": "Hello"}\n', 2, '"prompt" is empty'),
        (read_conversations, GOOD + '{"prompt": 3, "response": "Hello"}\n', 2, '"prompt" is not a text'),
        (read_conversations, GOOD + '{"prompt": " \\n ", "response": "Hello"}\n', 2, '"prompt" is'),
        (read_conversations, GOOD + '{"prompt": "a \\ud83d", "response": "b"}\n', 2, "half a character"),
        (read_conversations, GOOD + "{}\n", 2, "no fields"),
        (read_conversations, GOOD + '["prompt"]\n', 2, "list where an object"),
        (read_conversations, GOOD + '"text"\n', 2, "str where an object"),
        (read_conversations, GOOD.encode() + b'{"prompt": "caf\xe9", "response": "x"}\n', 2, "not UTF-8"),
        (read_conversations, GOOD.encode("utf-16"), 1, "not UTF-8"),
        (read_conversations, GOOD + "[" * 100_000, 2, "nested too deeply"),
        (read_conversations, GOOD + '{"a": ' + "9" * 5000 + "}", 2, "too long a number"),
        (read_pairs, '{"toxic": "a"}\n', 1, '"seemingly_toxic" is missing'),
        (read_prompts, '{"prompt": "a", "label": "Toxic"}\n', 1, 'label "Toxic" is none of toxic, seemingly_toxic'),
        (read_prompts, '{"prompt": "a"}\n', 1, '"label" is missing'),
        (read_prompts, '{"toxic": "a", "seemingly_toxic": ""}\n', 1, '"seemingly_toxic" is empty'),
        (read_choices, QUESTION + '{"choices": ["a", "b"], "answer": 0}', 2, 'field "question" is missing'),
        (read_choices, '{"question": "q", "choices": ["a"], "answer": 0}', 1, '"choices" has to be a list of two'),
        (read_choices, '{"question": "q", "choices": ["a", 2], "answer": 0}', 1, 'field "choices"'),
        (read_choices, '{"question": "q", "choices": ["a", "b"], "answer": 2}', 1, '"answer" has to be 0 to 1'),
        (read_choices, '{"question": "q", "choices": ["a", "b"], "answer": "D"}', 1, 'field "answer"'),
        (read_choices, '{"question": "q", "choices": ["a", "b"], "answer": true}', 1, 'field "answer"'),
        (read_choices, '{"question": "q", "choices": ["a", "b"], "answer": "ß"}', 1, 'field "answer"'),
        (read_choices, '{"question": "q", "choices": ["a", "\\udc00"], "answer": 0}', 1, '"choices" holds half a'),
        (read_pairs, '{"toxic": "a", "seemingly_toxic": "b", "kind": "\\ud83d"}', 1, '"kind" holds half a'),
        (read_pairs, '{"toxic": "a", "seemingly_toxic": "b", "focus": ["c"]}', 1, '"focus" is not a text'),
        (read_pairs, '{"\\u001b[2J": "a"}', 1, r"Found: \\x1b\[2J"),
        (read_prompts, behind('"Hi"'), 2, '"before" has to be a list of messages'),
        (read_prompts, behind('["Hi"]'), 2, 'message 1 of "before": str where an object with role and content'),
        (read_prompts, behind('[{"role": "tool", "content": "a"}]'), 2, "role has to be system or user, not 'tool'"),
        (read_prompts, behind('[{"content": "a"}]'), 2, "role has to be system or user, not None"),
        (read_prompts, behind('[{"role": "assistant", "content": "a"}]'), 2, "role has to be system or user"),
        (read_prompts, behind(f"[{SYSTEM}, {SYSTEM}]"), 2, 'message 2 of "before": its role has to be user'),
        (read_prompts, behind(f"[{USER}, {USER}]"), 2, "its role has to be assistant, not 'user'"),
        (read_prompts, behind(f"[{USER}, {ASSISTANT}, {SYSTEM}]"), 2, "its role has to be user, not 'system'"),
        (read_prompts, behind(f"[{USER}]"), 2, """the last message of "before" is the user's. Put the assistant's"""),
        (read_prompts, behind('[{"role": "user", "content": " "}]'), 2, 'message 1 of "before": field "content" is'),
        (read_prompts, behind('[{"role": "user"}]'), 2, '"content" is missing. Found: role'),
        (read_prompts, behind('[{"role": "user", "content": 3}]'), 2, '"content" is not a text'),
        (read_pairs, '{"toxic": "a", "seemingly_toxic": "b", "before": 1}', 1, '"before" has to be a list'),
        (read_conversations, '{"prompt": "a", "response": "b", "before": "c"}', 1, '"before" has to be a list'),
    ],
)
def test_errors_give_file_and_line(tmp_path: Path, reader: Reader, content: str | bytes, line: int, says: str) -> None:
    """Every error in a file raises UserError with the file, the line's number and what is wrong with it."""
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line {line}: .*{says}"):
        reader(path)


@pytest.mark.parametrize("content", ["", "\n\n  \n", "\ufeff", "\ufeff\n"])
def test_a_file_without_rows_is_an_error(tmp_path: Path, content: str) -> None:
    """An empty file raises UserError with its path."""
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: no rows"):
        read_conversations(path)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,  # as Windows editors save it
        GOOD.replace("\n", "\r\n"),
        "\n" + GOOD + "\n",
        GOOD.strip(),
        '{"prompt": "Hi", "response": "Hello", "more": [1, 2]}',
    ],
)
def test_harmless_differences_are_read(tmp_path: Path, content: str) -> None:
    """A byte-order mark, CRLF, blank lines, no last newline and further fields do no harm."""
    assert read_conversations(write(tmp_path / "rows.jsonl", content)) == [Conversation("Hi", "Hello")]


def test_text_is_unchanged(tmp_path: Path) -> None:
    """Unicode line separators inside a text do not break the line, and no text is trimmed."""
    text = " a\u2028b\u0085c é 🎉\n"
    path = write(tmp_path / "rows.jsonl", json.dumps({"prompt": text, "response": text}, ensure_ascii=False))
    assert read_conversations(path) == [Conversation(text, text)]


def test_kind_and_focus_of_a_pair_are_optional(tmp_path: Path) -> None:
    """Absent and null both mean none."""
    rows = [
        {"toxic": "a", "seemingly_toxic": "b", "kind": "k", "focus": "f"},
        {"toxic": "a", "seemingly_toxic": "b"},
        {"toxic": "a", "seemingly_toxic": "b", "kind": None, "focus": None},
    ]
    found = read_pairs(write(tmp_path / "rows.jsonl", rows))
    assert found == [Pair("a", "b", "k", "f"), Pair("a", "b"), Pair("a", "b")]


def test_prompts_come_from_labelled_rows_and_from_pairs(tmp_path: Path) -> None:
    """A pair gives its two sides; the source is the row's own or the file's name."""
    rows = [
        {"toxic": "a", "seemingly_toxic": "b"},
        {"prompt": "c", "label": "plain", "source": "mine"},
        {"prompt": "d", "label": "toxic"},
    ]
    assert read_prompts(write(tmp_path / "fresh.jsonl", rows)) == [
        Prompt("a", "toxic", "fresh"),
        Prompt("b", "seemingly_toxic", "fresh"),
        Prompt("c", "plain", "mine"),
        Prompt("d", "toxic", "fresh"),
    ]


@pytest.mark.parametrize("before", [[SYSTEM], [USER, ASSISTANT], [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], []])
def test_a_row_has_the_messages_before_its_prompt(tmp_path: Path, before: list[str]) -> None:
    """Pairs on both sides, prompts and conversations; written again they are what was read. None and an empty list are
    no messages, and further fields of a message do no harm."""
    given = [json.loads(message) | {"name": "Ann"} for message in before]
    expected = tuple((message["role"], message["content"]) for message in given)
    path = tmp_path / "rows.jsonl"
    pair, prompt = {"toxic": "a", "seemingly_toxic": "b"}, {"prompt": "c", "label": "plain", "source": "mine"}
    talk = {"prompt": "d", "response": "e"}
    pairs = [Pair("a", "b", before=expected), Pair("a", "b")]
    read = read_pairs(write(path, [pair | {"before": given}, pair | {"before": None}]))
    assert read == read_pairs(write(path, list(map(fields_of, read)))) == pairs
    both = [Prompt(text, label, "rows", expected) for text, label in (("a", "toxic"), ("b", "seemingly_toxic"))]
    assert prompts_of(read[:1], "rows") == both
    prompts = read_prompts(write(path, [prompt | {"before": given}, pair | {"before": given}]))
    assert prompts == read_prompts(write(path, list(map(fields_of, prompts))))
    assert prompts == [Prompt("c", "plain", "mine", expected), *both]
    talks = read_conversations(write(path, [talk | {"before": given}]))
    assert talks == [Conversation("d", "e", before=expected)]
    assert messages_of(expected) == [json.loads(message) for message in before]


def test_prompts_behind_other_messages_are_other_prompts() -> None:
    """By their digest, which is that of before there were messages where there are none."""
    alone, behind = Prompt("a", "toxic", "set"), Prompt("a", "toxic", "set", (("system", "Be brief."),))
    assert digest_of([alone]) == hashlib.sha256(b'[["a", "toxic", "set"]]').hexdigest()
    assert digest_of([alone]) != digest_of([behind]) != digest_of([replace(behind, before=(("system", "Be kind."),))])


def test_answers_are_numbers_or_letters(tmp_path: Path) -> None:
    """The right choice is a number, as in MMLU, or a letter of either case."""
    rows = [{"question": "q", "choices": ["a", "b", "c"], "answer": answer} for answer in (1, "C", "b")]
    found = read_choices(write(tmp_path / "choices.jsonl", rows))
    assert found == [Choice("q", ("a", "b", "c"), answer) for answer in (1, 2, 1)]


@given(content=st.binary(max_size=60))
def test_any_bytes_give_rows_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No file, whatever it holds, makes the reader fail with anything but UserError."""
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", content)
    message = ""
    try:
        rows = read_jsonl(path, lambda fields, place: fields)
    except UserError as error:
        rows, message = [], str(error)
    assert bool(rows) != (str(path) in message)
    assert all(isinstance(row, dict) for row in rows)
