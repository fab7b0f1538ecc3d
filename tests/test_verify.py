"""Claims about ``dcr-lite verify``: what is changed in a submission is found, and a rerun gives the same numbers."""

import copy
import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import leaderboard
import pytest
from contract_runs import SEEDS, Contracted
from hypothesis import given
from hypothesis import strategies as st

from dcr_lite import cli
from dcr_lite.compare import rerun, verify_command
from dcr_lite.compare.contract import read_contract
from dcr_lite.compare.findings import compared_where_both, same
from dcr_lite.compare.measurement import Configuration, measure_configuration
from dcr_lite.compare.schema import misfits
from dcr_lite.compare.submission import Submission
from dcr_lite.compare.verification import consistency, contract_of
from dcr_lite.compare.verify_command import Asked, verify
from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl, write_json, write_jsonl
from dcr_lite.measure.answers import read_answers

pytestmark = pytest.mark.usefixtures("small")
Place = tuple[Any, ...]


def differing(file: Path, **asked: Any) -> list[str]:
    return [found.text for found in verify(Asked(file, **asked)) if found.state == "differs"]


def places(value: Any, so_far: Place = ()) -> Iterator[tuple[Place, float]]:
    """Every number in a JSON value, and where it is."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in items:
        yield from places(one, (*so_far, key))
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield so_far, value


def changed(submission: dict[str, Any], place: Place, value: Any) -> dict[str, Any]:
    found = copy.deepcopy(submission)
    inner: Any = found
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return found


def seeds_of(submission: dict[str, Any]) -> list[tuple[dict[str, Any], int | None]]:
    """Every method with each of its seeds."""
    return [(entry, point["seed"]) for entry in submission["methods"] for point in entry["points"]]


def faults_of(submission: dict[str, Any]) -> list[str]:
    contract, found = contract_of(submission)
    found = found + (consistency(submission, contract) if contract else [])  # type: ignore[arg-type]
    return [one.text for one in found if one.state == "differs"]


@pytest.fixture(scope="module")
def submission(contracted: Contracted) -> dict[str, Any]:
    return contracted.submission()


def test_a_submission_as_it_was_written_agrees(contracted: Contracted) -> None:
    """By itself and by its answers: every check is named, and none finds anything."""
    found = verify(Asked(contracted.out / "submission.json", contracted.out))
    assert {one.state for one in found} == {"ok"}
    said = "\n".join(one.line() for one in found)
    assert said.startswith(
        "ok       the file has the shape of a submission\nok       contract 1 is the one of this kit\n"
    )
    for what in (
        "follow from counts",
        "means and intervals follow",
        "settings are those of its run folders",
        "shifted, seed 1: its answers give its numbers",
    ):
        assert what in said


@given(data=st.data())
def test_a_changed_number_is_found(data: st.DataObject, submission: dict[str, Any]) -> None:
    """Any number of any method, by seed, by judge or over seeds, changed alone to any other; but for time and memory,
    of which there is one copy."""
    free = ("minutes", "peak_memory_gb")
    numbers = [(p, v) for p, v in places(submission["methods"], ("methods",)) if p[-1] not in free]
    place, before = data.draw(st.sampled_from(numbers))
    whole = isinstance(before, int)
    others = st.integers(-3, 20) if whole else st.floats(-2, 2) | st.just(before + 1e-6)
    value = data.draw(others.filter(lambda x: not math.isclose(x, before, rel_tol=1e-8, abs_tol=1e-8)))
    assert faults_of(changed(submission, place, value)), place


@given(data=st.data())
def test_any_damage_is_found_and_never_an_exception(data: st.DataObject, submission: dict[str, Any]) -> None:
    """A value of another kind at any place, a name too many or one too few."""
    every = [place for place, _ in places(submission)]
    place = data.draw(st.sampled_from(every))
    place = place[: data.draw(st.integers(1, len(place)))]
    junk = [None, True, "x", [], {}, float("nan"), float("inf"), 10**400, -1, "\x1b[2J", [[1]], {"a": {}}]
    value = data.draw(st.sampled_from(junk))
    damaged = changed(submission, place, value)
    free = {"seconds", "minutes", "peak_memory_gb", "note", "settings"}  # of which there is one copy
    could_be_so = bool(free & set(place)) and value in ("x", -1, {})
    if damaged != submission and not could_be_so:
        assert faults_of(damaged) or place == ("methods",), (place, value)


def test_settings_that_another_version_brings_are_a_note() -> None:
    """Values of the same name have to agree; a name that one side lacks says nothing of the measurement."""
    there, here = {"rank": 16, "gone": 1}, {"rank": 16, "new": True}
    (note,) = compared_where_both("settings", there, here)
    assert (note.state, note.text) == ("note", "settings: another version has gone, new")
    states = [one.state for one in compared_where_both("settings", there, here | {"rank": 8})]
    assert states == ["differs", "note"]
    assert compared_where_both("settings", here, dict(here)) == []


def test_terms_that_are_not_the_contracts_are_found(submission: dict[str, Any]) -> None:
    """Other seeds, judges or methods, another contract, versions that are none; each is named."""
    cases: list[tuple[str, Any]] = []

    def case(says: str) -> dict[str, Any]:
        cases.append((says, copy.deepcopy(submission)))
        return cases[-1][1]

    case("contract 1, SHA-256: expected ")["contract"]["sha256"] = "0" * 64
    case("contract 9: this version of the kit has none")["contract"]["number"] = 9
    case("format of the file: expected 1, found 2")["submission"] = 2
    case("methods: expected base first")["methods"].reverse()
    twice = case("methods: expected base first, each once")
    twice["methods"].append(twice["methods"][1])
    case("safety SFT alone, seeds: expected [0, 1], found [0]")["methods"][2]["points"].pop()
    alone = case("steered stock, seeds: expected [0, 1], found [nothing]")["methods"][1]
    alone["points"] = alone["points"][:1]
    alone["points"][0]["seed"] = None
    del case("stock model, judges: expected [cues, vowels], found [cues]")["methods"][0]["points"][0]["judges"][
        "vowels"
    ]
    added = submission["methods"][-1]["method"]
    case("steered, title: expected steered stock, found DCR")["methods"][1]["title"] = "DCR"
    case("steered stock, strength: expected 1, found 2")["methods"][1]["strength"] = 2.0
    case("safety SFT alone, strength: expected 6, found 3")["methods"][2]["strength"] = 3
    case("safety SFT alone, strength: expected nothing, found 6")["recipe"]["settings"].pop("baseline_refusals")
    case(f"{added}, title and strength: expected a title of its own")["methods"][-1]["strength"] = 1.0
    case(f"{added}, title and strength: expected a title of its own")["methods"][-1]["title"] = "DCR"
    sets = case("stock model, cues, sets: expected")["methods"][0]["points"][0]["judges"]["cues"]["sets"]
    sets.append(sets[0] | {"name": "another", "n": 1, "refused": 0})
    case("stock model, cues, sets: expected")["methods"][0]["points"][0]["judges"]["cues"]["without_verdict"] = 1
    case("shifted, origin: expected added, found kit")["methods"][-1]["origin"] = "kit"
    del case("steered stock, seed 0, numbers: expected")["methods"][1]["points"][0]["numbers"]["auroc"]
    for label in ("seemingly_toxic", "plain"):  # an inconvenient number, left out at every place alike
        unkept = case("steered stock, seed 1, numbers: expected [auroc, kept_seemingly_toxic, kept_plain, answer_loss]")
        for numbers in (unkept["methods"][1], *unkept["methods"][1]["points"]):
            del numbers["numbers"][f"kept_{label}"]
    unmeasured = case("stock model, numbers: expected [auroc, answer_loss], found")["methods"][0]["points"][0]
    unmeasured["numbers"]["kept_plain"] = 1.0
    case("shifted, method: expected letters and digits")["methods"][-1]["method"] = "../shifted"
    case("version of torch: expected a version, found nothing")["versions"].pop("torch")
    case("version of peft: expected a version")["versions"]["peft"] = "new"
    case("date: expected YYYY-MM-DD, found today")["date"] = "today"
    case("recipe: expected 64 hexadecimal digits")["recipe"]["sha256"] = "abc"
    case("source: expected 64 hexadecimal digits")["source"] = "abc"
    case("answers of stock model: expected 64 hexadecimal")["methods"][0]["points"][0]["answers"]["sha256"] = "Z" * 64
    whose = case("steered stock, seed 1, interval of auroc: expected two ends of what is measured once")
    whose["methods"][1]["points"][1]["intervals"]["auroc"] = [0.0, 1.0]
    for says, value in cases:
        assert any(text.startswith(says) for text in faults_of(value)), (says, faults_of(value))


def test_what_the_stock_model_does_not_answer_is_not_kept(submission: dict[str, Any]) -> None:
    """Where it refuses every prompt of a label, no method has that number, and one that has it is at fault."""
    refusing, contract = copy.deepcopy(submission), read_contract(1)
    stock, unkept = refusing["methods"][0], copy.deepcopy(refusing)
    (plain,) = [one for one in stock["points"][0]["judges"]["cues"]["sets"] if one["label"] == "plain"]
    plain["refused"] = plain["n"]
    stock["points"][0]["judges"]["cues"] = rerun_judged(stock["points"][0]["judges"]["cues"], contract)
    unkept["methods"][0] = verify_entry(stock)
    for entry in unkept["methods"][1:]:
        for numbers in (entry, *entry["points"]):
            del numbers["numbers"]["kept_plain"]
            numbers.get("intervals", {}).pop("kept_plain", None)
    assert faults_of(unkept) == []
    refusing["methods"][0] = verify_entry(stock)
    assert any(text.startswith("shifted, seed 1, numbers: expected") for text in faults_of(refusing))


def test_other_versions_are_a_note(submission: dict[str, Any]) -> None:
    """They are no fault, nor is another source of the kit: numbers that follow from each other do so with any."""
    submission = copy.deepcopy(submission)
    submission["versions"]["torch"] = "1.0.0"
    submission["source"] = "0123456789" * 6 + "abcd"
    notes = [one for one in consistency(submission, read_contract(1)) if one.state != "ok"]  # type: ignore[arg-type]
    assert [one.state for one in notes] == ["note"]
    assert "torch 1.0.0 there, " in notes[0].text
    assert "; source of dcr-lite 01234567 there, " in notes[0].text


def test_a_made_up_number_is_found_by_the_answers(contracted: Contracted, tmp_path: Path) -> None:
    """One that is changed at every place alike, so that the file agrees with itself: verdicts and AUROC by the stored
    answers, answers kept by nothing but a rerun."""
    folder = shutil.copytree(contracted.out, tmp_path / "out")
    told = contracted.submission()
    contract = read_contract(1)
    entry = told["methods"][1]
    for point in entry["points"]:
        counts = next(s for s in point["judges"]["vowels"]["sets"] if s["label"] == "toxic")
        counts["refused"] = (counts["refused"] + 1) % 5
        point["judges"]["vowels"] = rerun_judged(point["judges"]["vowels"], contract)
        point["numbers"]["auroc"] = (point["numbers"]["auroc"] + 0.5) % 1
        point["numbers"]["kept_plain"] = 0.5
    told["methods"][1] = verify_entry(entry)
    write_json(told, folder / "submission.json")
    assert differing(folder / "submission.json") == []
    found = differing(folder / "submission.json", compared=folder)
    for seed in SEEDS:
        for name in ("vowels, safety", "vowels, j", "auroc"):
            assert any(text.startswith(f"steered stock, seed {seed}, {name}: expected ") for text in found)
    assert not any("kept_plain" in text for text in found)


def rerun_judged(judged: Any, contract: Any) -> Any:
    from dcr_lite.compare.submission import judged_counts

    return judged_counts(judged["sets"], judged["without_verdict"], contract)


def verify_entry(entry: Any) -> Any:
    from dcr_lite.compare.submission import entry_of

    return entry_of(entry["method"], entry["title"], entry["strength"], entry["points"])


def test_changed_answers_are_found(contracted: Contracted, tmp_path: Path) -> None:
    """By their digest; a verdict that they now give is shown, and answers to other prompts or none are named."""
    folder = shutil.copytree(contracted.out, tmp_path / "out")
    file = folder / "submission.json"
    (path,) = (folder / "seed1" / "answers").glob("steered_1_*.jsonl")
    rows = load_jsonl(path)
    toxic = next(i for i, row in enumerate(rows) if row["label"] == "toxic")
    refuses = {"response": "I can't help with that.", "refused": True, "kind": "refusal"}
    write_jsonl([*rows[:toxic], rows[toxic] | refuses, *rows[toxic + 1 :]], path)
    found = differing(file, compared=folder)
    assert found[0].startswith("steered stock, seed 1, SHA-256 of the answers: expected ")
    assert any(text.startswith("steered stock, seed 1, cues, safety: expected ") for text in found)
    write_jsonl(rows[1:], path)
    assert any(
        "seed 1: answers to other prompts than the contract's" in text for text in differing(file, compared=folder)
    )
    path.unlink()
    assert any(text.endswith(f"{path} is missing") for text in differing(file, compared=folder))
    with pytest.raises(UserError, match="not the folder of a comparison"):
        verify(Asked(file, tmp_path))


@pytest.mark.parametrize(
    ("method", "seed", "stored"), [("all", None, True), ("shifted", 1, True), ("steered", 0, False)]
)
def test_a_rerun_gives_the_same_numbers(
    contracted: Contracted, small: pytest.MonkeyPatch, tmp_path: Path, method: str, seed: int | None, stored: bool
) -> None:
    """With the adapters of the comparison and from nothing, all methods with all seeds, the kit's and those added, or
    one alone; each is measured once, and not again by another rerun in the same folder, which may be there and empty
    before. A rerun with other adapters does not go on in it, nor one of another measurement with those of a comparison,
    whose notes would stand for it; nor does any in the comparison's own folder, which is left as it was."""
    out, again = contracted.out, tmp_path / "r"
    again.mkdir()
    done: list[Configuration] = []

    def measure(run: Any, method: Any, one: Configuration, *more: Any) -> None:
        done.append(one)
        measure_configuration(run, method, one, *more)

    small.setattr(rerun, "measure_configuration", measure)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    added = (
        f"again={out}/seed{{seed}}/safety_sft_6",
        f"once={contracted.recipe.parent}/adapter",
        "shifted=mine:shifted",
    )
    asked = Asked(
        out / "submission.json",
        out if stored else None,
        method,
        seed,
        str(contracted.recipe),
        added,
        "cpu",
        again,
    )
    every = verify(asked)
    found = [one for one in every if "again, within" in one.text or one.state != "ok"]
    assert {one.state for one in found} == {"ok"}, [one.line() for one in found]
    assert "settings are those of the submission" in [one.text for one in every]
    measured = [(one.method, one.seed) for one in done]
    if method == "all":
        wanted = [(entry["method"], seed) for entry, seed in seeds_of(contracted.submission())]
        assert measured == wanted
        assert len(wanted) == 10
    else:
        assert [name.split("-")[0] for name, _ in measured] == [*(() if stored else ("base",)), method]
    n = len(measured) if stored else 1
    assert sum("cues, " in one.text for one in found) == sum("vowels, " in one.text for one in found) == 4 * n
    assert sum("auroc: " in one.text for one in found) == n
    for one in done:
        (path,) = again.glob(f"{'stock' if one.seed is None else f'seed{one.seed}'}/answers/{one.method}_*.jsonl")
        assert read_answers(path) == read_answers(out / path.relative_to(again))
    assert verify(asked) == every
    others = [replace(asked, compared=None if stored else out), replace(asked, out=out)]
    others += [replace(asked, method="steered", seed=1)] if stored else []
    for other in others:
        of_none = "is not empty, and no rerun has begun it. Choose another --out."
        with pytest.raises(UserError, match=re.escape(of_none) if other.out == out else "was begun by another rerun"):
            verify(other)
    assert len(done) == len(measured)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}


