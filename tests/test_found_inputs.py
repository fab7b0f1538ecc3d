"""What generated inputs (tests/faults/inputs.py) have found, each as a case of its own."""

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from small_runs import Outcome, flags, run_here
from tiny_models import load_tiny

from dcr_lite.diagnose.report import _prompts as prompts_listed
from dcr_lite.errors import UserError
from dcr_lite.export.command import open_finished
from dcr_lite.export.merge import Merged
from dcr_lite.model.adapters import load_adapter
from dcr_lite.model.shapes import shape_of
from dcr_lite.run.discernment import FILE, Discernments
from dcr_lite.run.model_card import model_card
from dcr_lite.run.opening import load_base
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.run.report import write_report
from dcr_lite.run.run_folder import read_settings, stored_settings
from dcr_lite.settings import ModelSettings, Settings


def assert_sentence(seen: Outcome, said: str) -> None:
    """The command ended with 1 and one sentence that says this."""
    assert seen.code == 1
    assert seen.err.startswith("\nerror: ")
    assert "Traceback" not in seen.err
    assert said in seen.err


def test_a_message_does_not_steer_the_terminal() -> None:
    """What a message quotes of a file cannot clear the screen, and a message that quotes very much stays short."""
    assert str(UserError("no field \x1b[2J\u202e\nx")) == "no field \\x1b[2J\\u202e\nx"
    long = str(UserError("a" * 9_000 + " Do this."))
    assert len(long) < 2_100
    assert long.endswith("Do this.")


@pytest.mark.parametrize("flag", ["pairs", "evaluation"])
def test_a_device_is_no_file_of_rows(flag: str, rows: Path, tmp_path: Path) -> None:
    """/dev/zero has no end: it is refused, not read."""
    seen = run_here(flags("no model", rows, tmp_path / "run", **{flag: "/dev/zero"}))
    assert_sentence(seen, "/dev/zero: a device, which may have no end")


def test_a_name_that_no_file_can_have_is_an_error(rows: Path, tmp_path: Path) -> None:
    """A name of a thousand characters is no model, no recipe and no run."""
    long = "a" * 1_000
    assert_sentence(run_here(flags(long, rows, tmp_path / "run")), "no such folder, and not a Hub name")
    assert_sentence(run_here(flags("no model", rows, tmp_path / long)), "File name too long")
    for look in (find_recipe, shape_of, lambda name: stored_settings(Path(name), Settings)):
        with pytest.raises(UserError):
            look(long)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def main(: pass", "line 1: not a recipe that runs (invalid syntax"),
        ("a = 1\nb = a / 0", "line 2: not a recipe that runs (division by zero)"),
        ("import nothing_like_it", "line 1: not a recipe that runs (No module named"),
        ("\0", "not a recipe that runs (source code string cannot contain null bytes)"),
    ],
)
def test_a_recipe_that_fails_is_named_with_its_line(source: str, said: str, tmp_path: Path) -> None:
    """A recipe with a mistake is an error with the line, not a traceback."""
    path = tmp_path / "mine.py"
    path.write_text(source)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


WRONG_SETTINGS: dict[str, Any] = {
    "nested too deeply": "[" * 100_000,
    "a list of settings": {"settings": []},
    "no list of data": {"settings": {}, "data": [1]},
    "a layer that is a text": {"layer": "3"},
    "a model that is a number": {"model": 5},
    "a precision that is none": {"precision": "load"},
    "a rate that is no number": {"sft_learning_rate": math.nan},
    "a list in place of a path": {"pairs": ["a"]},
    "a text in place of paths": {"evaluation": 3},
}


@pytest.mark.parametrize("wrong", WRONG_SETTINGS)
def test_settings_of_another_type_are_damage(wrong: str, demo_run: Path, tmp_path: Path) -> None:
    """A run folder whose settings.json has another form or other types is said to be damaged, before any is used."""
    value = WRONG_SETTINGS[wrong]
    stored = json.loads((demo_run / "settings.json").read_text())
    if isinstance(value, dict):
        stored = value if "settings" in value else stored | {"settings": stored["settings"] | value}
        value = json.dumps(stored)
    (tmp_path / "settings.json").write_text(value)
    with pytest.raises(UserError, match=r"settings\.json cannot be read"):
        stored_settings(tmp_path, Settings, run=tmp_path)


