"""A comparison by several judges, from kept answers: nothing is trained and no model answers here."""

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_runs import recipe_module

from dcr_lite.compare.judged import PARTED, changed, judged, judges_section, stored_answers
from dcr_lite.compare.measurement import Configuration, EvaluationData, answers_file
from dcr_lite.compare.methods import METHODS
from dcr_lite.compare.report import comparison_report, write_report
from dcr_lite.compare.summary import SET, numbers_of
from dcr_lite.errors import UserError
from dcr_lite.judges.interface import Exchange
from dcr_lite.judges.opening import CueJudge
from dcr_lite.measure.answers import discernment_intervals, method_result, prompts_asked, write_answers
from dcr_lite.measure.kinds import kind_of
from dcr_lite.names import LABELS
from dcr_lite.run import terminal
from dcr_lite.settings import Settings

REFUSES, ANSWERS, EVADES = "I'm sorry, but I can't help with that.", "Sure, here it is.", "Why do you ask?"
# Of four answers to toxic and four to seemingly toxic prompts: how many refuse, how many evade; by method.
KINDS = {"base": ((0, 0), (0, 0)), "safety_sft": ((3, 0), (1, 0)), "dcr": ((2, 2), (0, 1))}
SEEDS = (0, 1)


class Strict:
    """Takes evasions for refusals too; of plain prompts it has no verdict."""

    name = "http://localhost:1/v1#models/strict"

    def __init__(self, blind_to: str = "plain"):
        self.blind_to = blind_to

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        refused = [float(row.response in (REFUSES, EVADES)) for row in rows]
        blind = [row.prompt.startswith(self.blind_to) for row in rows]
        return [float("nan") if b else r for r, b in zip(refused, blind, strict=True)]


def answered(method: str, seed: int | None) -> list[dict[str, Any]]:
    rows = []
    for label in LABELS:
        refuse, evade = KINDS[method][LABELS.index(label)] if label != "plain" else (0, 0)
        for i, said in enumerate(([REFUSES] * refuse + [EVADES] * evade + [ANSWERS] * 4)[:4]):
            prompt, refused = f"{label} {i}", said == REFUSES
            row = {"source": "some", "label": label, "prompt": prompt, "response": said, "refused": refused}
            odds = float(i + (label == "toxic") + (seed or 0))
            rows.append(row | {"kind": kind_of(prompt, said, refused), "refusal_log_odds": odds})
    return rows


@pytest.fixture
def ground(tmp_path: Path) -> tuple[dict[int | None, Any], list[dict[str, Any]], EvaluationData, Settings]:
    """The runs, results and answers of a finished comparison of three methods and two seeds."""
    settings = replace(recipe_module().SETTINGS, device="cpu", refusals=4, baseline_refusals=6, augmentations=3)
    data = EvaluationData(prompts_asked(answered("base", None)), [], [])
    runs: dict[int | None, Any] = {
        seed: SimpleNamespace(run=SimpleNamespace(path=tmp_path / str(seed)), settings=settings)
        for seed in (None, *SEEDS)
    }
    results = []
    for method in KINDS:
        strength = METHODS[method].strengths(settings)[0]
        for seed in (None,) if method == "base" else SEEDS:
            rows = answered(method, seed)
            write_answers(rows, answers_file(runs[seed], Configuration(method, strength, seed), data))
            result = method_result(rows)
            numbers, intervals = numbers_of(result, discernment_intervals(rows)["auroc_ci95"])
            place = {"method": method, "strength": strength, "seed": seed, "note": ""}
            found = {"result": result, "numbers": numbers | {"minutes": 2.0}, "intervals": intervals}
            results.append(place | found)
    return runs, results, data, settings


def test_the_cue_judge_gives_what_was_measured(ground: Any, tmp_path: Path) -> None:
    """Judged anew by the judge that had judged them, the numbers of every configuration are the same, to the bit."""
    runs, results, data, _ = ground
    found, section, answers = judged([CueJudge()], runs, results, data, tmp_path)
    for again, before in zip(found, results, strict=True):
        assert {**again["result"], "discernment": None} == {**before["result"], "discernment": None}
        assert (again["numbers"], again["intervals"]) == (before["numbers"], before["intervals"])
        assert answers(again) == stored_answers(runs, data, before)
    assert section["agreement"] == []
    assert (tmp_path / PARTED).read_text() == ""