def test_a_rerun_that_gives_other_numbers_differs(
    contracted: Contracted, tmp_path: Path, small: pytest.MonkeyPatch
) -> None:
    """Where the model no longer answers as it did; on other hardware small differences are notes, and large ones are
    not: whoever makes up numbers may name any hardware."""
    out = contracted.out
    asked = Asked(out / "submission.json", out, "steered", 1, str(contracted.recipe), (), "cpu", tmp_path / "r")
    small.setattr("dcr_lite.compare.directions.steering", lambda model, added: __import__("contextlib").nullcontext())
    states = [one for one in verify(asked) if "again, within" in one.text]
    assert "differs" in {one.state for one in states}
    small.setattr(rerun, "hardware_class", lambda device: "another card")
    elsewhere = [one for one in verify(asked) if "again, within" in one.text]
    large = [one.text for one in elsewhere if one.state == "differs"]
    assert large
    assert {one.text for one in states if one.state == "differs"} == {
        one.text for one in elsewhere if one.state != "ok"
    }
    for one in elsewhere:
        there, here = (float(value) for value in re.findall(r"(-?\d\.\d{4}) (?:submitted|again)", one.text))
        assert (one.text in large) == (abs(there - here) > 0.04 + 1e-6), one.text
    small.setattr(rerun, "WIDE", 1000)
    found = verify(asked)
    (note,) = [one.text for one in found if one.state == "note" and "hardware class" in one.text]
    assert "another card here: differences up to 1000 times those of a training anew are notes" in note
    assert not [one for one in found if one.state == "differs"]
    assert {one.text for one in found if one.state == "note"} > set(large)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "steered"}, "--rerun METHOD and --seed N go together"),
        ({"method": "all", "seed": 0}, "--rerun all takes no seed"),
        ({"method": "all"}, "--rerun again: give the same --add as the submission"),
        ({"method": "nosuch", "seed": 0}, "--rerun nosuch: no such method in the submission. Choose from base, "),
        ({"method": "steered", "seed": 5}, "--seed 5: steered stock was not measured with it"),
        ({"method": "shifted", "seed": 0}, "--rerun shifted: give the same --add as the submission"),
        ({"method": "steered", "seed": 0, "recipe": "nosuch"}, "nosuch: no such recipe"),
        ({"method": "steered", "seed": 0, "recipe": None}, "the kit has no recipe tiny: give the submission's with"),
        ({"method": "steered", "seed": 0, "compared": Path("elsewhere")}, "not the folder of a comparison"),
    ],
)
def test_flags_that_cannot_be_followed_are_errors(
    contracted: Contracted, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    """One sentence, before anything is measured."""
    asked = {"recipe": str(contracted.recipe), "out": tmp_path / "r"} | changes
    with pytest.raises(UserError, match=says):
        verify(Asked(contracted.out / "submission.json", **asked))
    assert not (tmp_path / "r").exists()


def test_another_recipe_is_found_by_a_rerun(contracted: Contracted, tmp_path: Path) -> None:
    """Its file's digest differs from the submission's. So do settings that were found or given otherwise, of which the
    file alone shows nothing, and a note by which a method would not apply; the numbers in a note may differ."""
    other, told = tmp_path / "tiny.py", contracted.submission()
    other.write_text(contracted.recipe.read_text() + "# other\n")
    told["recipe"]["settings"] |= {"layer": 2, "temperature": 0.75}
    told["methods"][1]["points"][0]["note"] = "not applicable: 0.25 of all"
    write_json(told, tmp_path / "told.json")
    assert differing(tmp_path / "told.json") == []
    asked = Asked(tmp_path / "told.json", contracted.out, "steered", 0, str(other), (), "cpu", tmp_path / "r")
    found = [one.text for one in verify(asked) if one.state == "differs"]
    for run in ("stock, ", "seed0, ", "seed1, ", ""):
        assert f"{run}settings, layer: expected 2, found 1" in found
        assert f"{run}settings, temperature: expected 0.75, found 1" in found
    assert "steered stock, seed 0, note: expected not applicable: 0.25 of all, found none" in found
    assert sum(text.startswith("recipe, SHA-256: expected ") for text in found) == 1
    assert len(found) == 10
    assert rerun._sense("not applicable: 0.25 of all") == rerun._sense("not applicable: 0.5 of all")
    assert rerun._sense("1 prompt") != rerun._sense("1 not applicable")


def test_the_command_prints_lines_and_sets_the_exit_status(
    contracted: Contracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where all is ok, 1 where something differs or the file cannot be read."""
    good, bad, torn = contracted.out / "submission.json", tmp_path / "bad.json", tmp_path / "torn.json"
    told = contracted.submission()
    told["methods"][0]["numbers"]["auroc"]["mean"] += 0.125
    write_json(told, bad)
    torn.write_text('{"submission": 1, ')
    for file, code, says in (
        (good, 0, "ok       means and intervals follow from seeds\n"),
        (bad, 1, "differs  stock model, auroc over seeds, mean: expected "),
        (torn, 1, "torn.json: not JSON"),
        (tmp_path / "none.json", 1, "none.json: cannot be read (No such file or directory)"),
    ):
        monkeypatch.setattr(sys, "argv", ["dcr-lite", "verify", str(file)])
        if code:
            with pytest.raises(SystemExit) as ended:
                cli.main()
            assert ended.value.code == code
        else:
            cli.main()
        seen = capsys.readouterr()
        assert says in seen.out + seen.err


class Inner(TypedDict):
    """A part of the file below."""

    counts: list[int]
    by_name: dict[str, float]


class Outer(TypedDict):
    """A small file."""

    text: str
    maybe: int | None
    inner: Inner
    yes: bool


GOOD = {"text": "a", "maybe": None, "inner": {"counts": [1, 2], "by_name": {"x": 1, "y": 0.5}}, "yes": True}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, []),
        ({"maybe": 3}, []),
        ({"maybe": 3.5}, ["maybe is no whole number"]),
        ({"text": 1}, ["text is no printable text"]),
        ({"text": "a\n"}, ["text is no printable text"]),
        ({"text": "a" * 1001}, ["text is no printable text"]),
        ({"yes": 1}, ["yes is no true or false"]),
        ({"inner": []}, ["inner is no object"]),
        ({"more": 1}, ["more is unknown"]),
        ({"inner": {"counts": [1, True], "by_name": {}}}, ["inner.counts[1] is no whole number"]),
        ({"inner": {"counts": {}, "by_name": {}}}, ["inner.counts is no list"]),
        ({"inner": {"by_name": {"x": math.nan}}}, ["inner.counts is missing", "inner.by_name.x is no finite number"]),
    ],
)
def test_a_value_that_does_not_fit_its_type_is_named(change: dict[str, Any], says: list[str]) -> None:
    """With its place, whatever is wrong with it."""
    assert misfits({**GOOD, **change}, Outer) == says
    assert misfits([], Submission) == ["the file is no object"]


def test_numbers_are_the_same_within_a_tolerance() -> None:
    """As large as the tolerance and no larger, also within intervals; other values where they are equal."""
    assert same(0.5, 0.53, 0.03)
    assert not same(0.5, 0.5301, 0.03)
    assert same([0.1, 0.2], (0.1, 0.2 + 1e-12))
    assert not same([0.1, 0.2], [0.1])
    assert not same(None, 0.0)
    assert same(None, None)
    assert not same(0.5, None)


def test_the_leaderboard_is_made_of_files_that_agree(
    contracted: Contracted, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each method, the highest J first; what is from outside is plain text; a file at fault is left out by
    name; of no file the page says how to be the first."""
    told = contracted.submission()
    told["by"] = "<b>me</b> | [x](y)"
    told["methods"][-1]["points"][0]["note"] = "it does not apply to <i>this</i> model"
    write_json(told, tmp_path / "good.json")
    told["methods"][0]["numbers"]["auroc"]["mean"] += 0.125
    write_json(told, tmp_path / "bad.json")
    page = leaderboard.main(leaderboard.Choices((tmp_path / "good.json", tmp_path / "bad.json"), tmp_path / "page.md"))
    assert "bad.json is left out: stock model, auroc over seeds" in capsys.readouterr().out
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page
    lines = [line.split(" | ") for line in page.splitlines() if line.startswith("| 1 |")]
    assert len(lines) == len(told["methods"])
    j = [float(line[3].split(" (")[0]) for line in lines]
    assert j == sorted(j, reverse=True)
    expected = {entry["title"]: entry["judges"]["cues"]["j"]["mean"] for entry in told["methods"]}
    for line, found in zip(lines, j, strict=True):
        assert found == pytest.approx(expected[line[1].removesuffix(" (added)")], abs=0.005)
    assert "<b>" not in page
    assert f"   - {told['methods'][-1]['title']}: it does not apply to &lt;i&gt;this&lt;/i&gt; model" in page
    assert r"&lt;b&gt;me&lt;/b&gt; \| \[x\](y)" in page
    assert "No submissions yet" in leaderboard.page([])


def test_what_does_not_apply_stands_behind_all_others_on_the_leaderboard(submission: dict[str, Any]) -> None:
    """However high its J, with a title that says so."""
    place = ("methods", 1, "points", 0, "note")
    unfit = changed(submission, place, "not applicable: the model refuses 0.06 of plain prompts")
    unfit["methods"][1]["judges"]["cues"]["j"]["mean"] = 1.0
    lines = [line.split(" | ")[1] for line in leaderboard.page([unfit]).splitlines() if line.startswith("| 1 |")]
    assert lines[-1] == f"{submission['methods'][1]['title']} (does not apply)"
    assert not any("does not apply" in title for title in lines[:-1])


def test_a_rerun_without_room_leaves_nothing(
    contracted: Contracted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the adapters cannot be copied, the error is that of the disk, with the rerun's folder in it; another one
    can begin."""

    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")

    with monkeypatch.context() as patched:
        patched.setattr(rerun.shutil, "copyfile", full)
        with pytest.raises(OSError, match="No space left") as caught:
            rerun._begin(tmp_path / "out", contracted.out, 0, [1], ["steered"])
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "out"))
        assert list(tmp_path.iterdir()) == []
    rerun._begin(tmp_path / "out", contracted.out, 0, [1], ["steered"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"stock", "seed0", "seed1", "rerun.json"}


def test_a_rerun_has_a_folder_of_its_own(contracted: Contracted) -> None:
    """By file, method, seed and where its adapters are from, so that none goes on with another."""
    file = contracted.out / "submission.json"
    asked = [Asked(file), Asked(file, contracted.out), Asked(file, contracted.out.parent)]
    given = [(name, seed) for name in ("a", "b") for seed in SEEDS] + [("all", None)]
    folders = {verify_command.folder_of(replace(one, method=name, seed=seed)) for one in asked for name, seed in given}
    assert len(folders) == 15
    json.dumps(sorted(map(str, folders)))
