"""What a run saves to read states by: similarity to both kinds, and a place on the map."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from dcr_lite.data.rows import read_pairs
from dcr_lite.data.splits import split_by_focus
from dcr_lite.errors import UserError
from dcr_lite.method.contrastive import ContrastiveConfig, encode_pairs, stock_geometry
from dcr_lite.method.geometry import Geometry
from dcr_lite.model.adapters import load_adapter
from dcr_lite.names import BASELINE, DCR
from dcr_lite.run import discernment, inputs, stored_states
from dcr_lite.run.discernment import Discernment, Discernments
from dcr_lite.run.opening import adapter_of, load_base
from dcr_lite.settings import Settings

MODELS = ("dcr", "safety_sft", "base")


def states_of_two_kinds(pairs: int, apart: float, seed: int = 0) -> torch.Tensor:
    """Random states, toxic ones shifted along the first axis, all far from the origin."""
    states = torch.randn(2 * pairs, 8, generator=torch.Generator().manual_seed(seed)) + 5
    states[:pairs, 0] += apart
    return states


@pytest.mark.parametrize("centre", ["batch", "stock", "none"])
def test_a_reading_is_its_formula(centre: Any) -> None:
    """Scores, cosines and place are those that the docstrings state, computed with plain loops."""
    reference, development = states_of_two_kinds(20, 3.0), states_of_two_kinds(12, 3.0, seed=1)
    geometry = Geometry.fit(states_of_two_kinds(50, 1.0, seed=2), centre, whiten=True)
    fitted = Discernment.fit(geometry, reference, development)
    mean = {"batch": reference.mean(0), "stock": geometry.mean, "none": torch.zeros(8)}[centre]
    units = [normalize((s - mean) @ geometry.whitening, dim=0) for s in reference]
    kinds = [normalize(torch.stack(part).mean(0), dim=0) for part in (units[:20], units[20:])]
    for state, like in zip(development, fitted.read(development), strict=True):
        unit = normalize((state - mean) @ geometry.whitening, dim=0)
        for kind, (slope, intercept), cosine, score in zip(
            kinds, fitted.calibration.tolist(), (like.toxic_cosine, like.seemingly_toxic_cosine),
            (like.toxic, like.seemingly_toxic), strict=True,
        ):  # fmt: skip
            assert cosine == pytest.approx(float(unit @ kind), abs=1e-5)
            assert score == pytest.approx(1 / (1 + float(torch.tensor(-slope * cosine - intercept).exp())), abs=1e-5)
        assert like.place == pytest.approx((fitted.axes @ unit).tolist(), abs=1e-5)
    assert fitted.auroc > 0.8
    assert float(fitted.axes[0] @ fitted.axes[1]) == pytest.approx(0, abs=1e-5)
    assert fitted.points.shape == (24, 2)


def test_scores_are_the_share_of_the_kind() -> None:
    """Where cosines of the kinds are normal, log-odds are linear in them: the calibration finds that line."""
    generator = torch.Generator().manual_seed(0)
    cosines = 0.2 * torch.randn(20_000, generator=generator)
    is_kind = torch.arange(20_000) < 10_000
    cosines[is_kind] += 0.1
    slope, intercept = discernment._calibrate(cosines, is_kind)
    assert slope == pytest.approx(0.1 / 0.2**2, rel=0.08)
    scores = (slope * cosines + intercept).sigmoid()
    for low in (0.2, 0.4, 0.6, 0.7):
        near = (scores >= low) & (scores < low + 0.1)
        assert float(is_kind[near].float().mean()) == pytest.approx(float(scores[near].mean()), abs=0.05)


def test_a_misleading_cosine_gives_chance() -> None:
    """A kind that lies farther from its own mean than the other gives 0.5, never a negative slope."""
    cosines = torch.linspace(-1, 1, 40)
    assert discernment._calibrate(cosines, cosines < 0) == (0.0, 0.0)


def test_a_saved_reading_loads_unchanged(tmp_path: Path) -> None:
    """The file holds every tensor and text, of any language, and nothing else is needed to read a state."""
    geometry = Geometry.fit(states_of_two_kinds(50, 1.0), "batch", whiten=True)
    one = Discernment.fit(geometry, states_of_two_kinds(20, 2.0), states_of_two_kinds(2, 2.0, seed=1))
    Discernments(7, ["a", "\N{GRINNING FACE}"], ["b", "日本"], {"dcr": one}).save(tmp_path)
    found = Discernments.load(tmp_path)
    assert found is not None
    assert (found.layer, found.toxic, found.seemingly_toxic) == (7, ["a", "\N{GRINNING FACE}"], ["b", "日本"])
    states = states_of_two_kinds(3, 1.0, seed=5)
    assert found.models["dcr"].read(states) == one.read(states)
    assert found.models["dcr"].auroc == one.auroc
    assert Discernments.load(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("damage", ["cut", "empty", "no metadata", "another form"])
def test_a_damaged_file_is_an_error(damage: str, demo_run: Path, tmp_path: Path) -> None:
    """Whatever happened to the file, the error names it."""
    path = tmp_path / discernment.FILE
    whole = (demo_run / "adapter" / discernment.FILE).read_bytes()
    if damage == "no metadata":
        save_file(load_file(demo_run / "adapter" / discernment.FILE), path)
    elif damage == "another form":
        save_file({"dcr.mean": torch.zeros(3)}, path, {"discernment": '{"auroc": {"dcr": 1}, "layer": 1}'})
    else:
        path.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"")
    with pytest.raises(UserError, match="is missing or damaged"):
        Discernments.load(tmp_path)


def test_a_run_saves_its_reading_without_looking_at_held_out_prompts(demo_run: Path, tmp_path: Path) -> None:
    """All three models are read; the map holds development pairs alone; a fit that has no held-out prompts is the same
    but for rounding, which places in other passes can change, and one that has fewer development prompts is not."""
    saved = demo_run / "adapter" / discernment.FILE
    found = Discernments.load(demo_run / "adapter")
    assert found is not None
    chosen = json.loads((demo_run / "settings.json").read_text())["settings"]
    _, development = split_by_focus(read_pairs(Path(chosen["pairs"])), chosen["development_pairs"], chosen["seed"])
    assert [(p.toxic, p.seemingly_toxic) for p in found.pairs] == [(p.toxic, p.seemingly_toxic) for p in development]
    assert found.models.keys() == set(MODELS)
    assert found.layer == chosen["layer"]

    values = chosen | {key: Path(chosen[key]) for key in ("pairs", "instruction_rows", "refusal_rows")}
    settings = Settings(**values | {"run": demo_run, "evaluation": tuple(map(Path, chosen["evaluation"]))})
    data, model = dataclasses.replace(inputs.load_data(settings), held_out=[]), load_base(settings)[0]
    for name in (DCR, BASELINE):
        load_adapter(model, name, adapter_of(demo_run, name))
    geometry = stock_geometry(model, encode_pairs(model, data.training), ContrastiveConfig.of(settings))
    states = stored_states.compute_states(model, data, settings, geometry)
    stored_states.fit_discernments(model, data, settings, states).save(tmp_path)
    again, first = load_file(tmp_path / discernment.FILE), load_file(saved)
    assert again.keys() == first.keys()
    for key, value in first.items():
        torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-5)
    fewer = dataclasses.replace(data, development=data.development[1:])
    states = stored_states.compute_states(model, fewer, settings, geometry)
    stored_states.fit_discernments(model, fewer, settings, states).save(tmp_path)
    changed = load_file(tmp_path / discernment.FILE)
    assert not torch.allclose(changed["dcr.calibration"], first["dcr.calibration"], rtol=1e-3, atol=1e-3)
