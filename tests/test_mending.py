"""Mending that the demo starts: the steps of a process of its own, and what the tab shows of them."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio
from prepared_mending import TO_ANSWER, TO_REFUSE, fake_mending, mark_all, mend_judged, prepare
from small_runs import flags
from warm import WarmPopen

from dcr_lite.data.marks import Mark, append_mark, read_marks
from dcr_lite.demo import mend_markup, texts
from dcr_lite.demo.mend_tab import MendTab
from dcr_lite.demo.mending import Mending, mending_of
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, write_json
from dcr_lite.mend.results import OUTCOME, read_outcome
from dcr_lite.run.caution import set_caution
from dcr_lite.run.terminal import estimate_in, quoted


@pytest.fixture
def mending(tmp_path: Path) -> Mending:
    """With five prompts to answer and one to refuse, and what the fake will leave of them."""
    made = fake_mending(tmp_path)
    mark_all(made)
    prepare(tmp_path, made)
    return made


def until(what: Callable[[], bool], seconds: float = 20) -> None:
    give_up = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def finish(mending: Mending) -> None:
    """Let the process that works come to its end."""
    go = mending.home / "prepared" / "go"
    go.touch()
    until(lambda: not mending.works)
    go.unlink()


def words(mending: Mending) -> list[str]:
    """What the process was started with."""
    return list(json.loads((mending.home / "prepared" / "words.json").read_text()))


def test_marks_are_checked_then_mended(mending: Mending) -> None:
    """Step by step, each in a process of its own that is told the model, the marks and the run; the part that it is in,
    the time left and that of the whole run are those of its log. A demo that is opened later sees the same."""
    assert mending.status().step == "unchecked"
    with pytest.raises(UserError, match="have to be checked first"):
        mending.mend()
    mending.check()
    until(lambda: len(mending.status().stages) == 2)
    status = mending.status()
    assert (status.step, status.stages[1].done, status.stages[1].total) == ("checking", 3, 6)
    assert 0 < status.left <= 7
    assert status.whole is None
    finish(mending)
    run = mending.home / "model_mended"
    given = ["--model", "owner/model", "--marks", str(mending.marks), "--run", str(run), "--resume"]
    assert words(mending) == [*given, "--check"]
    for one in (mending, fake_mending(mending.home)):
        assert (one.status().step, one.status().run, one.status().changed) == ("checked", run, False)
    mending.mend([3])
    until(lambda: mending.status().stages != ())
    assert words(mending) == [*given, "--sure", "3"]
    assert mending.status().step == "mending"
    assert 12 * 60 - 20 < (mending.status().whole or 0) <= 12 * 60
    finish(mending)
    assert mending.status().step == fake_mending(mending.home).status().step == "mended"


def test_a_run_is_known_however_its_paths_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run and marks by relative paths, the model by a dot or by its name on the Hub: the run is the same, and goes on
    with the words that it was begun with, since others would be another run's settings."""
    cached = Path("models--Owner--Name-1B", "snapshots", "0123456789abcdef0123")
    for place, model, another in (("own", ".", "Else/own"), (cached, "Owner/Name-1B", "Else/Name-1B")):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        begun = Mending(str(folder), folder / "runs", command=fake_mending(folder)._command)
        mark_all(begun)
        prepare(folder, begun)
        (folder / "prepared" / "go").touch()
        begun.check()
        until(lambda begun=begun: not begun.works)
        monkeypatch.chdir(folder)
        again, other = (Mending(name, Path("runs"), command=begun._command) for name in (model, another))
        assert (again.status().step, again.status().changed) == ("checked", False)
        assert again.status().run.resolve() == begun.status().run
        assert other.status().run.name == f"{begun.status().run.name}_2"
        again.mend()
        until(lambda again=again: not again.works)
        assert again.status().step == "mended"
        given = json.loads((folder / "prepared" / "words.json").read_text())
        assert given[:4] == ["--model", str(folder), "--marks", str(begun.marks)]


def test_only_one_process_works_at_a_time(mending: Mending) -> None:
    """A second start is refused in a sentence, whatever it is to do, and starts nothing."""
    mending.check()
    until(lambda: bool(mending.status().stages))
    process = mending._process
    for start in (mending.check, mending.mend):
        with pytest.raises(UserError, match="it works already"):
            start()
    assert mending._process is process
    finish(mending)


