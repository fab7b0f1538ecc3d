"""Claims about benchmarks/paper_setting.py: both stages 1 on the same rows, at the same layer, with stages 2 alike."""

from pathlib import Path
from typing import Any

import paper_setting
import pytest
from recipe_runs import adapter, small_settings
from small_runs import write_rows

from dcr_lite.compare import measurement
from dcr_lite.data.rows import read_conversations, read_pairs
from dcr_lite.files import load_json, load_jsonl


def test_paper_setting(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pairs of most alike prompts of the two files, without what is measured on; no toxic prompt in both stages; four
    models in the table, of which two have another stage 1; and all of it done once."""
    pairs = load_jsonl(rows / "pairs.jsonl")
    files = {
        name: write_rows(tmp_path / f"{name}.jsonl", [{"prompt": pair[name]} for pair in some])
        for name, some in (("toxic", pairs), ("seemingly_toxic", pairs[::-1]))
    }
    refusals = [{"prompt": prompt, "response": "I can't."} for prompt in (pairs[0]["toxic"], "Hurt a man?", "Rob her?")]
    measured = write_rows(tmp_path / "measured.jsonl", [{"prompt": pairs[1]["seemingly_toxic"].upper()}])
    monkeypatch.setattr(paper_setting, "INSTRUCTIONS", 6)
    monkeypatch.setattr(paper_setting, "REFUSALS", 2)
    monkeypatch.setattr(measurement, "HELD_OUT_INSTRUCTIONS", rows / "instructions.jsonl")
    choices = paper_setting.Choices(
        **files, instructions=rows / "instructions.jsonl", refusals=write_rows(tmp_path / "refusals.jsonl", refusals),
        settings=small_settings(tiny, rows, tmp_path / "unused", layer=-1, dial="auto", compare_with=()),
        prompts=(rows / "held_out.jsonl",), without=(measured,), out=tmp_path / "out",
    )  # fmt: skip
    found = paper_setting.main(choices)
    assert [(one["method"], one["way"]) for one in found] == [
        ("base", "kit"), ("safety_sft", "kit"), ("dcr", "kit"), ("dcr", "paper"),
    ]  # fmt: skip
    page = capsys.readouterr().out
    assert [title in page for title in ("safety SFT alone", "stage 1 of the kit", "stage 1 of the paper")] == [True] * 3
    made = read_pairs(tmp_path / "out" / "pairs.jsonl")
    assert len(made) == len(pairs) - 1
    assert pairs[1]["seemingly_toxic"] not in {pair.seemingly_toxic for pair in made}
    stage_2 = read_conversations(tmp_path / "out" / "refusals.jsonl")
    assert [row.prompt for row in stage_2] == ["Hurt a man?", "Rob her?"]
    kit, paper = (tmp_path / "out" / way / "seed0" for way in ("kit", "paper"))
    stated: list[dict[str, Any]] = [load_json(folder / "settings.json")["settings"] for folder in (kit, paper)]
    assert [one["paper"] for one in stated] == [False, True]
    assert stated[0]["pairs"] == stated[1]["pairs"]
    assert load_json(kit / "found.json")["layer"] == load_json(paper / "found.json")["layer"] >= 0
    first, second = adapter(kit, "stage1"), adapter(paper, "stage1")
    assert any((first[name] != second[name]).any() for name in first)

    monkeypatch.setattr(paper_setting.paper_data, "write_rows", None)
    monkeypatch.setattr("dcr_lite.compare.command.measure_configuration", None)
    assert [one["numbers"] for one in paper_setting.main(choices)] == [one["numbers"] for one in found]
