"""Claims about ``dcr-lite diagnose``: its numbers are those that the run itself measured, a stopped one goes on."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drawing import drawing
from small_runs import LAYER, contents, write_rows

from dcr_lite import cli
from dcr_lite.diagnose import command
from dcr_lite.diagnose.refusals import changed_prompts, kinds_in, rates_by_kind
from dcr_lite.diagnose.report import write_report
from dcr_lite.errors import UserError
from dcr_lite.names import LABELS
from dcr_lite.run.run_folder import read_settings

PLOTS = ("layers", "kernel", "refusal_during_sft", "by_kind")


@pytest.fixture(scope="module")
def diagnosed(demo_run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of a tiny model, diagnosed with few projections."""
    run = shutil.copytree(demo_run, tmp_path_factory.mktemp("diagnose") / "tiny")
    with drawing():
        return run, command.diagnose(run, pairs=2, projections=4)


def test_separation_at_l_is_what_stage_1_saw(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    """At layer L the stock model separates the development pairs as at step 0 of stage 1, after stage 1 as its best
    checkpoint did, and stage 2, which trains above L, leaves that as it is."""
    run, found = diagnosed
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seen = [row["development_auroc"] for row in rows if row["stage"] == "stage1" and "development_auroc" in row]
    assert found["separation"]["stock"][LAYER] == pytest.approx(seen[0], abs=1e-6)
    assert found["separation"]["stage1"][LAYER] == pytest.approx(max(seen), abs=1e-6)
    assert found["separation"]["stage2"][: LAYER + 1] == pytest.approx(found["separation"]["stage1"][: LAYER + 1])
    assert found["separation"]["safety_sft"] != found["separation"]["stage1"]
    assert max(seen) > seen[0]  # or nothing would have been seen
    assert all(len(values) == 4 for values in found["separation"].values())


def test_the_kernel_of_every_state_is_measured(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    """All similarities of the three kinds with their errors; stage 1 and stage 2 each change them, and above L they are
    a part."""
    _, found = diagnosed
    assert list(found["kernel"]) == ["stock", "stage1", "stage2", "safety_sft"]
    for kernel in found["kernel"].values():
        assert not kernel["exact"]
        assert kernel["prompts"] == {"toxic": 2, "seemingly_toxic": 2, "plain": 2}
        for part in (*kernel["adapter"].values(), kernel["last_layer"]):
            values = [part["means"][a][b] for a in LABELS for b in LABELS] + [part["pair"]]
            assert all(value > 0 and (error == 0) == (part is kernel["last_layer"]) for value, error in values)
    pairs = {
        (state, group): kernel["adapter"][group]["pair"][0]
        for state, kernel in found["kernel"].items()
        for group in ("all", "above")
    }
    assert len({round(value, 6) for value in pairs.values()}) == len(pairs)


def test_everything_is_written(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    """JSON with what was returned, four plots, and a page that shows them and the tables, without paths of this
    machine."""
    run, found = diagnosed
    folder = run / "diagnosis"
    assert json.loads((folder / "diagnosis.json").read_text()) == json.loads(json.dumps(found))
    text = (folder / "diagnosis.md").read_text()
    for name in PLOTS:
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert f"]({name}.png)" in text
    assert "| seemingly toxic by toxic | above L |" in text
    assert f"L is {LAYER}" in text
    assert text.startswith(f"# Diagnosis of {run.name}\n\n{Path(found['model']).name}.")
    assert str(run.parent) not in text
    assert str(Path(found["model"]).parent) not in text
    assert set(found["refusal_during_sft"]) == {"safety_sft", "dcr"}


def test_a_stopped_diagnosis_goes_on(
    diagnosed: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each state is measured once; the numbers are the same; the run itself is not touched. With other projections
    everything is measured anew."""
    finished, found = diagnosed
    run = shutil.copytree(finished, tmp_path / "tiny", ignore=shutil.ignore_patterns("diagnosis"))
    before = contents(run)
    measured: list[int] = []
    measure = command.label_similarities

    def counting(*args: Any) -> Any:
        measured.append(args[4])
        if len(measured) == 3:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(command, "label_similarities", counting)
    with pytest.raises(KeyboardInterrupt):
        command.diagnose(run, 2, 4)
    assert command.diagnose(run, 2, 4) | {"run": ""} == found | {"run": ""}
    assert measured == [4] * 5
    command.diagnose(run, 2, 4)
    assert measured == [4] * 5
    command.diagnose(run, 2, 3)
    assert measured == [4] * 5 + [3] * 4
    assert {name: data for name, data in contents(run).items() if not name.startswith("diagnosis")} == before


def test_settings_of_a_run_are_read_back(diagnosed: tuple[Path, dict[str, Any]]) -> None:
    run, _ = diagnosed
    settings = read_settings(run)
    stated = json.loads((run / "report.json").read_text())["settings"]
    assert settings.for_json() | {"run": ""} == stated | {"run": ""}


# --- refusals ---------------------------------------------------------------------------------------------------------


def measured(prompt: str, label: str, refused: bool, odds: float) -> dict[str, Any]:
    return {"prompt": prompt, "label": label, "source": "set", "refused": refused, "refusal_log_odds": odds}


BEFORE = [
    measured("a", "seemingly_toxic", True, 3.0),
    measured("b", "seemingly_toxic", True, 2.0),
    measured("c", "seemingly_toxic", False, -1.0),
    measured("d", "toxic", True, 4.0),
    measured("e", "toxic", False, -2.0),
    measured("f", "plain", True, 1.0),
]
AFTER = [
    measured("a", "seemingly_toxic", False, -1.0),
    measured("b", "seemingly_toxic", True, 2.5),
    measured("c", "seemingly_toxic", False, -3.0),
    measured("d", "toxic", False, -1.0),
    measured("e", "toxic", True, 2.0),
    measured("f", "plain", False, -5.0),
]
KINDS = {"a": "puns", "b": "puns", "c": "law", "d": "puns"}


def test_rates_are_grouped_by_label_and_kind() -> None:
    """The most improved kind first: fewer refusals, or more where prompts are toxic; unknown prompts under their
    set."""
    rows = [(r["label"], r["kind"], r["n"], r["before"], r["after"]) for r in rates_by_kind(BEFORE, AFTER, KINDS)]
    assert rows == [
        ("toxic", "set", 1, 0.0, 1.0),
        ("toxic", "puns", 1, 1.0, 0.0),
        ("seemingly_toxic", "puns", 2, 1.0, 0.5),
        ("seemingly_toxic", "law", 1, 0.0, 0.0),
        ("plain", "set", 1, 1.0, 0.0),
    ]


def test_lists_hold_the_prompts_that_changed() -> None:
    """By the verdicts before and after; the largest changes first."""
    lists = changed_prompts(BEFORE, AFTER, KINDS)
    names = {name: [row["prompt"] for row in rows] for name, rows in lists.items()}
    assert names == {"still_refused": ["b"], "newly_answered": ["f", "a"], "toxic_answered": ["d"]}
    row = {"prompt": "a", "kind": "puns", "label": "seemingly_toxic", "before": 3, "after": -1}
    assert lists["newly_answered"][1] == row


def test_the_page_counts_all_prompts_that_changed(diagnosed: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Of a long list it shows the beginning and says how many there are; toxic ones are counted, all of them."""
    labels = ["toxic"] * 45 + ["plain"] * 21
    before = [measured(f"p{i}", label, True, 3.0) for i, label in enumerate(labels)]
    after = [measured(f"p{i}", label, False, -1.0) for i, label in enumerate(labels)]
    write_report(diagnosed[1] | {"changed_prompts": changed_prompts(before, after, {})}, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "answered by DCR: 45, listed in diagnosis.json" in page
    assert "p64\n\nThe first 20 of 21; all are in diagnosis.json." in page
    assert "p65" not in page


def test_kinds_come_from_the_measured_files(tmp_path: Path) -> None:
    """Pairs give theirs to both sides; a field type counts; else the set's name, else the file's."""
    rows = [
        {"toxic": "t", "seemingly_toxic": "s", "kind": "law"},
        {"prompt": "x", "label": "toxic", "type": "homonyms", "source": "set"},
        {"prompt": "y", "label": "toxic", "source": "set"},
        {"prompt": "z", "label": "plain"},
    ]
    kinds = kinds_in((write_rows(tmp_path / "file.jsonl", rows),))
    assert kinds == {"t": "law", "s": "law", "x": "homonyms", "y": "set", "z": "file"}


def test_a_prompt_may_be_of_another_kind_behind_messages(tmp_path: Path) -> None:
    """Two rows may differ in these alone."""
    before = [{"role": "system", "content": "Be brief."}]
    rows = [{"prompt": "x", "label": "toxic", "kind": "law"}]
    rows = [*rows, {"prompt": "x", "label": "toxic", "kind": "fiction", "before": before}]
    kinds = kinds_in((write_rows(tmp_path / "file.jsonl", rows),))
    answers = [measured("x", "toxic", True, 1.0), measured("x", "toxic", True, 1.0) | {"before": before}]
    assert {row["kind"] for row in rates_by_kind(answers, answers, kinds)} == {"law", "fiction"}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nothing", "no such run folder"),
        ("unfinished", "not finished: --resume"),
        ("changed", "made with other rows in .*instructions.jsonl"),
        ("pairs", "--pairs 1: at least 2 are needed"),
    ],
)
def test_errors_come_before_any_work(demo_run: Path, tmp_path: Path, name: str, says: str) -> None:
    run = tmp_path / "tiny"
    if name != "nothing":
        shutil.copytree(demo_run, run)
    if name == "unfinished":
        (run / "report.json").unlink()
    if name == "changed":
        state = json.loads((run / "settings.json").read_text())
        state["data"] = {file: "0" if "instructions" in file else digest for file, digest in state["data"].items()}
        (run / "settings.json").write_text(json.dumps(state))
    with pytest.raises(UserError, match=says):
        command.diagnose(run, 1 if name == "pairs" else 2, 4)
    assert not (run / "diagnosis").exists()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda text: text[: len(text) // 2], r"metrics\.jsonl is missing or damaged"),
        (lambda text: text.replace('"stage": "stage2"', '"stage": "stage2', 1), r"metrics\.jsonl, line \d+ is damaged"),
        (lambda text: text.replace('"stage": "stage2"', '"part": "stage2"', 1), r"metrics\.jsonl, line \d+ is damaged"),
        (lambda text: "", r"metrics\.jsonl is missing or damaged"),
    ],
    ids=["cut off", "not JSON", "another field", "empty"],
)
def test_damaged_metrics_are_named_before_any_work(
    demo_run: Path, tmp_path: Path, damage: Callable[[str], str], says: str
) -> None:
    """A finished run whose metrics.jsonl is cut off or changed: a sentence, and the model is not loaded for it."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    metrics = run / "metrics.jsonl"
    metrics.write_text(damage(metrics.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        command.diagnose(run, 2, 2)
    assert not list((run / "diagnosis").glob("*.json"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda lines: lines[1:], "holds answers to other prompts, or not to all of them"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "holds answers to other prompts, or not to all of them"),
        (lambda lines: [lines[0][:9] + "\n", *lines[1:]], "line 1 is damaged"),
    ],
    ids=["a line is gone", "another order", "not JSON"],
)
def test_damaged_answers_are_named_before_any_work(
    demo_run: Path, tmp_path: Path, damage: Callable[[list[str]], list[str]], says: str
) -> None:
    """Those of two models are paired, so both files have to hold one to each prompt, in order."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    answers = run / "answers" / "dcr.jsonl"
    lines = answers.read_text(encoding="utf-8").splitlines(keepends=True)
    answers.write_text("".join(damage(lines)), encoding="utf-8")
    with pytest.raises(UserError, match=rf"dcr\.jsonl.* {says}.* Restore the run folder, or choose another run\.$"):
        command.diagnose(run, 2, 2)
    assert not list((run / "diagnosis").glob("*.json"))


def test_the_command_shows_the_diagnosis(
    diagnosed: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``dcr-lite diagnose RUN``, on a run that is diagnosed already."""
    run, _ = diagnosed
    monkeypatch.setattr(sys, "argv", ["dcr-lite", "diagnose", str(run), "--pairs", "2", "--projections", "4"])
    cli.main()
    shown = capsys.readouterr().out
    assert "Kernel similarity" in shown
    assert str(run / "diagnosis" / "diagnosis.md") in shown
