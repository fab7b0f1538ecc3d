"""Claims about benchmarks/pair_curve.py: what it trains on and reads, and that a stopped one goes on."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pair_curve
import pytest
from recipe_runs import small_settings
from safetensors.torch import load_file
from small_runs import write_rows

from dcr_lite.data.rows import read_pairs, read_prompts
from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import ContrastiveRefinement
from dcr_lite.model import adapters
from dcr_lite.names import DCR
from dcr_lite.run import inputs
from dcr_lite.run.recipes import find_recipe, settings_of
from dcr_lite.settings import FOUND

pytestmark = pytest.mark.usefixtures("pictures", "held_out")


@pytest.fixture
def held_out(rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few held-out pairs, of two manners, and some behind a message."""
    manners = [
        {"toxic": f"Do I {verb} a man?", "seemingly_toxic": f"Do I {verb} a drum?", "kind": kind}
        for kind in ("one_word_twists", "long_scenes") for verb in ("beat", "hit", "strike")
    ]  # fmt: skip
    before = [{"role": "system", "content": "You mend drums."}]
    contexts = [{**row, "kind": "behind_system_message", "before": before} for row in manners[:2]]
    files = (
        rows / "held_out.jsonl",
        write_rows(tmp_path / "manners.jsonl", manners),
        write_rows(tmp_path / "contexts.jsonl", contexts),
    )
    monkeypatch.setattr(pair_curve, "HELD_OUT", dict(zip(pair_curve.HELD_OUT, files, strict=True)))


