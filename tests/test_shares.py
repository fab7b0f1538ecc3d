"""Claims about benchmarks/shares.py: one stage 1 for all shares, of which 0 leaves the stock model with a dial."""

from dataclasses import replace
from pathlib import Path

import pytest
import shares
from recipe_runs import adapter, small_settings

from dcr_lite.errors import UserError
from dcr_lite.method.dial_fitting import fit_dial

pytestmark = pytest.mark.usefixtures("pictures")


def test_shares(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every set at every share; the whole of stage 1 is kept in the run; the more of it stays, the further the model is
    from the stock model; and what was measured is not measured again."""
    settings = small_settings(tiny, rows, tmp_path / "unused", stage2="no")
    fitted: list[int] = []

    def fit(*args: object) -> object:
        fitted.append(len(args[3]))  # type: ignore[arg-type]  # pairs
        return fit_dial(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(shares, "fit_dial", fit)
    out, prompts = tmp_path / "out", (rows / "held_out.jsonl",)
    choices = shares.Choices(settings, (1.0, 0.0, 0.5), prompts, None, every=2, answers=8, out=out)
    found = shares.main(choices)
    assert [one["share"] for one in found] == [0.0, 0.5, 1.0]
    assert [list(one["sets"]) for one in found] == [["development pairs", "held-out pairs", "public prompts"]] * 3
    assert all(0 <= read["ci95"][0] <= read["auroc"] <= read["ci95"][1] <= 1 for read in found[1]["sets"].values())
    assert len({one["sets"]["development pairs"]["auroc"] for one in found}) > 1
    assert fitted == [8] * 3  # of 16
    assert any(weight.any() for name, weight in adapter(out / "seed0", "stage1").items() if "lora_B" in name)
    assert "| share | development pairs" in capsys.readouterr().out
    monkeypatch.setattr(shares, "measured", None)
    assert shares.main(choices) == found
    with pytest.raises(UserError, match="is of other settings, prompts or rows"):
        shares.main(replace(choices, every=1))
