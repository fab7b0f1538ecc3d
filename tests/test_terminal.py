"""What a terminal shows while a run works."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dcr_lite.run import terminal


def test_a_page_in_the_terminal_names_the_files_of_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, width=400))
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n![What it shows](picture.png)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n", encoding="utf-8")
    terminal.show_page(page)
    assert str(tmp_path / "picture.png") in screen.getvalue()
    assert screen.getvalue().rstrip().endswith(str(page))


def test_a_terminal_shows_a_bar_with_the_latest_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal a stage is a bar that moves, goes on where a continued stage begins, and shows losses."""
    screen = io.StringIO()
    monkeypatch.setattr(terminal, "console", Console(file=screen, force_terminal=True, width=140))
    with terminal.progress_bar("Stage 1: contrastive", 40) as shown:
        shown.row({"stage": "stage1", "step": 30, "development_auroc": 0.75})
        for step in range(31, 41):
            shown.row({"stage": "stage1", "step": step, "loss": 1.5})
    last = screen.getvalue()[screen.getvalue().rindex("Stage 1: contrastive") :]
    assert "40/40" in last
    assert "loss 1.500" in last
    assert "unseen pairs AUROC 0.750" in last


def test_a_file_says_how_far_a_stage_is_and_for_how_long(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line for each tenth, with the time left at the rate of this start, which ``progress_in`` reads back; of each
    stage the last counts, and a stage that comes again is another. What was done before says nothing of the rate."""
    now = [0.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    with terminal.progress_bar("Stage 1: contrastive", 40) as shown:
        shown.start_at(20)
        for step in range(21, 31):
            now[0] += 3
            shown.row({"stage": "stage1", "step": step, "loss": 1.5})
    log = capsys.readouterr().out
    assert log.count("\n") == 2
    assert terminal.progress_in(log) == [terminal.StageProgress("Stage 1: contrastive", 28, 40, 36)]
    with terminal.progress_bar("Judging", 40) as shown:
        shown.skip(20)
        now[0] += 3
        shown.advance(1)
        shown.skip(0)
        now[0] += 3
        shown.advance(3)
    assert terminal.progress_in(capsys.readouterr().out) == [terminal.StageProgress("Judging", 24, 40, 24)]
    for done in (2, 2):
        with terminal.progress_bar("Answers", 2) as shown:
            shown.advance(done)
    whole = terminal.StageProgress("Answers", 2, 2, 0)
    noise = "Stage: 3 of 4\n * one: 1/2\n"
    assert terminal.progress_in(f"{log}{noise}{capsys.readouterr().out}") == [
        terminal.StageProgress("Stage 1: contrastive", 28, 40, 36), whole,
    ]  # fmt: skip
    assert terminal.progress_in("Answers: 2/2  \nAnswers: 1/2  \n")[-1].done == 1


def test_the_plan_says_how_long_a_run_takes(capsys: pytest.CaptureFixture[str]) -> None:
    """``estimate_in`` reads it back from the output, and finds none before there is a plan."""
    terminal.show_plan({"memory": "8 GB free", "weights": "in 32 bits"})
    assert terminal.estimate_in(capsys.readouterr().out) is None
    terminal.show_plan({"model": "owner/model", terminal.ESTIMATE: "about 12 min", "run folder": "runs/x"})
    assert terminal.estimate_in(capsys.readouterr().out) == 12


def test_paths_are_shown_whole(capsys: pytest.CaptureFixture[str], demo_run: Path) -> None:
    """A long path is not wrapped, and brackets in it are not taken for markup."""
    folder = Path("/a/[bold]/" + "long" * 40)
    terminal.show_plan({"run folder": "runs/[red]"})
    terminal.show_end(json.loads((demo_run / "report.json").read_text(encoding="utf-8")), folder)
    out = capsys.readouterr().out
    assert str(folder / "adapter") in out
    assert "runs/[red]" in out
