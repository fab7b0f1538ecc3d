"""Claims about what benchmarks keep: a result is only taken where its settings, prompts and rows are the same; and
about the page that one of them has written."""

from dataclasses import replace
from pathlib import Path

import _choices
import leaderboard
import pytest
from _kept import digest_of, require_same
from recipe_runs import small_settings

from dcr_lite.errors import UserError
from dcr_lite.files import load_json


def test_a_result_of_other_work_is_not_taken(tmp_path: Path) -> None:
    """Nor one beside which nothing is noted; the run folder may lie elsewhere, and files count by what they hold."""
    file, result = tmp_path / "rows.jsonl", tmp_path / "result.json"
    file.write_text("a")
    settings = small_settings("model", tmp_path, tmp_path / "run")
    for _ in range(2):  # before there is a result, and behind it
        require_same(result, settings, file, ["prompt"])
        result.write_text("{}")
    require_same(result, replace(settings, run=tmp_path / "moved"), file, ["prompt"])
    for other in ((replace(settings, layer=2), file, ["prompt"]), (settings, file, ["another"])):
        with pytest.raises(UserError, match=r"result\.json is of other settings, prompts or rows"):
            require_same(result, *other)
    file.write_text("b")
    with pytest.raises(UserError, match=r"Its digest is in .*result\.json\.digest"):
        require_same(result, settings, file, ["prompt"])
    (tmp_path / "result.json.digest").unlink()
    with pytest.raises(UserError, match=r"There is no .*result\.json\.digest beside it"):
        require_same(result, settings, file, ["prompt"])


def test_a_variant_of_other_settings_is_not_taken(tmp_path: Path) -> None:
    """A line of a file of variants has its digest; one of an earlier version has none."""
    choices, settings = _choices.Choices(json=tmp_path / "found.json"), small_settings("model", tmp_path, tmp_path)
    of, other = digest_of(settings), digest_of(replace(settings, rank=8))
    row = choices.store("default", 0, of, {"auroc": 0.5})
    assert choices.stored("default", 0, of) == row
    assert choices.stored("default", 1, other) is None
    with pytest.raises(UserError, match="default, seed 0, is of other settings"):
        choices.stored("default", 0, other)


def test_the_shipped_leaderboard_is_that_of_the_shipped_submissions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """None of them is at fault, and the page has not been written by hand."""
    docs = Path(leaderboard.__file__).parents[1] / "docs"
    files = tuple(sorted((docs / "submissions").glob("*.json")))
    page = leaderboard.main(leaderboard.Choices(files, tmp_path / "page.md"))
    assert capsys.readouterr().out == ""
    assert page.count("\n| 1 |") == len(load_json(files[0])["methods"])
    assert page == (docs / "leaderboard.md").read_text(encoding="utf-8")
