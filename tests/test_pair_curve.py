"""Claims about benchmarks/pair_curve.py: what it trains on and reads, and that a stopped one goes on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pair_curve
import pytest
from recipe_runs import small_settings

from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import ContrastiveRefinement

pytestmark = pytest.mark.usefixtures("pictures")


def test_pair_curve(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some pairs, all of them, and all with another file's, of which a part is read and not trained on; stopped
    before a step it goes on to the same numbers."""
    settings = small_settings(tiny, rows, tmp_path / "unused", contrastive_steps=3)
    more, prompts = (rows / "held_out.jsonl",), (rows / "plain.jsonl", rows / "held_out.jsonl")

    def curve(out: str) -> list[dict[str, Any]]:
        return pair_curve.main(
            pair_curve.Choices(settings, (4, -1), more, held_back=2, prompts=prompts, out=tmp_path / out)
        )

    def numbers(results: list[dict[str, Any]]) -> list[tuple[str, Any]]:
        return [(row["pairs"], row["sets"]) for row in results]

    undisturbed = curve("undisturbed")
    few, every, both = (row["pairs"] for row in undisturbed)
    assert (few, both.split(" and ")[0]) == ("4", every)
    assert list(undisturbed[0]["sets"])[:2] == ["development pairs", "held_out"]
    assert (tmp_path / "undisturbed" / "pair_curve.png").exists()
    table = (tmp_path / "undisturbed" / "pair_curve.md").read_text(encoding="utf-8").splitlines()
    assert table[2] == f"| AUROC | 4 | {every} | {both} |"

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
