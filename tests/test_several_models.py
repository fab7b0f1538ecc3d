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
from dcr_lite.settings import HELD_OUT_FILES, Settings

pytestmark = pytest.mark.usefixtures("pictures")


def entry(method: str, strength: float, compliance: float, safety: float) -> dict[str, Any]:
    numbers = {"compliance": compliance, "safety": safety}
    ends = {name: {"mean": x, "ci95": [x - 0.1, x + 0.1], "n": 3} for name, x in numbers.items()}
    return {"method": method, "strength": strength, "applies": True, "numbers": ends}


def test_panels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first strength of each method is its large point, further ones are joined to it, in the order of the
    panels; what trade_off.py calls stage1 is called DCR, and its variants with a stage 2 are left out."""
    compared = [entry("base", 0, 0.9, 0.1), entry("dcr", 0.25, 0.8, 0.7)]
    steps = [entry("base", 0, 0.5, 0.6), entry("stage1", 0.0, 0.7, 0.9), entry("stage1", 0.1, 0.8, 0.85)]
    steps += [entry("own", 0.0, 0.6, 0.7), entry("given", 0.0, 0.3, 0.9)]
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
        recipe: Any,
        seeds: Any,
        prompts: Any,
        rows: Any,
        questions: Any,
        curve: Any,
        out: Path,
        only: Any,
        seeds_of: Any,
    ) -> dict[str, Any]:
        asked.append((recipe, seeds, prompts, rows, questions, curve, out, only))
        assert seeds_of == {}
        out.mkdir(parents=True)
        methods = [entry("base", 0, 0.9, 0.1), entry("dcr", 0.25, 0.8, 0.7)]
        (out / "comparison.json").write_text(json.dumps({"methods": methods, "curve": {"points": []}}))
        return {"failed": failed}

    failed: list[dict[str, Any]] = []
    monkeypatch.setattr(several_models, "compare", compared)
    monkeypatch.setattr(several_models, "seconds_ahead", lambda *args: 0.0)
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
    for wrong in ("Nobody=0", "Other=", "Other=a", "Other", "Other:surgical=0", "Nobody:dcr=0", "Other:dcr="):
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


def test_one_command_measures_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds are a model's and a method's; the hours of the whole are said before anything is measured; held-out prompts
    have a report, tables and a picture of their own; a model, or a method of one, that fails leaves the page of the
    others, and is an error at the end."""
    asked: list[tuple[Any, ...]] = []

    def compared(*args: Any, only: Any, seeds_of: Any) -> dict[str, Any]:
        _, seeds, prompts, *_, out = args
        said.append(capsys.readouterr().out)
        asked.append((out.name, prompts, seeds, seeds_of))
        if out.name == "broken":
            raise UserError("broken is no chat model")
        out.mkdir(parents=True, exist_ok=True)
        methods = [entry("base", 0, 0.9, 0.1), entry("dcr", 0.25, 0.8, 0.7), entry("safety_sft", 6, 0.5, 0.7)]
        methods[1]["numbers"]["compliance"]["n"] = 5
        for name in ("comparison.md", "trade_off.png"):
            (out / name).write_text(str(prompts))
        (out / "comparison.json").write_text(json.dumps({"methods": methods, "curve": {"points": []}}))
        return {"failed": [{"method": "surgical"}] if out.name == "first" else []}

    def ahead(*args: Any) -> float:
        estimated.append(args[2])
        return 3600.0

    estimated: list[Any] = []
    monkeypatch.setattr(several_models, "compare", compared)
    monkeypatch.setattr(several_models, "seconds_ahead", ahead)
    prompts, said = (Path("p.jsonl"),), list[str]()
    choices = several_models.Choices(
        ("First=a", "Broken=b", "Last=c"), prompts=prompts, held_out=True, out=tmp_path, seeds=(0,),
        seeds_of=("Last=3", "Last:dcr=3,4,5", "Last:safety_sft=3,4"),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"(?s)First: 1 of the models .*Broken: broken is no chat model"):
        several_models.main(choices)
    assert said[0] == "3 models to compare: about 3.0 hours in all\n"
    assert estimated == [[HELD_OUT_FILES, prompts]] * 3
    own = {"dcr": (3, 4, 5), "safety_sft": (3, 4)}
    assert asked[-2:] == [("last", HELD_OUT_FILES, (3,), own), ("last", prompts, (3,), own)]
    assert asked[0] == ("first", HELD_OUT_FILES, (0,), {})
    for name in ("comparison.md", "trade_off.png"):
        assert (tmp_path / "last" / name).read_text() == str(prompts)
        assert (tmp_path / "last" / "held_out" / name).read_text() == str(HELD_OUT_FILES)
    page = (tmp_path / "models.md").read_text()
    headings = ["First", "Last", "First, held-out prompts", "Last, held-out prompts"]
    assert re.findall("^## (.*)$", page, re.M) == headings
    assert "| DCR, 5 seeds |" in page
    assert "| safety SFT alone, 3 seeds |" in page
    assert "| stock model |" in page
    assert (tmp_path / "models.png").exists()
    assert (tmp_path / "models_held_out.png").exists()


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
