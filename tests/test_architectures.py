"""Models of architectures that no other test knows: read as the library reads them, or refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
from transformers import CohereConfig, GraniteConfig, Ministral3Config, Olmo2Config, StableLmConfig, Starcoder2Config

from dcr_lite.errors import UserError
from dcr_lite.model.architectures import KNOWN
from dcr_lite.run import opening
from dcr_lite.settings import ModelSettings, Settings


def load(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: Any, config: dict[str, Any], trains: bool) -> Any:
    monkeypatch.setitem(tiny_models.CONFIGS, "other", (kind, config))
    tiny_models.save_tiny(folder, "other", {})
    make = Settings.of_model if trains else ModelSettings
    settings = replace(make(model=str(folder)), device="cpu", precision="float32")
    return opening.load_base(settings)


@pytest.mark.parametrize("kind", [Ministral3Config, Olmo2Config, Starcoder2Config])
def test_one_that_computes_as_others_do_is_taken(kind: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Though no test compares its states: a short text did when it was loaded."""
    assert kind.model_type not in KNOWN
    load(monkeypatch, tmp_path, kind, {}, trains=True)


@pytest.mark.parametrize(
    ("kind", "config", "trains"),
    [
        (GraniteConfig, {"logits_scaling": 8.0}, False),
        (GraniteConfig, {"embedding_multiplier": 12.0}, True),
        (CohereConfig, {"logit_scale": 0.0625}, False),
        (StableLmConfig, {}, False),  # it repeats keys and values itself
    ],
)
def test_one_that_scales_in_a_way_of_its_own_is_refused(
    kind: Any, config: dict[str, Any], trains: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before stage 1 trains on states that the model does not have, or odds of refusing are read sixteen times too
    large."""
    with pytest.raises(UserError, match=f"models of type {kind.model_type} are not supported"):
        load(monkeypatch, tmp_path, kind, config, trains)
