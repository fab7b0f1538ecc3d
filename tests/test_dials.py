"""Claims about benchmarks/dials.py: each way turns what it says, and curves are compared by what they reach."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dials
import pytest
import torch
import tyro
from recipe_runs import small_settings

from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.data.rows import Pair
from dcr_lite.errors import UserError
from dcr_lite.model.generation import answer
from dcr_lite.run import steps
from dcr_lite.run.inputs import resolved


@pytest.fixture(scope="module")
def seed(tiny: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> SeedRun:
    """A tiny model after stage 1."""
    folder = tmp_path_factory.mktemp("dials")
    return SeedRun(resolved(small_settings(tiny, rows, folder, stage2="yes", dial="none")), folder / "seed0", 0)


def log_odds(seed: SeedRun, way: str, strength: float) -> torch.Tensor:
    """Of opening with a refusal, for the development prompts, turned one way."""
    rows = [seed.model.tokenizer.encode(p.prompt) for p in dials.development(seed).prompts]
    with dials.WAYS[way].model(seed, strength):
        return torch.tensor([given.refusal_log_odds for given in answer(seed.model, rows, 0)])


@pytest.mark.parametrize("way", sorted(dials.UNTURNED))
def test_at_strength_zero_every_way_is_the_trained_model(seed: SeedRun, way: str) -> None:
    """And nothing of a way is left behind it; turned, each changes the scores."""
    plain = log_odds(seed, "unturned", 0.0)
    assert not torch.allclose(log_odds(seed, way, 1.0), plain, atol=1e-3)
    assert torch.allclose(log_odds(seed, way, 0.0), plain, atol=1e-4)


def test_the_first_token_alone_is_shifted(seed: SeedRun) -> None:
    """The first token's probabilities are those of a lasting shift, and later ones are not."""
    rows = [[5, 6, 7], [5, 8, 9]]
    found = {}
    for way in ("last", "first"):
        with dials.WAYS[way].model(seed, 3.0):
            decoding = dials.generation.start_decoding(seed.model, [rows])
            first = decoding.logits
            dials.generation.append(decoding, torch.tensor([4, 4]))
            found[way] = first, decoding.logits
    assert torch.allclose(found["last"][0], found["first"][0])
    assert not torch.allclose(found["last"][1], found["first"][1], atol=1e-3)


def test_development_pairs_are_asked_behind_their_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides of the first ones, each behind what stands before its pair."""
    pairs = [Pair(f"t{i}", f"s{i}", before=(("system", "Be kind."),) * (i % 2)) for i in range(3)]
    monkeypatch.setattr(dials.inputs, "load_data", lambda settings: SimpleNamespace(development=pairs))
    found = dials.development(SimpleNamespace(settings=None), 2).prompts  # type: ignore[arg-type]
    assert [(row.prompt, row.label, row.before) for row in found] == [
        (getattr(pair, side), side, pair.before) for side in ("toxic", "seemingly_toxic") for pair in pairs[:2]
    ]


def test_settings_are_found_once(tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As its documented command asks for: by the first seed, for all, before anything is measured. A seed that comes
    twice is an error."""
    assert tyro.cli(dials.Choices, args=["--seeds", "0", "1"]).settings.layer == -1
    settings = small_settings(tiny, rows, tmp_path, layer=-1, sft_learning_rate=0.0)
    seen: list[tuple[int, float]] = []

    def noted(seed: SeedRun, *rest: object) -> None:
        seen.append((seed.settings.layer, seed.settings.sft_learning_rate))

    monkeypatch.setattr(dials, "measure_configuration", noted)
    dials.main(dials.Choices(settings, (0, 1), tmp_path, only=("unturned",)))
    assert len(seen) == 4  # the stock model and one way, with both seeds
    assert len(set(seen)) == 1
    assert min(seen[0]) > 0
    with pytest.raises(UserError, match="--seeds: give one seed or more, each once"):
        dials.main(dials.Choices(settings, (0, 0), tmp_path, only=("unturned",)))


def test_interpolation_ends_at_the_two_adapters(seed: SeedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares 0 and 1 are the adapters with many and with few refusals, each trained once."""
    monkeypatch.setattr(dials, "FEW", 2)
    monkeypatch.setattr(dials, "MANY", 4)
    ends = {share: log_odds(seed, "interpolated", share) for share in (0.0, 1.0)}
    monkeypatch.setattr(steps, "train", None)  # never again
    assert torch.equal(log_odds(seed, "interpolated", 0.0), ends[0.0])
    assert not torch.allclose(ends[0.0], ends[1.0], atol=1e-4)


def test_a_curve_is_measured_by_its_area_and_at_a_matched_compliance() -> None:
    """Without discernment the area is a half and J nothing; a point above the diagonal adds both."""
    assert dials.area([(0.3, 0.7)]) == pytest.approx(0.5)
    assert dials.area([(0.8, 0.8)]) == pytest.approx(0.8)
    assert dials.j_at([(0.3, 0.7)], 0.9) == pytest.approx(0)
    assert dials.j_at([(0.8, 0.8)], 0.8) == pytest.approx(0.6)
    assert dials.j_at([(0.8, 0.8)], 0.9) == pytest.approx(0.3)


def test_dials(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each way that was asked for, means over seeds; what is measured is not measured again."""
    settings = small_settings(tiny, rows, tmp_path, stage2="yes", dial="none")
    at_two = replace(dials.WAYS["last"], strengths=lambda settings: dials.SHIFTED[:2])
    monkeypatch.setitem(dials.WAYS, "last", at_two)
    choices = dials.Choices(settings, seeds=(0, 1), out=tmp_path / "out", only=("unturned", "last"))
    found = dials.main(choices)
    lines = capsys.readouterr().out.splitlines()
    assert [row["way"] for row in found] == ["base", "unturned", "last"]
    assert [line.split(" | ")[0] for line in lines[-3:]] == [f"| {dials.WAYS[row['way']].title}" for row in found]
    assert len(found[2]["points"][1]) == 2 + 1
    monkeypatch.setattr(dials, "measure_configuration", None)  # never again
    dials.main(choices)
    assert capsys.readouterr().out.splitlines()[-3:] == lines[-3:]