def test_auroc_is_of_all_prompts_whatever_a_judge_decides(ground: Any, tmp_path: Path) -> None:
    """It is that of log-odds: a judge without a verdict on some toxic answers leaves it as it is."""
    runs, results, data, _ = ground
    first, *_ = judged([Strict("toxic 3")], runs, results, data, tmp_path)
    assert any(one["result"]["overall"]["toxic"]["n"] < 4 for one in first)
    for one, before in zip(first, results, strict=True):
        assert one["numbers"]["auroc"] == before["numbers"]["auroc"]
        assert one["intervals"]["auroc"] == before["intervals"]["auroc"]


def test_tables_are_by_the_first_judge_and_the_page_says_what_the_others_find(
    ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the strict judge DCR's evasions are refusals, by cues they are not. The page names both, J by each, what
    has no verdict, and how far they agree by method; the answers on which they part are in a file."""
    runs, results, data, settings = ground
    first, section, _ = judged([Strict(), CueJudge()], runs, results, data, tmp_path)
    numbers = {(r["method"], r["seed"]): r["numbers"] for r in first}
    for seed in SEEDS:
        assert (numbers["dcr", seed]["safety"], numbers["dcr", seed]["compliance"]) == (1.0, 0.75)
        assert (numbers["safety_sft", seed]["safety"], numbers["safety_sft", seed]["compliance"]) == (0.75, 0.75)
        assert numbers["dcr", seed]["minutes"] == 2.0
    for one, before in zip(first, results, strict=True):  # the strict judge has no verdict on plain prompts
        assert "plain" in before["numbers"].keys() & before["intervals"].keys()
        assert "plain" not in one["numbers"].keys() | one["intervals"].keys()
    strict, cues = section["judges"]
    assert section["main"] == strict["name"] == Strict.name
    assert (strict["without_verdict"], cues["without_verdict"]) == (20, 0)
    assert (strict["changed"], cues["changed"]) == ([], [])
    (pair,) = section["agreement"]
    assert (pair["n"], pair["part"]) == (40, 6)
    assert {name: found["part"] for name, found in pair["by"].items()} == {"base": 0, "safety_sft": 0, "dcr": 6}
    parted = [json.loads(line) for line in (tmp_path / PARTED).read_text(encoding="utf-8").split("\n") if line]
    assert [row["response"] for row in parted] == [EVADES] * 6
    assert {(row["method"], row["seed"]) for row in parted} == {("dcr", 0), ("dcr", 1)}
    assert not (tmp_path / "judging.jsonl").exists()
    more = {"prompts": {"files": ["a.jsonl"], "benchmarks": [], "rows": None, "n": 12}, "seconds": 60.0}
    more |= {"general": {"instructions": 4, "multiple_choice": None}, "judged": section, "failed": []}
    write_report(comparison_report("tiny", settings, first, ()) | more, settings, tmp_path)
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    for line in (
        "Refusals are those that the judge strict sees.",
        "|  | J, strict | J, cues |",
        "| DCR | 0.75 ±0.00 | 0.50 ±0.00 |",
        "| stock model | 0.00 ±",
        "By cues the order of methods by J is the same as by strict.",
        "- strict and cues part on 6 of 40 answers, Cohen's kappa 0.6",
        "  - DCR: part on 6 of 16 answers",
        "  - stock model: part on 0 of 8 answers (kappa undefined",
    ):
        assert line in page, line
    assert "Compliance on each set" not in page  # there is one set
    assert "Small ones" not in page  # there is no curve
    assert json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))["judged"] == section


def test_the_differences_of_one_seed_are_by_the_first_judge(ground: Any, tmp_path: Path) -> None:
    """Their intervals over prompts too: by the strict judge DCR refuses every toxic prompt, whichever are drawn, where
    the stock model refuses none; by cues half of them. The page says over what they are. Answers that are gone, or
    of which a line is, are a sentence: those of another model would be paired with other prompts."""
    runs, results, data, settings = ground
    one_seed = [result for result in results if result["seed"] in (None, 0)]
    more = {"prompts": {"files": ["a.jsonl"], "benchmarks": [], "rows": None, "n": 12}, "seconds": 60.0, "failed": []}
    more |= {"general": {"instructions": 4, "multiple_choice": None}}
    for judge, low, high in ((Strict(), 1.0, 1.0), (CueJudge(), 0.0, 1.0)):
        first, section, answers = judged([judge], runs, one_seed, data, tmp_path)
        report = comparison_report("tiny", settings, first, (), answers=answers) | more | {"judged": section}
        safety = report["differences"]["base"]["safety"]
        assert (safety["n"], safety["ci95"][1]) == (1, high)
        assert low <= safety["ci95"][0] <= safety["mean"]
    write_report(report, settings, tmp_path)
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    assert "With a single seed it is over prompts" in page
    assert "excludes zero:" not in page
    path = answers_file(runs[0], Configuration("dcr", METHODS["dcr"].strengths(settings)[0], 0), data)
    kept = answered("dcr", 0)
    system = {"before": [{"role": "system", "content": "x"}]}
    for rows in (kept[1:], kept[1:] + kept[:1], [kept[0] | system, *kept[1:]]):
        write_answers(rows, path)
        with pytest.raises(UserError, match="holds answers to other prompts, or not to all of them"):
            comparison_report("tiny", settings, first, (), answers=partial(stored_answers, runs, data))
    path.unlink()
    with pytest.raises(UserError, match="was moved or removed"):
        comparison_report("tiny", settings, first, (), answers=partial(stored_answers, runs, data))


def test_tables_of_several_sets_fit_a_terminal(
    ground: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Single sets have a table of their own, so that no number of the first is cut off in 80 columns."""
    _, results, _, settings = ground
    names = ("oktest", "phtest", "xstest-v2", "or-bench-hard-1k", "coconot-contrast")
    for result in results:
        result["numbers"] |= {f"{SET}{name}": 0.512 for name in names} | {"minutes": 14.7, "peak_memory_gb": 2.9}
        result["intervals"] |= {f"{SET}{name}": (0.4, 0.6) for name in names}
        del result["numbers"][f"{SET}some"]
    more = {"prompts": {"files": ["a.jsonl"], "benchmarks": [], "rows": None, "n": 12}, "seconds": 60.0}
    more |= {"general": {"instructions": 4, "multiple_choice": None}}
    more |= {"judged": {"main": "cues", "judges": [], "agreement": []}, "failed": []}
    write_report(comparison_report("tiny", settings, results, (0,)) | more, settings, tmp_path)
    page = (tmp_path / "comparison.md").read_text(encoding="utf-8")
    first, sets = page.split("Compliance on each set")
    assert not any(f"{name} ↑" in first for name in names)
    assert all(f"{name} ↑" in sets for name in names)
    assert "Small ones (seeds 0): " in sets
    monkeypatch.setattr(terminal.console, "width", 80)
    terminal.show_page(tmp_path / "comparison.md")
    shown = capsys.readouterr().out
    assert shown.count("0.51") == 5 * len(KINDS)
    assert not re.search(r"\d…|±[\d.]*…", shown)


def test_another_order_is_said() -> None:
    """Where one judge puts a method before another and the second judge behind it; equal ones are in no order."""

    def entries(**j: float) -> list[dict[str, Any]]:
        return [{"method": name, "numbers": {"j": {"mean": mean, "ci95": None}}} for name, mean in j.items()]

    main = entries(base=0.0, safety_sft=0.5, dcr=0.7)
    assert changed(main, entries(base=0.0, safety_sft=0.6, dcr=0.55)) == [["dcr", "safety_sft"]]
    assert changed(main, entries(base=0.0, safety_sft=0.6, dcr=0.6)) == []
    assert changed(entries(safety_sft=0.6, dcr=0.6), entries(safety_sft=0.5, dcr=0.7)) == []
    assert changed(main, main) == []
    other = entries(base=0.0, safety_sft=0.6, dcr=0.55)
    judges = [
        {"name": "cues", "methods": main, "without_verdict": 0, "changed": []},
        {"name": "x/strict", "methods": other, "without_verdict": 3, "changed": changed(main, other)},
    ]
    text = judges_section({"main": "cues", "judges": judges, "agreement": []})
    said = "By strict the order of methods by J is another than by cues: it puts safety SFT alone before DCR. "
    assert said + "It gave no verdict on 3 answers." in text
    assert judges_section({"main": "cues", "judges": [], "agreement": []}) == ""


def test_a_judge_without_a_verdict_on_a_kind_is_an_error(ground: Any, tmp_path: Path) -> None:
    """Its rate would be made of nothing: the method and the kind of prompt are named."""
    runs, results, data, _ = ground
    with pytest.raises(UserError, match="no verdict on any seemingly toxic prompt of stock model"):
        judged([CueJudge(), Strict("seemingly")], runs, results, data, tmp_path)
