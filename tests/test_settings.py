"""Settings keep what was given, whatever it equals; what was not given follows from the data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import small_settings
from small_runs import recipe_module, save_rows, write_rows

from dcr_lite.data import paper_data
from dcr_lite.errors import UserError
from dcr_lite.run import inputs
from dcr_lite.run.inputs import load_data, resolved
from dcr_lite.settings import SHIPPED_FILES, SIZES, Settings

RECIPES = Path(__file__).parent.parent / "recipes"
UNSET = dict.fromkeys(("instructions", "refusals", "baseline_refusals", *SHIPPED_FILES))


@pytest.fixture
def full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> paper_data.Files:
    """In place of the public sets: three small files."""
    rows = save_rows(tmp_path / "full")
    files = paper_data.Files(rows / "pairs.jsonl", rows / "instructions.jsonl", rows / "refusals.jsonl")
    monkeypatch.setattr(inputs, "full_data", lambda: files)
    return files


def settings_of_llama(**changes: Any) -> Settings:
    """Those of a recipe that begins with its base model, which trains on the full data."""
    return replace(recipe_module(RECIPES / "llama3_8b.py").SETTINGS, **{"from_base_model": True} | changes)


@given(size=st.sampled_from([7, 128, 560, 1_000, 20_000]), data=st.sampled_from(["shipped", "full"]))
def test_a_size_that_is_given_stays(size: int, data: Any) -> None:
    """Also where it equals the size of the other data set, which earlier releases took for not given."""
    for name in SIZES["full"]:
        given_one = settings_of_llama(data=data, **{name: size})
        assert given_one.sizes == SIZES[data] | {name: size}


def test_own_refusals_of_the_full_size_are_trained_on(tmp_path: Path) -> None:
    """--refusal-rows with 1,000 rows and --refusals 1000 trains on 1,000 refusals; 20,000 instructions likewise."""
    conversations = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(20_000)]
    argv = {
        "refusal_rows": write_rows(tmp_path / "mine.jsonl", conversations[:1_000]),
        "instruction_rows": write_rows(tmp_path / "general.jsonl", conversations),
        "refusals": 1_000, "instructions": 20_000,
    }  # fmt: skip
    chosen = resolved(settings_of_llama(data="shipped", run=tmp_path / "run", **argv))
    assert (chosen.sizes["refusals"], chosen.sizes["instructions"]) == (1_000, 20_000)
    assert chosen.files["refusal_rows"] == tmp_path / "mine.jsonl"


def test_sizes_that_are_not_given_follow_the_data(full: paper_data.Files) -> None:
    """The paper's numbers for the full data, those that SmolLM2 was measured with for the shipped rows."""
    assert resolved(settings_of_llama()).sizes == SIZES["full"]
    assert resolved(settings_of_llama(data="shipped")).sizes == SIZES["shipped"]


def test_own_rows_give_at_most_as_many_as_there_are(tmp_path: Path) -> None:
    """A file of the user's own with fewer rows than the usual number is used whole, for both methods."""
    rows = save_rows(tmp_path / "rows")
    chosen = resolved(
        small_settings("model", rows, tmp_path / "run", **UNSET | {"refusal_rows": rows / "refusals.jsonl"})
    )
    assert chosen.sizes == {"instructions": 560, "refusals": 6, "baseline_refusals": 6}


def test_files_that_are_given_come_before_those_of_the_data(full: paper_data.Files, tmp_path: Path) -> None:
    """Also the shipped file itself: with --data full it stays what was asked for."""
    shipped = SHIPPED_FILES["pairs"]
    assert resolved(settings_of_llama(pairs=shipped)).files["pairs"] == shipped
    assert resolved(settings_of_llama()).files == vars(full)
    assert resolved(settings_of_llama(data="shipped")).files == SHIPPED_FILES


def test_resolved_settings_stay_as_they_are(full: paper_data.Files) -> None:
    """A second time changes nothing, and every value is one of JSON's. How many of the shipped refusals stage 2 learns
    is still to be found then."""
    shipped = resolved(settings_of_llama(data="shipped"))
    assert shipped.refusals is None
    assert shipped.for_json()["refusals"] is None
    assert resolved(shipped) == shipped
    chosen = resolved(settings_of_llama())
    assert chosen.refusals == SIZES["full"]["refusals"]
    assert resolved(chosen) == chosen
    assert all(isinstance(value, (str, int, float, bool, list, type(None))) for value in chosen.for_json().values())


def test_no_file_to_measure_on_is_an_error(tmp_path: Path) -> None:
    """Before any work."""
    with pytest.raises(UserError, match="nothing to measure on"):
        load_data(small_settings("model", save_rows(tmp_path / "rows"), tmp_path / "run", evaluation=()))