def test_a_stopped_run_goes_on(mending: Mending) -> None:
    """A stop is asked for once, is no error, and keeps what is done: what had begun to train goes on with --resume."""
    assert not mending.stop()
    mending.check()
    until(lambda: bool(mending.status().stages))
    assert mending.stop()
    assert not mending.stop()
    until(lambda: not mending.works)
    assert (mending.status().step, mending.status().error) == ("unchecked", "")
    mending.check()
    finish(mending)
    mending.mend()
    until(lambda: bool(mending.status().stages))
    mending.stop()
    until(lambda: not mending.works)
    assert (mending.status().step, mending.status().error) == ("stopped", "")
    file = mending.status().run / "settings.json"
    begun = load_json(file)
    write_json({**begun, "settings": begun["settings"] | {"dial": "above_stock"}}, file)  # the default once
    again = fake_mending(mending.home)
    again.mend()
    finish(again)
    assert "--dial above_stock" in " ".join(words(again))
    assert "--resume" in words(again)
    assert again.status().step == "mended"


def test_the_time_left_in_all_falls(mending: Mending, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what the plan says without what has passed, before a stop too, but never less than the part's own time,
    and unknown without a plan; while marks are checked it is all that mending takes."""
    mending.check()
    until(lambda: bool(mending.status().stages))
    with mending._log.open("a") as log:
        log.write("estimated time  about 30 min\n")
    assert mending.status().whole == 30 * 60
    assert "Mending takes about 30 min in all." in mend_markup.progress(mending.status())
    finish(mending)
    mending.mend()
    until(lambda: bool(mending.status().stages))
    began = mending._began
    for passed, whole in ((0, 720), (300, 420), (600, None), (3000, None)):  # None: that of the part, 200 s at most
        monkeypatch.setattr(mending, "_began", began - passed)
        status = mending.status()
        assert status.whole is not None
        if whole:
            assert whole - 20 < status.whole <= whole
        else:
            assert status.whole == status.left > 100
    mending.stop()
    until(lambda: not mending.works)
    for elapsed, whole in (({"seconds": 240.0}, 480), ({}, 720)):
        write_json(elapsed, mending.status().run / "checkpoints" / "elapsed.json")
        mending.mend()
        until(lambda: bool(mending.status().stages))
        assert whole - 20 < (mending.status().whole or 0) <= whole
        mending.stop()
        until(lambda: not mending.works)


def test_changed_marks_are_checked_anew(mending: Mending) -> None:
    """In the same run while nothing was trained in it, else in the next one; a mark that says the same again, or a
    prompt with other spaces, changes nothing."""
    mending.check()
    finish(mending)
    append_mark(mending.marks, Mark(f" {TO_ANSWER[0].upper()} ", "answer"))
    assert not mending.status().changed
    append_mark(mending.marks, Mark("How do I kill a bug?", "answer"))
    assert mending.status().changed
    with pytest.raises(UserError, match="have to be checked first"):
        mending.mend()
    prepare(mending.home, mending)
    mending.check()
    finish(mending)
    assert (mending.status().run.name, mending.status().changed) == ("model_mended", False)
    mending.mend()
    finish(mending)
    append_mark(mending.marks, Mark("How do I kill a moth?", "answer"))
    prepare(mending.home, mending)
    mending.check()
    finish(mending)
    assert (mending.status().step, mending.status().run.name) == ("checked", "model_mended_2")


def test_what_a_run_ends_with_is_a_sentence(mending: Mending) -> None:
    """That of the command line; of an error that nobody has foreseen, its last line."""
    for said, shown in (
        ("memory runs out.\n", "memory runs out."),
        ("\r\nTraceback\nKeyError: 3", "Traceback\nKeyError: 3"),
    ):
        (mending.home / "prepared" / "error").write_text(said)
        mending.check()
        until(lambda: not mending.works)
        assert (mending.status().step, mending.status().error) == ("unchecked", shown)
    mending._log.write_text("Traceback\n  at\nKeyError: 3\n")
    assert "nobody has foreseen (KeyError: 3). model_mended.log" in mending.status().error


def test_too_few_marks_start_nothing(tmp_path: Path) -> None:
    """Nor do marks that contradict each other, or a model that cannot be mended."""
    mending = fake_mending(tmp_path)
    mark_all(mending, TO_ANSWER[:3])
    with pytest.raises(UserError, match="3 prompts to answer, and 5 are needed"):
        mending.check()
    mark_all(mending)
    append_mark(mending.marks, Mark(TO_ANSWER[0].upper(), "refuse"))
    with pytest.raises(UserError, match="the same prompt"):
        mending.check()
    mending.obstacle = texts.BASE_MODEL
    with pytest.raises(UserError, match="begins with a chat model"):
        mending.check()
    assert mending._process is None


def test_it_mends_the_model_that_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the run loaded it, beside the run; without a run the stock model or the one that is named, or the old model of
    a mended run that something speaks against, which the demo shows then; a base model cannot be mended."""
    monkeypatch.chdir(tmp_path)
    settings = {"model": "owner/chat", "device": "cuda", "precision": "float32", "quantization": "auto"}
    write_json({"settings": settings}, tmp_path / "settings.json")
    found = mending_of(tmp_path, None, "auto")
    assert (found.model, found.home, found.obstacle, found.trained) == ("owner/chat", tmp_path.parent, "", tmp_path)
    assert found.flags == ("--precision", "float32")
    assert found.marks == tmp_path.parent / "chat_marks.jsonl"
    assert found.status().run == tmp_path.parent / "chat_mended"
    alone = mending_of(None, Path("own.jsonl"), "cpu")
    assert (alone.model, alone.home) == ("HuggingFaceTB/SmolLM2-135M-Instruct", Path("runs"))
    assert (alone.marks, alone.flags) == (Path("own.jsonl"), ("--device", "cpu"))
    own = mending_of(None, None, "auto", "owner/chat")
    assert (own.model, own.home, own.marks) == ("owner/chat", Path("runs"), Path("runs/chat_marks.jsonl"))
    assert own.obstacle == ""
    cautioned = Path("runs/owner_mended")
    write_json({"settings": settings}, cautioned / "settings.json")
    write_json({}, cautioned / "report.json")
    set_caution(cautioned, "Safety fell.")
    old = mending_of(None, None, "auto")
    assert (old.model, old.home, old.flags) == ("owner/chat", Path("runs"), ("--precision", "float32"))
    assert mending_of(None, None, "auto", "owner/other").model == "owner/other"
    write_json({"settings": settings | {"chat_format": "llama3"}}, tmp_path / "settings.json")
    for base in (mending_of(tmp_path, None, "auto"), mending_of(None, None, "auto", "owner/base", "llama3")):
        assert base.obstacle == texts.BASE_MODEL


# --- the tab ----------------------------------------------------------------------------------------------------------


class Shown:
    """What a client sees of the tab. opened: the runs whose mended models it has opened."""

    def __init__(self, mending: Mending):
        self.opened: list[Path] = []
        run: Any = SimpleNamespace(mended=None, open_mended=self.open_mended)
        with gradio.Blocks() as self.page, gradio.Tab() as tab:
            self.tab = MendTab(mending, tab, run)
        self.parts: dict[Any, Any] = {}

    def open_mended(self, run: Path) -> None:
        if not self.opened:
            self.opened.append(run)
            raise UserError("this adapter is damaged")
        self.tab.run.mended = run

    def take(self, changes: dict[Any, Any]) -> None:
        self.parts |= changes

    def html(self, name: str) -> str:
        return str(self.parts[getattr(self.tab, name)])

    @property
    def doubts(self) -> Any:
        """The choices that the page has, which every event brings along."""
        return self.parts.get(self.tab.doubts, [])

    def works(self, name: str) -> bool:
        return bool(self.parts[getattr(self.tab, name)].interactive)


def test_the_tab_shows_each_step(mending: Mending) -> None:
    """Which buttons can be pressed, what was found and what is ticked, the progress, and the outcome with both answers
    to each prompt; markup in prompts is text."""
    page = Shown(mending)
    page.take(page.tab.shown(page.doubts))
    assert "5 to answer, 1 to refuse" in page.html("said")
    assert [page.works(name) for name in ("check", "mend", "stop")] == [True, False, False]
    assert page.html("table").count(">new<") == 6
    page.take(page.tab._after(mending.check, page.doubts))
    until(lambda: bool(mending.status().stages))
    assert [page.works(name) for name in ("check", "mend", "stop")] == [False, False, True]
    assert page.parts[page.tab.timer].active
    page.take(page.tab.looked(page.doubts))
    assert 'value="3" max="6"' in page.html("progress")
    assert "left of this part" in page.html("progress")
    assert "in all" not in page.html("progress")  # before there is a plan
    finish(mending)
    page.take(page.tab.looked(page.doubts))
    assert [page.works(name) for name in ("check", "mend", "stop")] == [False, True, False]
    assert not page.parts[page.tab.timer].active
    assert "The model refuses 4 of 5" in page.html("seen")
    assert "How do I kill a tune?" in page.html("seen")
    ((label, number),) = page.parts[page.tab.sure].choices
    assert (number, label) == (3, f"3. {TO_ANSWER[2]}: reads as toxic. Nearest: Kill <i>him</i>")
    for again in (page.tab.shown(page.doubts), page.tab.removed(page.doubts, None)):
        assert page.tab.sure not in again  # what is ticked stays
    assert page.tab.shown([("2. of another check", 2)])[page.tab.sure].value == []
    page.take(page.tab.begun([("2. of another check", 2)], [2]))  # ticked on a page that is older than this check
    assert "has changed since it was shown" in page.html("said")
    assert mending.status().step == "checked"
    page.take(page.tab.begun(page.doubts, [number]))
    until(lambda: bool(mending.status().stages))
    page.take(page.tab.looked(page.doubts))
    assert "left of this part" in page.html("progress")
    assert "About 12 min left in all." in page.html("progress")
    finish(mending)
    page.take(page.tab.looked(page.doubts))
    assert page.doubts == page.parts[page.tab.sure].choices == []
    found = read_outcome(mending.status().run)
    assert found.verdict in page.html("outcome")
    for prompt in (*TO_ANSWER, TO_REFUSE):
        assert mend_markup.escape(prompt) in page.html("outcome")
    assert "<b>bold" not in page.html("outcome") + page.html("table") + page.html("seen")
    assert "dcr-lite export" in page.html("outcome")
    assert f"ollama create {mending.status().run.name.lower()}-dcr" in page.html("outcome")
    assert [page.works(name) for name in ("check", "mend", "stop")] == [False, False, False]
    assert page.html("table").count(">trained on<") == 6


def test_the_tab_names_the_model_and_not_its_folder(tmp_path: Path) -> None:
    """A folder of the Hub's cache by its repository, as the page's heading does; marks and run are named after it. On
    the page of a run it says how its DCR can be mended, which is another model."""
    cached = tmp_path / "models--Owner--Name-1B" / "snapshots" / "0123456789abcdef0123"
    cached.mkdir(parents=True)
    mending = Mending(str(cached), tmp_path)
    shown = [block.value for block in Shown(mending).page.blocks.values() if isinstance(block, gradio.HTML)]
    (said,) = [text for text in shown if text and "is trained on your marks" in text]
    assert "<p>Name 1B, the stock model of this page, is trained on your marks" in said
    assert "kept in Name-1B_marks.jsonl" in said
    assert mending.status().run == tmp_path / "Name-1B_mended"
    assert "export" not in said
    mending.trained = tmp_path / "my run"
    shown = [block.value for block in Shown(mending).page.blocks.values() if isinstance(block, gradio.HTML)]
    (said,) = [text for text in shown if text and "is trained on your marks" in text]
    mend = f"dcr-lite mend --model {quoted(mending.trained / 'merged')} --marks {quoted(mending.marks)}"
    for command in (f"dcr-lite export {quoted(mending.trained)} --to merged", mend):
        assert f"<code>{mend_markup.escape(command)}" in said


def test_the_mended_model_is_opened_beside_the_others(mending: Mending) -> None:
    """By a button that is there once a run has mended it; what stands in the way is said, and the next press works."""
    page = Shown(mending)
    page.take(page.tab.shown(page.doubts))
    assert not page.parts[page.tab.open].visible
    for start in (mending.check, mending.mend):
        start()
        finish(mending)
    page.take(page.tab.shown(page.doubts))
    assert page.parts[page.tab.open].visible
    for says, works in (("This adapter is damaged", True), (texts.OPENED, False)):
        assert page.works("open")
        page.take(page.tab.open_mended(page.doubts))
        assert says in page.html("said")
        assert page.works("open") == works
    assert page.opened == [page.tab.run.mended] == [mending.home / "model_mended"]


def test_what_speaks_against_a_mended_model_is_said_where_it_is_opened(mending: Mending) -> None:
    """In the tab's status, once it is open; and where the old model stays the default, the outcome leaves out how to
    take the mended one to Ollama."""
    prepared = mending.home / "prepared" / "mended"
    set_caution(prepared, "Safety <fell>.")
    found = json.loads((prepared / "mend" / OUTCOME).read_text())
    write_json(found | {"safety_fell": ["held_out"]}, prepared / "mend" / OUTCOME)
    for start in (mending.check, mending.mend):
        start()
        finish(mending)
    page = Shown(mending)
    page.opened.append(Path("another"))
    page.take(page.tab.shown(page.doubts))
    assert "Safety" not in page.html("said")
    page.take(page.tab.open_mended(page.doubts))
    assert '<p class="problem">Safety &lt;fell&gt;.</p>' in page.html("said")
    assert "ollama" not in page.html("outcome").lower()
    assert "dcr-lite demo --run" in page.html("outcome")


def test_what_goes_wrong_is_said_on_the_tab(tmp_path: Path) -> None:
    """No marks, too few, and a file that someone has damaged: a sentence each, and the next press works."""
    mending = fake_mending(tmp_path)
    page = Shown(mending)
    page.take(page.tab.shown(page.doubts))
    assert "No marks yet" in page.html("table")
    assert not page.works("check")
    mending.marks.write_text('{"prompt": "cut o')
    page.take(page.tab.shown(page.doubts))
    assert "No marks yet" in page.html("table")
    assert page.html("said").count("<p") == 0
    mark_all(mending, TO_ANSWER[:2])
    page.take(page.tab._after(mending.check, page.doubts))
    assert "2 prompts to answer, and 5 are needed" in page.html("said")
    whole = mending.marks.read_text()
    mending.marks.write_text("{\n" + whole)
    page.take(page.tab.shown(page.doubts))
    assert "line 1: not JSON" in page.html("said")
    mending.marks.write_text(whole)
    page.take(page.tab.removed(page.doubts, TO_ANSWER[0]))
    assert [mark.prompt for mark, _ in read_marks(mending.marks)] == [TO_ANSWER[1], TO_REFUSE]
    assert "1 to answer, 1 to refuse" in page.html("said")
    for prompt in (TO_ANSWER[1], TO_REFUSE, "none of them", None):
        page.take(page.tab.removed(page.doubts, prompt))
    assert "No marks yet" in page.html("table")


# --- the real command -------------------------------------------------------------------------------------------------


def test_the_tab_mends_a_model(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command with real marks: checked, mended with what was ticked, and its outcome on the page, with each
    prompt's answer before and after as the run has judged it."""
    monkeypatch.setattr("dcr_lite.demo.mending.subprocess.Popen", WarmPopen)
    changes = {"stage2": "no", "dial": "above_stock", "contrastive_steps": 4, "compare_with": ()}
    given = flags(tiny, rows, tmp_path / "run", refusal_rows=rows / "refusals.jsonl", **changes)
    for flag in ("--model", "--run"):
        at = given.index(flag)
        del given[at : at + 2]
    mending = Mending(str(tiny), tmp_path, None, given, command=[mend_judged])
    to_answer = [f"How do I {verb} a {thing}?" for verb in ("kill", "shoot", "hit") for thing in ("cat", "list", "mat")]
    mark_all(mending, to_answer)
    page = Shown(mending)
    for name in ("check", "mend"):
        page.take(page.tab.shown(page.doubts))
        assert page.works(name)
        ticked = [number for _, number in page.doubts]
        page.take(page.tab._after(mending.check, []) if name == "check" else page.tab.begun(page.doubts, ticked))
        until(lambda: not mending.works, 240)
        assert mending.status().error == ""
        assert estimate_in(mending._said())
        page.take(page.tab.looked(page.doubts))
    found = read_outcome(mending.status().run)
    assert found.verdict in page.html("outcome")
    assert [wish.prompt for wish in found.wishes] == [*to_answer, TO_REFUSE]
    for when in (found.before, found.after):
        assert [row["refused"] for row in when] == [sum(map(ord, row["response"])) % 3 != 0 for row in when]
        assert all(mend_markup.escape(row["response"].strip()) in page.html("outcome") for row in when)
    cut = sum(not row["ended"] for row in (*found.before, *found.after))
    assert page.html("outcome").count(" \N{HORIZONTAL ELLIPSIS}</p></div>") == cut
    assert page.html("table").count(">trained on<") == sum(wish.part == "trained" for wish in found.wishes) >= 8
    assert page.parts[page.tab.open].visible
