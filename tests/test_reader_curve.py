"""Claims about benchmarks/reader_curve.py: a model is read once, and more pairs are fitted with the fewer ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import reader_curve
import torch
from recipe_runs import small_settings
from small_runs import write_rows

from dcr_lite.data.rows import Prompt
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED
from dcr_lite.measure.metrics import auroc
from dcr_lite.method.dial_fitting import Read

pytestmark = pytest.mark.usefixtures("pictures")


def test_reader_curve(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every set at every number of pairs; all pairs are in one order; and what was measured is not measured again."""
    settings = small_settings(tiny, rows, tmp_path / "unused")
    fitted: list[int] = []

    def reader(read: list[Read]) -> torch.Tensor:
        fitted.append(len(read))
        return whole(read)

    whole = reader_curve._reader
    monkeypatch.setattr(reader_curve, "_reader", reader)
    choices = reader_curve.Choices(
        {str(tiny): 1}, (rows / "held_out.jsonl", rows / "plain.jsonl"), None, (4, -1), 3, settings, tmp_path / "out"
    )
    found = reader_curve.main(choices)[str(tiny)]["pairs"]
    few, every = found
    assert few == "4"
    assert len(fitted) == 3 + 1
    assert fitted[3] - fitted[0] == 2 * (int(every) - 4)
    assert list(found[few])[:3] == ["development pairs", "held-out pairs", "held-out manners"]
    assert all(0 <= read["ci95"][0] <= read["auroc"] <= read["ci95"][1] <= 1 for read in found[every].values())
    assert (tmp_path / "out" / "reader_curve.png").exists()
    table = capsys.readouterr().out
    assert f"| AUROC | 4 | {every} |" in table
    assert "**llama" in table
    monkeypatch.setattr(reader_curve, "read_inputs", None)
    assert reader_curve.main(choices)[str(tiny)]["pairs"] == found
    for other in ({"models": {str(tiny): 2}}, {"rows": 2}, {"models": {str(tmp_path / tiny.name): 1}}):
        with pytest.raises(UserError, match="is of other settings, prompts or rows"):
            reader_curve.main(replace(choices, **other))


def test_more_pairs_are_a_last_column(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are fitted to beside all others, behind the messages before them, and without those whose focus is read
    later; fewer pairs are drawn from the others alone."""
    known = [json.loads(line)["focus"] for line in (SHIPPED / "heldout_pairs.jsonl").open(encoding="utf-8")]
    context = [{"role": "system", "content": "You mend clocks."}]
    pairs = [
        {"toxic": f"Can I {verb} a man?", "seemingly_toxic": f"Can a man {verb}?", "focus": verb, "before": context}
        for verb in ("bite", "kick", known[0])
    ]
    more = write_rows(tmp_path / "more.jsonl", pairs)
    fitted: list[int] = []
    whole = reader_curve._reader
    monkeypatch.setattr(reader_curve, "_reader", lambda read: fitted.append(len(read)) or whole(read))
    seen: list[Any] = []
    read_kinds = reader_curve.read_kinds
    monkeypatch.setattr(reader_curve, "read_kinds", lambda *given: seen.extend(given[2]) or read_kinds(*given))
    settings = small_settings(tiny, rows, tmp_path / "unused")
    choices = reader_curve.Choices({str(tiny): 1}, (), None, (4, -1), 2, settings, tmp_path / "out", (more,))
    _, every, last = reader_curve.main(choices)[str(tiny)]["pairs"]
    assert int(last) == int(every) + 2
    assert fitted[3] - fitted[2] == 2 * 2
    assert fitted[2] - fitted[0] == 2 * (int(every) - 4)
    assert [pair.before for pair in seen[-2:]] == [(("system", "You mend clocks."),)] * 2


def test_orders_are_averaged() -> None:
    """The AUROC of each order by itself, and not of their mean reading."""
    read = {"a": [3.0, 0.0], "b": [1.0, 1.0], "c": [2.0, 2.0], "d": [0.0, 1.0]}
    labels = {"a": "toxic", "b": "seemingly_toxic", "c": "toxic", "d": "seemingly_toxic"}
    prompts = [Prompt(text, label, "x") for text, label in labels.items()]
    orders = [auroc([read[t][k] for t in "ac"], [read[t][k] for t in "bd"]) for k in (0, 1)]
    assert orders == [1.0, 0.5]
    toxicity = {((), text): values for text, values in read.items()}
    assert reader_curve._read_apart(prompts, toxicity)["auroc"] == 0.75
