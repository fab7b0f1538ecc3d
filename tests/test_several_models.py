"""Claims about benchmarks/several_models.py: a panel shows a model's own numbers, whichever file they come from."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import several_models
from matplotlib.figure import Figure

from dcr_lite.errors import UserError
from dcr_lite.run.recipes import find_recipe
from dcr_lite.settings import Settings

pytestmark = pytest.mark.usefixtures("pictures")


def entry(method: str, strength: float, compliance: float, safety: float) -> dict[str, Any]:
    numbers = {"compliance": compliance, "safety": safety}
    ends = {name: {"mean": x, "ci95": [x - 0.1, x + 0.1], "n": 3} for name, x in numbers.items()}
    return {"method": method, "strength": strength, "numbers": ends}


def test_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first strength of each method is its large point, further ones are joined to it, in the order of the
    panels; and what trade_off.py calls stage1 is called DCR."""
    compared = [entry("base", 0, 0.9, 0.1), entry("dcr", 0.25, 0.8, 0.7)]
    steps = [entry("base", 0, 0.5, 0.6), entry("stage1", 0.0, 0.7, 0.9), entry("stage1", 0.1, 0.8, 0.85)]
    one, other = tmp_path / "comparison.json", tmp_path / "trade_off.json"
    one.write_text(json.dumps({"methods": compared, "curve": {"points": [entry("dcr", 1.0, 0.95, 0.3)]}}))
    other.write_text(json.dumps(steps))
    drawn: list[Figure] = []
    save = several_models.save
    monkeypatch.setattr(several_models, "save", lambda figure, path: (drawn.append(figure), save(figure, path)))
    several_models.main(several_models.Choices((f"A=B={one}", f"C={other}"), out=tmp_path))
    assert (tmp_path / "models.png").exists()
    titles = [axes.get_title(loc="left") for axes in drawn[0].axes]
    large = [
        {
            str(line.get_label()): [*zip(*line.get_data(), strict=True)]
            for line in axes.lines
            if line.get_markersize() == 9
        }
        for axes in drawn[0].axes
    ]
    assert titles == ["A=B", "C"]
    assert large == [
        {"stock model": [(0.9, 0.1)], "DCR": [(0.8, 0.7)]},
        {"stock model": [(0.5, 0.6)], "DCR": [(0.7, 0.9)]},
    ]
    along = [[*zip(*line.get_data(), strict=True)] for axes in drawn[0].axes for line in axes.lines]
    assert [(0.8, 0.7), (0.95, 0.3)] in along
    assert [(0.7, 0.9), (0.8, 0.85)] in along
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["stock model", "DCR"]


def test_models_that_are_not_measured_yet_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe by its name and any other model with settings that are found, each in a folder of its own, with the same
    seeds, prompts and methods and no curve; the tables stand under the titles. A file is taken as it is."""
    asked: list[tuple[Any, ...]] = []

    def compared(
        recipe: Any, seeds: Any, prompts: Any, rows: Any, questions: Any, curve: Any, out: Path, only: Any
    ) -> dict[str, Any]:
        asked.append((recipe, seeds, prompts, rows, questions, curve, out, only))
        out.mkdir(parents=True)
        methods = [entry("base", 0, 0.9, 0.1), entry("dcr", 0.25, 0.8, 0.7)]
        (out / "comparison.json").write_text(json.dumps({"methods": methods, "curve": {"points": []}}))
        return {"failed": failed}

    failed: list[dict[str, Any]] = []
    monkeypatch.setattr(several_models, "compare", compared)
    (tmp_path / "old.json").write_text(json.dumps([entry("base", 0, 0.5, 0.6), entry("stage1", 0.0, 0.7, 0.9)]))
    named = ("One 1B=smollm2_135m", "Other=some/folder", f"Old={tmp_path / 'old.json'}")
    same = {"seeds": (3,), "prompts": (Path("p.jsonl"),), "rows": 5, "methods": ("dcr",)}
    several_models.main(several_models.Choices(named, **same, out=tmp_path))
    (recipe, *of_first), (model, *of_second) = asked
    assert recipe == find_recipe("smollm2_135m")
    assert model == Settings.of_model("some/folder")
    assert of_first == [(3,), (Path("p.jsonl"),), 5, None, (), tmp_path / "one_1b", ("dcr",)]
    assert of_second[:-2] == of_first[:-2]
    asked.clear()
    several_models.main(several_models.Choices(named, **same, seeds_of=("Other=0,7",), out=tmp_path / "again"))
    assert [seeds for _, seeds, *_ in asked] == [(3,), (0, 7)]
    for wrong in ("Nobody=0", "Other=", "Other=a", "Other"):
        with pytest.raises(UserError, match="give TITLE=SEED,SEED with a title of --models"):
            several_models.main(several_models.Choices(named, **same, seeds_of=(wrong,), out=tmp_path))
    assert len(asked) == 2
    failed.append({"method": "dcr"})
    with pytest.raises(UserError, match="1 of the models could not be measured"):
        several_models.main(several_models.Choices(named, **same, out=tmp_path / "failing"))
    assert of_second[-2:] == [tmp_path / "other", ("dcr",)]
    page = (tmp_path / "models.md").read_text()
    assert re.findall("^## (.*)$", page, re.M) == ["One 1B", "Other", "Old"]
    assert "| DCR | **0.70 ±0.10** | **0.90 ±0.10** |" in page


def test_a_model_without_a_title_is_an_error() -> None:
    """In a sentence, before anything is measured."""
    for wrong in ("smollm2_135m", "=smollm2_135m", "A="):
        with pytest.raises(UserError, match=f"--models '{wrong}': give TITLE=MODEL"):
            several_models.main(several_models.Choices(("A=smollm2_135m", wrong)))


@pytest.mark.parametrize(
    ("panel", "content", "message"),
    [
        ("comparison.json", '{"judge": 1}', "is of something else"),
        ("comparison.json", '[{"method": "mine", "numbers": {}}]', "is of something else"),
        ("comparison.json", "[]", "is of something else"),
        ("comparison.json", "{", "is of something else"),
        ("missing.json", "[]", "missing.json: No such file"),
    ],
)
def test_bad_panels(panel: str, content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "comparison.json").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        several_models.read_panel("A", Path(panel))
