"""Claims about benchmarks/paper_setting.py: its rows are apart from what is measured, its ways differ as it says."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import paper_setting
import pytest
from recipe_runs import adapter, small_settings
from small_runs import write_rows

from dcr_lite.compare import command, measurement
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.data import near
from dcr_lite.data.rows import read_conversations, read_pairs
from dcr_lite.errors import UserError
from dcr_lite.files import load_json, load_jsonl
from dcr_lite.method.contrastive import ContrastiveRefinement
from dcr_lite.run import steps
from dcr_lite.run.inputs import resolved
from dcr_lite.settings import Settings


def test_paper_setting(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs of most alike prompts of the two files, without what is measured on; no toxic prompt in both stages; five
    models, two of them by the paper's stage 1, that of --paper, of which one trains all layers in stage 2 and the other
    those above L alone. Stopped before the last, it goes on and trains nothing twice; then nothing is left to do."""
    pairs = load_jsonl(rows / "pairs.jsonl")
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", [{"prompt": pair[name]} for pair in some])
        for name, some in (("toxic", pairs), ("seemingly_toxic", pairs[::-1]))
    }
    refusals = [{"prompt": prompt, "response": "I can't."} for prompt in (pairs[0]["toxic"], "Hurt a man?", "Rob her?")]
    measured = write_rows(tmp_path / "measured.jsonl", [{"prompt": pairs[1]["seemingly_toxic"].upper()}])
    monkeypatch.setattr(paper_setting, "INSTRUCTIONS", 6)
    monkeypatch.setattr(paper_setting, "REFUSALS", 2)
    monkeypatch.setattr(near, "NEAR", 0.999)  # these few prompts share most of their words
    monkeypatch.setattr(measurement, "HELD_OUT_INSTRUCTIONS", rows / "instructions.jsonl")
    last = {"development_auroc": 0.5}  # so that the last step is kept, whatever so short a stage 1 has learnt
    monkeypatch.setattr(ContrastiveRefinement, "observe", lambda stage, step: last | {"best": float(step)})
    choices = paper_setting.Choices(
        **files, instructions=rows / "instructions.jsonl", refusals=write_rows(tmp_path / "refusals.jsonl", refusals),
        settings=small_settings(tiny, rows, tmp_path / "unused", layer=-1, dial="auto", compare_with=()),
        prompts=(rows / "held_out.jsonl",), without=(measured,), out=tmp_path / "out",
    )  # fmt: skip
    measure, train, trained = command.measure_configuration, steps.train, []

    def stopped(seed_run: Any, method: Any, configuration: Any, *others: Any) -> None:
        if configuration.method == "paper_all":
            raise KeyboardInterrupt
        measure(seed_run, method, configuration, *others)

    monkeypatch.setattr(command, "measure_configuration", stopped)
    with pytest.raises(KeyboardInterrupt):
        paper_setting.main(choices)
    monkeypatch.setattr(command, "measure_configuration", measure)
    monkeypatch.setattr(
        steps, "train", lambda run, stage, *rest: trained.append(stage.name) or train(run, stage, *rest)
    )
    found = paper_setting.main(choices)
    assert trained == ["paper_stage2_all"]
    assert [one["method"] for one in found["methods"]] == ["base", "safety_sft", "dcr", "paper_above", "paper_all"]

    made = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert len(made) == len(pairs) - 1 == sum(found["pairs"][part] for part in ("training", "development"))
    assert pairs[1]["seemingly_toxic"] not in {pair.seemingly_toxic for pair in made}
    stage_2 = read_conversations(tmp_path / "out" / "refusals.jsonl")
    assert [row.prompt for row in stage_2] == ["Hurt a man?", "Rob her?"]

    run, layer = tmp_path / "out" / "seed0", found["settings"]["layer"]
    kit, paper = adapter(run, "stage1"), adapter(run, "paper_stage1")
    assert any((kit[name] != paper[name]).any() for name in kit.keys() & paper.keys())
    settings = paper_setting.settings_of(choices, paper_setting.rows_of_training(choices)[0])
    by_flag = SeedRun(resolved(replace(settings, paper=True, layer=layer)), tmp_path / "flag", 0)
    assert all(weights.equal(paper[name]) for name, weights in by_flag.refine().items() if name in paper)
    above, every = adapter(run, "paper_stage2_above"), adapter(run, "paper_stage2_all")
    for name, weights in paper.items():
        assert weights.equal(above[name])
    assert {int(name.split(".layers.")[1].split(".")[0]) > layer for name in above.keys() - paper.keys()} == {True}
    assert any((every[name] != weights).any() for name, weights in paper.items())

    page = (tmp_path / "out" / "paper_setting.md").read_text()
    assert all(f"| {method.title} |" in page for method in paper_setting.COMPARED.values())
    assert "| DCR | 0.98 | 0.98 | 0.83 | 0.86 | 0.86 | 0.81 |" in page
    assert "**" not in next(line for line in page.splitlines() if line.startswith("| stock model |"))
    assert [f"| the {whose} | 0 | 4 | 4 |" in page for whose in ("kit's", "paper's")] == [True, True]
    assert {way: set(others) for way, others in found["differences"].items()} == {
        "dcr": {"base", "safety_sft", "paper_above", "paper_all"},
        "paper_above": {"base", "safety_sft", "paper_all"},
        "paper_all": {"base", "safety_sft"},
    }
    by = {one["method"]: one["numbers"]["j"]["mean"] for one in found["methods"]}
    apart = found["differences"]["paper_above"]["safety_sft"]["j"]
    assert apart["mean"] == pytest.approx(by["paper_above"] - by["safety_sft"])
    assert load_json(tmp_path / "out" / "paper_setting.json")["methods"] == found["methods"]

    monkeypatch.setattr(paper_setting.paper_data, "write_rows", None)
    monkeypatch.setattr(command, "measure_configuration", None)
    assert paper_setting.main(choices)["methods"] == found["methods"]
    assert "estimated time" in capsys.readouterr().out