def test_pair_curve(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pairs, all of them, and all with another file's, of which a part is read and not trained on; stopped
    before a step it goes on to the same numbers."""
    settings = small_settings(tiny, rows, tmp_path / "unused", contrastive_steps=3, stage2="no")
    more, prompts = (rows / "held_out.jsonl",), (rows / "plain.jsonl", rows / "held_out.jsonl")

    def curve(out: str) -> list[dict[str, Any]]:
        return pair_curve.main(
            pair_curve.Choices(settings, (4, -1), more, held_back=2, prompts=prompts, out=tmp_path / out)
        )

    def numbers(results: list[dict[str, Any]]) -> list[tuple[str, Any]]:
        return [(row["pairs"], row["sets"]) for row in results]

    undisturbed = curve("undisturbed")
    assert [row["pairs"] for row in undisturbed] == ["4", "all", "all and more"]
    few, every, both = (row["trained"] for row in undisturbed)
    assert few == 4 < every < both
    names = list(undisturbed[0]["sets"])
    assert names[:3] == ["development pairs", "held_out, held back", "held-out pairs"]
    assert names[3:5] == ["held-out manners", "held-out contexts"]
    assert names[5:8] == ["manner: one word twists", "manner: long scenes", "manner: behind system message"]
    assert names[-1] == "held_out"  # of --prompts, not what is held back of the file of that name
    assert (tmp_path / "undisturbed" / "pair_curve.png").exists()
    table = (tmp_path / "undisturbed" / "pair_curve.md").read_text(encoding="utf-8").splitlines()
    assert table[2] == "| AUROC | 4 | all | all and more |"
    assert table[-1].endswith(f" *all*: {every} pairs. *all and more*: {both} pairs.")

    def stopping(stage: ContrastiveRefinement, number: int) -> dict[str, Any]:
        if number == 2:
            raise KeyboardInterrupt
        return observe(stage, number)

    observe = ContrastiveRefinement.observe
    monkeypatch.setattr(ContrastiveRefinement, "observe", stopping)
    with pytest.raises(KeyboardInterrupt):
        curve("stopped")
    monkeypatch.setattr(ContrastiveRefinement, "observe", observe)
    assert (tmp_path / "stopped" / "seed0" / "4" / "checkpoint.pt").exists()
    assert numbers(curve("stopped")) == numbers(undisturbed)
    settings = replace(settings, temperature=0.5)
    with pytest.raises(UserError, match=r"read\.json is of other settings, prompts or rows"):
        curve("stopped")


def test_no_focus_word_that_is_read_is_trained_on(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Neither in the pairs nor in any further file: the words of development pairs and of what is held back of each,
    whatever their case. A row is read once, however many sets it is in, and each row by itself."""
    pair = {"toxic": "Can I {} a man?", "seemingly_toxic": "Can I {} a rug?"}

    def more(name: str, *words: str) -> Path:
        some = [{side: text.format(word) for side, text in pair.items()} | {"focus": word} for word in words]
        return write_rows(tmp_path / f"{name}.jsonl", some)

    files = (
        more("first", "Kill", "beat", "wash", "dust", "hit"),
        more("second", "beat", "wash", "dust", "hit", "shoot"),
    )
    settings = replace(inputs.resolved(small_settings(tiny, rows, tmp_path)), seed=3)
    data = inputs.load_data(settings)
    prompts = (rows / "held_out.jsonl", rows / "plain.jsonl")
    choices = pair_curve.Choices(settings, more=files, held_back=2, prompts=prompts)
    material = pair_curve.Material.read(choices, data, 3)
    read = {row.prompt for name in ("development pairs", "first, held back", "second, held back")
            for row in material.unseen[name]}  # fmt: skip
    all_pairs = [one for file in (settings.files["pairs"], *files) for one in read_pairs(file)]
    words = {one.focus.casefold() for one in all_pairs if one.toxic in read}
    assert len(words) > 3
    trained = material.training + material.more
    assert {one.focus.casefold() for one in trained} == {one.focus.casefold() for one in all_pairs} - words
    assert len(trained) > 0
    distinct = Counter(row.prompt for row in pair_curve._distinct(material))
    there = Counter(row.prompt for file in prompts for row in read_prompts(file))
    assert all(distinct[text] >= times for text, times in there.items())


def test_openings_are_those_of_what_a_run_ends_in(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a stage 2 half of stage 1 and a dial at 0, fitted to the point's own pairs; with one, what that trains
    above L. The states are those of the whole of stage 1."""
    fitted: list[int] = []
    fit = pair_curve.fit_dial

    def fitting(model: Any, adapter: str, layer: int, pairs: list[Any], *rest: Any) -> Any:
        weights.append({name: weight.clone() for name, weight in adapters.adapter_weights(model, DCR).items()})
        fitted.append(len(pairs))
        return fit(model, adapter, layer, pairs, *rest)

    monkeypatch.setattr(pair_curve, "fit_dial", fitting)
    weights: list[dict[str, Any]] = []
    results = {}
    for stage2, share in (("no", 0.5), ("yes", 1.0)):
        changes: dict[str, Any] = {"stage2": stage2, "contrastive_share": share, "dial": "balanced"}
        settings = small_settings(tiny, rows, tmp_path / "unused", contrastive_steps=3, **changes)
        choices = pair_curve.Choices(settings, (4,), out=tmp_path / stage2)
        (results[stage2],) = pair_curve.main(choices)
    assert fitted == [4, 4]
    whole = load_file(tmp_path / "no" / "seed0" / "4" / "stage1" / "adapter_model.safetensors")
    (half, both), b = weights, [name for name in weights[0] if "lora_B" in name]
    trained = load_file(tmp_path / "yes" / "seed0" / "4" / "stage1" / "adapter_model.safetensors")
    assert all(
        half[name].mul(2).allclose(both[name]) for name in b if ".layers.3." not in name and ".layers.2." not in name
    )
    assert any(both[name].any() and not half[name].any() for name in b if ".layers.3." in name)
    assert all(weight.equal(trained[name]) for name, weight in whole.items())
    states = [{name: read["states"] for name, read in one["sets"].items()} for one in results.values()]
    assert states[0] == states[1]
    assert results["no"]["shipped"] == "0.5 of stage 1, the dial at 0"
    assert results["yes"]["shipped"] == "the whole of stage 1, stage 2, the dial at 0"
    page = (tmp_path / "yes" / "pair_curve.md").read_text(encoding="utf-8")
    assert page.endswith("\n*opening*: of the whole of stage 1, stage 2, the dial at 0.\n")


def test_several_models(tiny: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each has a column of the picture, tables under its title and a folder; the time of all is said first, and of what
    is left behind each point that is measured now."""
    settings = small_settings(tiny, rows, tmp_path / "unused", contrastive_steps=1, stage2="no")
    choices = pair_curve.Choices(settings, (4,), models=(f"One 1B={tiny}", f"B={tiny}"), out=tmp_path / "out")
    one, other = pair_curve.main(choices)
    assert (one["model"], other["model"]) == ("One 1B", "B")
    assert one["sets"] == other["sets"]
    assert (tmp_path / "out" / "one_1b" / "seed0" / "4" / "read.json").exists()
    said = capsys.readouterr().out
    assert re.match(r"2 points, about \d+\.\d hours in all\n", said)
    assert len(re.findall(r"^(?:One 1B|B), 4 pairs, seed 0: states .*; about \d+\.\d hours left$", said, re.M)) == 2
    assert re.findall("^## (.*)$", (tmp_path / "out" / "pair_curve.md").read_text(), re.M) == ["One 1B", "B"]
    pair_curve.main(choices)
    assert capsys.readouterr().out.startswith("2 points, about 0.0 hours in all\n## One 1B")
    with pytest.raises(UserError, match="give TITLE=MODEL"):
        pair_curve.main(replace(choices, models=("=x",)))


def test_models_have_the_settings_of_their_recipes() -> None:
    """A recipe's own, those that a run finds for others; and what is given goes for all."""
    choices = pair_curve.Choices(models=("A=smollm2_135m", "B=some/folder"))
    (small, _), (other, folder) = pair_curve.models_of(choices).values()
    assert small == settings_of(find_recipe("smollm2_135m"))
    assert (other.contrastive_batch, other.layer, other.model) == (64, FOUND, "some/folder")
    assert folder == choices.out / "b"
    given = replace(choices, settings=replace(pair_curve.SETTINGS, layer=9, model="x"))
    assert [(s.layer, s.model) for s, _ in pair_curve.models_of(given).values()] == [
        (9, small.model), (9, "some/folder")
    ]  # fmt: skip
