"""Buttons under an answer: what is marked is the answer that is seen, and where nobody may mark there are none."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from command_line import run_command
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio

from dcr_lite.data.marks import Mark, read_marks
from dcr_lite.demo import blocks, page, scoring
from dcr_lite.demo.marking import MarkButtons
from dcr_lite.demo.mend_markup import what_it_mends
from dcr_lite.demo.mending import Mending
from dcr_lite.demo.score import Score
from dcr_lite.demo.slider import Asked
from dcr_lite.errors import UserError
from dcr_lite.files import write_json

SCORE = Score("base", "", 0.0, answer="No.", refused=True, kind="refusal")


class Browser:
    """What a page shows, which comes late: what is sent to it waits until it is taken in."""

    def __init__(self, sends: MarkButtons):
        self.parts, self.sent = sends, []
        self.prompt, self.works = "", False

    def take_in(self) -> None:
        for changes in self.sent:
            self.prompt = changes[self.parts._prompt]
            self.works = changes[self.parts._buttons[0]].interactive
        self.sent = []


EVENTS = st.lists(st.sampled_from(["ask", "end", "take in", "answer", "refuse"]), max_size=14)


@pytest.fixture(scope="module")
def under() -> MarkButtons:
    with gradio.Blocks():
        return MarkButtons(
            Path("marks.jsonl"), {"base": "stock model, owner/model, run x"}, "base", gradio.State(Asked())
        )


@given(EVENTS)
def test_a_mark_is_of_the_answer_that_is_shown(under: MarkButtons, events: list[Literal["answer", "refuse"]]) -> None:
    """Whatever is asked, ends and is pressed, and however late the page is: a mark is of the prompt that the page shows
    a whole answer to, and where it shows the last one a press is kept, the last of them being what is read back."""
    with TemporaryDirectory() as folder:
        path = under._marks = Path(folder) / "marks.jsonl"
        asked, browser = Asked(), Browser(under)
        browser.sent.append(under.closed(asked))
        browser.take_in()
        prompt, seen, expected = "", 0, {}
        for number, event in enumerate(events):
            if event == "ask":
                prompt = f"prompt {number}"
                browser.sent.append(under.closed(asked))
            elif event == "end" and prompt:
                browser.sent.append(under.whole(asked, replace(SCORE, prompt=prompt)))
            elif event == "take in":
                browser.take_in()
            elif event in ("answer", "refuse") and browser.works:
                said = under.mark(event, asked, browser.prompt)
                marks = path.read_text().count("\n") if path.exists() else 0
                kept = asked.whole.get("base") is not None and browser.prompt == prompt
                assert (marks - seen, "Marked" in said) == (int(kept), kept)
                seen = marks
                if kept:
                    expected.pop(prompt, None)
                    expected[prompt] = event
        found = {mark.prompt: mark.wanted for mark, _ in read_marks(path)} if expected else {}
        assert found == expected


def test_a_mark_says_what_was_said_and_by_whom(under: MarkButtons, tmp_path: Path) -> None:
    """With the model's name and the run's; a file that cannot be written is a sentence."""
    under._marks, asked = tmp_path / "marks.jsonl", Asked()
    under.whole(asked, replace(SCORE, prompt="How do I kill time?"))
    assert 'role="status"' in under.mark("answer", asked, "How do I kill time?")
    ((mark, _),) = read_marks(tmp_path / "marks.jsonl")
    assert mark == Mark("How do I kill time?", "answer", "No.", "stock model, owner/model, run x")
    (tmp_path / "file").touch()
    under._marks = tmp_path / "file" / "folder" / "marks.jsonl"
    said = under.mark("answer", asked, "How do I kill time?")
    assert "press the button again" in said


@pytest.mark.parametrize(
    ("given", "marked", "mends"),
    [
        ({}, "runs/SmolLM2-135M-Instruct_marks.jsonl", True),
        ({"marks": Path("m.jsonl")}, "m.jsonl", True),
        ({"share": True}, None, False),
        ({"share": True, "marks": Path("m.jsonl")}, "m.jsonl", False),
        ({"address": "0.0.0.0"}, None, False),
    ],
)
def test_only_this_machine_may_mend(
    given: dict[str, Any],
    marked: str | None,
    mends: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a public link and in a Space nobody can mark, unless a file is named for it, and nobody can start a run. What
    runs ends with the demo."""
    built: list[Any] = []
    stopped: list[Any] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "open_run", lambda *opened: SimpleNamespace(names=(), title="", note=""))
    monkeypatch.setattr(Mending, "stop", lambda self: stopped.append(self))
    monkeypatch.setattr(blocks, "build", lambda run, *more: built.extend(more))
    monkeypatch.setattr(blocks, "launch", lambda *given, **options: None)
    page.main(**given)
    assert built[0] == (None if marked is None else Path(marked))
    assert (built[1] is not None) == mends
    assert stopped == ([built[1]] if mends else [])


def test_a_model_that_is_named_is_shown_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the newest run, which a demo without flags opens."""
    built: list[Any] = []
    monkeypatch.chdir(tmp_path)
    Path("runs/newest").mkdir(parents=True)
    Path("runs/newest/report.json").write_text("{}")
    opened = SimpleNamespace(names=(), title="", note="")
    monkeypatch.setattr(scoring, "open_run", lambda *given: built.append(given) or opened)
    monkeypatch.setattr(blocks, "build", lambda run, *more: built.extend(more))
    monkeypatch.setattr(blocks, "launch", lambda *given, **options: None)
    assert run_command(monkeypatch, "demo", "--model", "owner/model", "--device", "cpu") == 0
    asked, marks, mending = built
    assert asked == (None, "cpu", "owner/model", "own")
    assert (opened.mended, mending.model, marks) == (None, "owner/model", Path("runs/model_marks.jsonl"))


def test_a_run_is_shown_from_within_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As . it has the name that it has from outside: marks and the mended run lie beside it, and not in it."""
    built: list[Any] = []
    run = tmp_path / "my_run"
    settings = {"model": "owner/chat", "device": "cpu", "precision": "float32", "quantization": "none"}
    write_json({"settings": settings}, run / "settings.json")
    monkeypatch.chdir(run)
    monkeypatch.setattr(scoring, "open_run", lambda *given: SimpleNamespace(names=(), title="", note=""))
    monkeypatch.setattr(blocks, "build", lambda run, *more: built.extend(more))
    monkeypatch.setattr(blocks, "launch", lambda *given, **options: None)
    page.main(Path())
    marks, mending = built
    assert (marks, mending.status().run) == (tmp_path / "chat_marks.jsonl", tmp_path / "chat_mended")
    assert "my_run_mended" in what_it_mends(mending)


def test_marks_go_to_a_file(tmp_path: Path) -> None:
    """A folder in its place, and a file in that of its folder, are errors before a model is loaded."""
    (tmp_path / "file").touch()
    for marks, cure in ((tmp_path, "Give a file in it"), (tmp_path / "file" / "m.jsonl", "Give a file in a folder")):
        with pytest.raises(UserError, match=cure):
            page.main(marks=marks)
