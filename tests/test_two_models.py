"""A run without stage 2 and without a baseline: stage 1 alone, measured beside the stock model."""

from pathlib import Path

import pytest
from recipe_runs import Finished, adapter, same
from small_runs import flags, run_here

from dcr_lite.diagnose.command import diagnose
from dcr_lite.errors import UserError
from dcr_lite.run import opening
from dcr_lite.run.discernment import Discernments

NOT_DONE = ("stage2", "safety_sft")


@pytest.fixture(scope="module")
def run(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    path = tmp_path_factory.mktemp("two") / "run"
    done = run_here(flags(tiny, rows, path, stage2="no", compare_with=[], contrastive_steps=4))
    assert (done.code, done.err) == (0, "")
    return Finished(path, done)


def test_what_is_not_asked_for_is_not_done(run: Finished) -> None:
    """No folder, no answers, no metrics, no seconds and no adapter in memory for stage 2 or the baseline; the weights
    of stage 1 are the adapter's."""
    assert not [name for name in NOT_DONE if (run.path / name).exists()]
    assert sorted(p.name for p in (run.path / "answers").iterdir()) == ["base.jsonl", "dcr.jsonl"]
    assert {row["stage"] for row in run.metrics} == {"stage1"}
    assert not set(NOT_DONE) & run.report["seconds"].keys()
    assert same(adapter(run.path, "stage1"), adapter(run.path))


def test_every_page_and_table_is_of_two_models(run: Finished) -> None:
    """The stock model before DCR, and not a word of safety SFT but among the settings."""
    assert list(run.report["methods"]) == ["base", "dcr"]
    readings = Discernments.load(run.path / "adapter")
    assert readings is not None
    assert set(readings.models) == {"base", "dcr"}
    page = (run.path / "report.md").read_text(encoding="utf-8")
    card = (run.path / "adapter" / "README.md").read_text(encoding="utf-8")
    for text in (page.split("## Settings")[0], card, run.seen.out.split("Evaluation")[-1]):
        assert "stock model" in text
        assert "safety SFT" not in text
        assert "stage 2" not in text
    assert "refusal_during_sft" not in page
    assert not (run.path / "refusal_during_sft.png").exists()


def test_a_diagnosis_compares_with_the_stock_model(run: Finished) -> None:
    """The states that there are, and the refusals that the stock model and DCR differ in."""
    found = diagnose(run.path, 2, 2)
    assert list(found["kernel"]) == list(found["separation"]) == ["stock", "stage1"]
    assert found["compared_with"] == "base"
    page = (run.path / "diagnosis" / "diagnosis.md").read_text(encoding="utf-8")
    assert "refused by stock model and answered by DCR" in page
    assert "refusal_during_sft" not in page
    assert "safety SFT" not in page


def test_a_baseline_that_was_not_trained_is_named(run: Finished) -> None:
    """Asked for later, the sentence says what to do; it does not say that the run is not finished."""
    with pytest.raises(UserError, match="--compare-with safety_sft"):
        opening.open_model(str(run.path), "safety_sft")