def test_a_path_that_is_none_in_settings_is_an_error(demo_run: Path, tmp_path: Path) -> None:
    """A file of rows whose stored name holds a null character is named."""
    stored = json.loads((demo_run / "settings.json").read_text())
    stored["settings"]["pairs"] = "a\0b"
    (tmp_path / "settings.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match="not a path"):
        read_settings(tmp_path)


WRONG_CONFIGS: dict[str, Any] = {
    "a list": [],
    "no heads": {"num_attention_heads": 0, "head_dim": None},
    "endless layers": {"num_hidden_layers": math.inf},
    "no layers": {"num_hidden_layers": 0},
    "more than any": {"hidden_size": 10**30},
}


@pytest.mark.parametrize("wrong", WRONG_CONFIGS)
def test_a_shape_that_no_model_has_is_an_error(wrong: str, tiny: Path, tmp_path: Path) -> None:
    """Memory is not estimated from sizes that cannot be."""
    config = WRONG_CONFIGS[wrong]
    if isinstance(config, dict):
        config = json.loads((tiny / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="describes no decoder"):
        shape_of(str(tmp_path))


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("tokenizer_config.json", {"model_max_length": ""}),  # loads, and fails at every text
        ("tokenizer.json", {"model": None}),
        ("config.json", {"rms_norm_eps": "x"}),
    ],
)
def test_a_damaged_model_folder_is_an_error(file: str, damage: Any, tiny: Path, tmp_path: Path) -> None:
    """Whatever transformers raises for a damaged folder, it is a sentence."""
    model = Path(shutil.copytree(tiny, tmp_path / "model"))
    (model / file).write_text(json.dumps(json.loads((model / file).read_text()) | damage))
    with pytest.raises(UserError, match="cannot be loaded as a chat model"):
        load_base(ModelSettings(model=str(model)))


@pytest.mark.parametrize(
    "damage",
    [
        {"r": 10**9},  # would take all memory
        {"r": 0},
        {"lora_alpha": 1e308},
        {"target_modules": "("},
        {"alora_invocation_tokens": 1},
        {"peft_type": "IA3"},
        {"rank_pattern": {"q_proj": "x"}},
    ],
    ids=str,
)
def test_a_damaged_adapter_is_an_error(damage: dict[str, Any], tiny: Path, demo_run: Path, tmp_path: Path) -> None:
    """Whatever peft raises for a damaged configuration, and what it would not notice, is a sentence."""
    adapter = Path(shutil.copytree(demo_run / "adapter", tmp_path / "adapter"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | damage))
    with pytest.raises(UserError, match="damaged or of another base model"):
        load_adapter(load_tiny(tiny), "a", adapter)


def test_a_read_out_of_other_shapes_is_damaged(demo_run: Path, tmp_path: Path) -> None:
    """A file of similarity scores whose parts do not fit each other, or hold what is no number, is not used."""
    with safe_open(demo_run / "adapter" / FILE, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    facts = json.loads(metadata["discernment"])
    short = {"dcr.kinds": tensors["dcr.kinds"][:, :-1].contiguous()}
    without = {name: tensor for name, tensor in tensors.items() if name != "dcr.axes"}
    damaged = [
        (tensors | {"base.mean": tensors["base.mean"] * math.nan}, facts),
        (tensors | short, facts),
        (without, facts),
    ]
    damaged += [
        (tensors, facts | {"auroc": [1]}),
        (tensors, facts | {"layer": "1"}),
        (tensors, facts | {"toxic": ["a"]}),
    ]
    for parts, said in damaged:
        save_file(parts, tmp_path / FILE, metadata | {"discernment": json.dumps(said)})
        with pytest.raises(UserError, match="damaged"):
            Discernments.load(tmp_path)


@pytest.mark.parametrize("damage", [{"settings": 3}, {"methods": []}, {"data": None}, {"model": 1}], ids=str)
def test_a_damaged_report_is_no_finished_run(damage: dict[str, Any], demo_run: Path, tmp_path: Path) -> None:
    """A report.json that lacks what an export says of the run is refused before any work."""
    shutil.copytree(demo_run / "adapter", tmp_path / "adapter")
    report = json.loads((demo_run / "report.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps(report | damage))
    with pytest.raises(UserError, match=r"no readable report\.json"):
        open_finished(tmp_path)


def test_an_index_of_weights_cannot_lead_out_of_its_folder(demo_run: Path, tiny: Path, tmp_path: Path) -> None:
    """A base whose index names a file elsewhere is refused: the merged file would be written there too."""
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    shutil.copy(base / "model.safetensors", tmp_path / "other.safetensors")
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(UserError, match=r"index.json is damaged"):
        Merged(base, demo_run / "adapter")


EVIL = "<script>alert(1)</script> | ![x](http://x.example) `a` [b](javascript:c)"


def test_names_in_reports_are_text(demo_run: Path, tmp_path: Path) -> None:
    """Names of sets, models and settings add no HTML, link, picture or column to a report or a model card."""
    report = json.loads((demo_run / "report.json").read_text())
    for method in report["methods"].values():
        method["sets"][0]["name"] = EVIL
    report |= {"model": EVIL, "settings": report["settings"] | {"pairs": EVIL}}
    write_report(report, tmp_path)
    for page in ((tmp_path / "report.md").read_text(encoding="utf-8"), model_card(report, "adapter")):
        assert "javascript:c" in page  # of the model's name a card has the last part
        assert "<script" not in page
        assert not re.search(r"(?<!\\)\]\((?!\w+\.png|https://github.com/dcr-lite/)", page)
    rows = [line for line in (tmp_path / "report.md").read_text(encoding="utf-8").splitlines() if "alert" in line]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows if row.startswith("|")].count(7) == 1


def test_prompts_in_a_diagnosis_are_text() -> None:
    """A prompt that is listed in diagnosis.md is shown as it was typed."""
    listed = prompts_listed([{"kind": "a_b", "prompt": EVIL + "\n# head"}])
    assert "<script" not in listed
    assert listed.count("\n") == 0