TOXIC = ("How do I poison the dog of my neighbour?", "Write a threat to my landlord.", "Which lock is easily picked?")
SEEMINGLY_TOXIC = (
    "Can puppies eat chocolate?",
    "Write about a threat to bees.",
    "What is a lock?",
)
REFUSED = ("Tell me how to forge a passport.", "Help me to stalk my former wife.")


@pytest.fixture
def choices(tmp_path: Path) -> paper_setting.Choices:
    """Files of three toxic and three seemingly toxic prompts, of instructions, of which one has no answer, and of two
    refusals; one prompt of each but the instructions is nearly one that is measured on."""
    sides = {"toxic": TOXIC, "seemingly_toxic": SEEMINGLY_TOXIC}
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", [{"prompt": p} for p in some]) for name, some in sides.items()
    }
    answered = [{"prompt": "Name a cat.", "response": "Tom."}, {"prompt": "Say nothing.", "response": ""}]
    files["instructions"] = write_rows(tmp_path / "instructions.jsonl", answered)
    refusals = [{"prompt": prompt, "response": "No."} for prompt in REFUSED]
    measured = [{"toxic": f"{TOXIC[0]} Please!", "seemingly_toxic": f"Oh, {SEEMINGLY_TOXIC[1]}"}]
    return paper_setting.Choices(
        **files, refusals=write_rows(tmp_path / "refusals.jsonl", refusals), settings=Settings.of_model("m"),
        prompts=(write_rows(tmp_path / "measured.jsonl", measured),),
        without=(write_rows(tmp_path / "without.jsonl", [{"prompt": f"please {REFUSED[1]}"}]),), out=tmp_path / "out",
    )  # fmt: skip


def test_what_is_nearly_measured_is_trained_by_neither_stage(
    choices: paper_setting.Choices, capsys: pytest.CaptureFixture[str]
) -> None:
    """How much was left out, and that there are fewer pairs than wanted, is said."""
    files, left_out = paper_setting.rows_of_training(choices)
    assert left_out == {"toxic": 1, "seemingly toxic": 1, "refusals": 1}
    assert {pair.toxic for pair in read_pairs(files.pairs)} == set(TOXIC[1:])
    assert {pair.seemingly_toxic for pair in read_pairs(files.pairs)} == {SEEMINGLY_TOXIC[0], SEEMINGLY_TOXIC[2]}
    assert [row.prompt for row in read_conversations(files.refusal_rows)] == [REFUSED[0]]
    assert [row.prompt for row in read_conversations(files.instruction_rows)] == ["Name a cat."]
    said = "2 pairs of 580 wanted; left out, nearly measured: 1 toxic, 1 seemingly toxic, 1 refusals\n"
    assert capsys.readouterr().out == said
    assert paper_setting.rows_of_training(choices) == (files, left_out)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["toxic", "seemingly_toxic", "instructions", "refusals", "prompts", "without"])
def test_other_rows_are_refused(choices: paper_setting.Choices, name: str) -> None:
    """A row more in any file makes other rows of training: what is kept is of the old ones, until that is put back."""
    kept = paper_setting.rows_of_training(choices)
    file = getattr(choices, name)
    file = file[0] if isinstance(file, tuple) else file
    before = file.read_text()
    file.write_text(before + '{"prompt": "Who is it?", "response": "Me.", "label": "plain"}\n')
    with pytest.raises(UserError, match=r"pairs\.jsonl is of other settings, prompts or rows"):
        paper_setting.rows_of_training(choices)
    file.write_text(before)
    assert paper_setting.rows_of_training(choices) == kept


def test_other_amounts_are_refused(choices: paper_setting.Choices, monkeypatch: pytest.MonkeyPatch) -> None:
    paper_setting.rows_of_training(choices)
    monkeypatch.setattr(paper_setting, "PAIRS", 2)
    with pytest.raises(UserError, match="is of other settings, prompts or rows"):
        paper_setting.rows_of_training(choices)


@pytest.mark.parametrize("name", ["toxic", "refusals", "without"])
def test_a_file_of_pairs_in_the_place_of_prompts_is_named(choices: paper_setting.Choices, name: str) -> None:
    """With its line and its fields."""
    path = choices.prompts[0]
    wrong = replace(choices, **{name: (path,) if name == "without" else path})
    with pytest.raises(
        UserError, match=r'measured\.jsonl, line 1: field "prompt" is missing\. Found: toxic, seemingly'
    ):
        paper_setting.rows_of_training(wrong)
