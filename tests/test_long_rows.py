"""Rows that are too long are known before anything trains: counted in public data, named in a user's own files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import small_settings
from small_runs import flags, run_here, save_rows, write_rows

from dcr_lite.data import paper_data
from dcr_lite.diagnose import command as diagnose
from dcr_lite.errors import UserError
from dcr_lite.method.loop import Loop
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import Fit, fit, needs
from dcr_lite.model.shapes import KNOWN
from dcr_lite.probe.subjects import RunSource
from dcr_lite.run import dial_command, inputs, long_rows, opening
from dcr_lite.run.long_rows import limits, row_lengths, without_long_rows
from dcr_lite.run.plan import plan
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.run.report import _left_out
from dcr_lite.run.run_folder import RunFolder, read_settings

LONG = {"prompt": "Name cats.", "response": "Tom and Tim. " * 12}


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return save_rows(tmp_path / "rows")


def add_row(path: Path, row: dict[str, Any]) -> int:
    """Append a row; returns the number of its line."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [*lines, row])
    return len(lines) + 1


@pytest.fixture
def as_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files of a run count as public sets."""
    monkeypatch.setattr(long_rows, "sources", lambda path: paper_data.SOURCES["instructions.jsonl"])


def loaded(model: Path, rows: Path, run: Path, **longest_in: int) -> tuple[RunFolder, Model, inputs.Data, Any]:
    settings = small_settings(model, rows, run)
    model_, _ = opening.load_model(settings)
    model_.longest_in = longest_in
    return RunFolder(settings), model_, inputs.load_data(settings), settings


def test_a_users_own_long_row_is_an_error_with_file_and_line(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """The row fits the window, and not the memory of one pass: its file, its line, its tokens and what fits."""
    line = add_row(rows / "instructions.jsonl", LONG)
    run, model, data, settings = loaded(tiny, rows, tmp_path / "run", safety_sft=96, stage2=200)
    tokens = max(row_lengths(model.tokenizer, data.instructions))
    assert 96 < tokens < model.window
    said = f"instructions.jsonl, line {line}: {tokens} tokens in the chat template, and at most 96 fit one pass in the"
    with pytest.raises(UserError, match=said):
        without_long_rows(run, model, data, settings)


def test_of_rows_that_differ_in_the_messages_before_them_the_long_one_is_named(
    tiny: Path, rows: Path, tmp_path: Path
) -> None:
    """A pair, and a prompt that is measured."""
    long = [{"role": "system", "content": "Tom and Tim. " * 200}]
    for name, row in (
        ("pairs", {"toxic": "a", "seemingly_toxic": "b"}),
        ("held_out", {"prompt": "a", "label": "plain"}),
    ):
        file = rows / f"{name}.jsonl"
        whole = file.read_bytes()
        add_row(file, row)
        line = add_row(file, row | {"before": long})
        run, model, data, settings = loaded(tiny, rows, tmp_path / "run")
        with pytest.raises(UserError, match=f"{name}.jsonl, line {line}: 1,[0-9]+ tokens in the chat template"):
            without_long_rows(run, model, data, settings)
        file.write_bytes(whole)


def test_a_run_that_a_long_row_ended_has_not_begun(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """With the row shortened, the same command begins: there is nothing to resume and no other data to complain of."""
    file = rows / "instructions.jsonl"
    whole = file.read_bytes()
    add_row(file, LONG | {"response": "Tom and Tim. " * 200})
    few = {"contrastive_steps": 1, "sft_epochs": 1, "compare_with": [], "evaluation": rows / "plain.jsonl"}
    argv = flags(tiny, rows, tmp_path / "run", **few)
    done = run_here(argv)
    assert done.code == 1
    assert "this model's window of 512" in done.err
    file.write_bytes(whole)
    assert run_here(argv).code == 0


@pytest.mark.usefixtures("as_public")
def test_public_long_rows_are_left_out_and_counted(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Instructions and refusals, in the plan and in the report; no longer row is trained on, and what is drawn is
    drawn anew from those that are left."""
    for name in ("instructions", "refusals"):
        add_row(rows / f"{name}.jsonl", LONG)
    run, model, data, settings = loaded(tiny, rows, tmp_path / "run", safety_sft=96)
    short = without_long_rows(run, model, data, settings)
    assert short.left_out == {"instruction_rows": 1, "refusal_rows": 1}
    assert len(short.instructions) == len(data.instructions) - 1
    for drawn in (short.instructions, short.refusals, short.baseline_mixture):
        assert max(row_lengths(model.tokenizer, drawn)) <= 96
    assert short.longest["instruction_rows"] == max(row_lengths(model.tokenizer, short.instructions))
    shown = plan(model, "here", short, settings)["longest rows"]
    assert shown.endswith("tokens; left out as too long: 1 instructions, 1 refusals")
    assert _left_out(short.left_out) == "Left out as too long: 1 of instruction_rows, 1 of refusal_rows.\n\n"


