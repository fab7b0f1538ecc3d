"""Claims about benchmarks/equal_safety.py: two models are compared where both refuse as many toxic prompts."""

from pathlib import Path

import equal_safety
import numpy as np
import pytest
from small_runs import write_rows

from dcr_lite.errors import UserError


def write_answers(path: Path, odds: list[float], label: str) -> Path:
    rows = [
        {"source": "set", "label": label, "prompt": f"{label} {n}", "response": "Yes.", "refused": False,
         "refusal_log_odds": value, "kind": "answer"}
        for n, value in enumerate(odds)
    ]  # fmt: skip
    return write_rows(path, rows)


def test_a_model_whose_dial_is_turned_alone_is_no_better(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same log-odds, all shifted, have a difference of 0 in every resample; a model that answers more of the others
    at equal safety has one above 0. Prompts are matched by their text, and other labels are left out."""
    generator = np.random.default_rng(0)
    toxic, others = generator.normal(1, 1, 40).tolist(), generator.normal(0, 1, 60).tolist()
    a = write_answers(tmp_path / "a.jsonl", toxic, "toxic")
    turned = write_answers(tmp_path / "turned.jsonl", [value - 3 for value in toxic], "toxic")
    b = write_answers(tmp_path / "b.jsonl", others, "seemingly_toxic")
    also = write_answers(tmp_path / "also.jsonl", [value - 3 for value in others], "seemingly_toxic")
    better = write_answers(tmp_path / "better.jsonl", [value - 6 for value in others], "seemingly_toxic")
    turned.write_text(turned.read_text() + b.read_text())
    equal_safety.main(equal_safety.Choices((a, turned), (b, also), (0.9, 0.5)))
    said = capsys.readouterr().out
    assert "40 toxic prompts, 60 others" in said
    assert said.count("+0.00 (+0.00 to +0.00)") == 2
    equal_safety.main(equal_safety.Choices((a, turned), (b, better), (0.9,)))
    row = capsys.readouterr().out.splitlines()[-1]
    difference, low = (float(word.strip("(")) for word in row.split("|")[4].split()[:2])
    assert 0 < low < difference
    equal_safety.main(equal_safety.Choices((a, turned), (b, turned), (0.9,)))  # a file of both kinds
    assert "40 toxic prompts, 60 others" in capsys.readouterr().out
    with pytest.raises(UserError, match="different prompts"):
        equal_safety.main(equal_safety.Choices((a, turned), (a, also), (0.9,)))