@pytest.mark.usefixtures("as_public")
def test_a_run_that_goes_on_keeps_its_rows(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """With less memory free, or more, after a stop: the limits are those that the run began with, and so the rows."""
    add_row(rows / "instructions.jsonl", LONG)
    run, model, data, settings = loaded(tiny, rows, tmp_path / "run", safety_sft=96)
    begun = without_long_rows(run, model, data, settings)
    for free in ({"safety_sft": 64}, {"safety_sft": 4096}, {}):
        model.longest_in = free
        assert without_long_rows(run, model, data, settings) == begun


def test_nothing_is_left_out_where_all_fits(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Then the data are those that were read, to the row."""
    run, model, data, settings = loaded(tiny, rows, tmp_path / "run")
    same = without_long_rows(run, model, data, settings)
    assert same.left_out == {}
    assert vars(same) | {"longest": {}} == vars(data)


def test_the_limit_is_the_smaller_of_window_and_memory(tiny_model: Callable[..., Model]) -> None:
    """Of safety SFT that of the stage with less room; a prompt leaves room for its answer."""
    model = tiny_model()
    assert limits(model.window, {}, 40) == {"stage1": 512, "safety_sft": 512, "evaluation": 472}
    with pytest.raises(UserError, match="--answer-tokens 600: this model's window is 512"):
        limits(model.window, {}, 600)
    longest_in = {"stage1": 300, "stage2": 200, "safety_sft": 144, "evaluation": 5000}
    assert limits(model.window, longest_in, 40) == {"stage1": 300, "safety_sft": 144, "evaluation": 472}


@pytest.mark.parametrize("gigabytes", [12.6, 16.0, 24.0])
def test_the_longest_row_fits_with_room_to_spare(gigabytes: float) -> None:
    """Of Llama 3 8B on common cards: a row of the limit needs less than what is free, and is not absurdly short."""
    settings = load_recipe(find_recipe("llama3_8b")).SETTINGS
    fitting = fit(needs(KNOWN[settings.model], settings, True, 2), gigabytes * 1e9, settings.model)
    for name, need in fitting.needs.items():
        units = fitting.longest[name] / need.tokens
        assert need.total(units) <= gigabytes * 1e9
        assert fitting.longest[name] >= 512


def test_a_long_public_row_does_not_end_a_run(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, as_public: None
) -> None:
    """A whole run with memory for rows of 96 tokens, and a pair beyond the window: no stage trains on a longer one, and
    the report counts them. Whoever reads the rows of the run afterwards, to probe or diagnose it or to turn its dial,
    gets those that it had, also where more memory is free."""
    seen: list[int] = []
    had: list[inputs.Data] = []
    add_row(rows / "instructions.jsonl", LONG)
    add_row(rows / "pairs.jsonl", {"toxic": "Tom and Tim. " * 200, "seemingly_toxic": "Tom.", "focus": "tom"})
    fitting, train, shorten = opening.what_fits, Loop.run, long_rows.without_long_rows

    def fit_in_little(*args: Any) -> Fit:
        found = fitting(*args)
        return replace(found, units=found.units | {"safety_sft": 96}, longest={"safety_sft": 96, "stage2": 96})

    def watched(loop: Loop) -> Any:
        seen.extend(len(row.ids) for row in getattr(loop.stage, "rows", []) if hasattr(row, "ids"))
        return train(loop)

    def watching(*args: Any) -> inputs.Data:
        had.append(shorten(*args))
        return had[-1]

    monkeypatch.setattr(opening, "what_fits", fit_in_little)
    monkeypatch.setattr(Loop, "run", watched)
    monkeypatch.setattr(long_rows, "without_long_rows", watching)
    run, left_out = tmp_path / "run", {"pairs": 1, "instruction_rows": 1}
    done = run_here(flags(tiny, rows, run, instructions=17, contrastive_steps=2, sft_epochs=1))
    assert done.code == 0, done.err
    assert max(seen) <= 96
    assert json.loads((run / "report.json").read_text())["data"]["left_out"] == had[0].left_out == left_out
    assert "Left out as too long: 1 of pairs, 1 of instruction_rows." in (run / "report.md").read_text()
    monkeypatch.setattr(opening, "what_fits", fitting)
    settings = replace(read_settings(run), device="cpu")
    assert RunSource(run, "cpu").data == dial_command.open_as_trained(settings)[1] == had[0]
    (name, state), *_ = diagnose._measure(settings, ["stock"], 2, 2)
    assert (name, state["development_pairs"]) == ("stock", len(had[0].development))
    (run / "report.json").write_text('{"data": []}')
    with pytest.raises(UserError, match=r"report\.json is missing or damaged"):
        dial_command.open_as_trained(settings)
