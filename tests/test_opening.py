"""Opening a run, an adapter or a model by its name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import small_settings
from safetensors.torch import load_file, save_file
from tiny_models import add_random_adapter, load_tiny

from dcr_lite.errors import UserError
from dcr_lite.files import write_state
from dcr_lite.model import adapters, loading
from dcr_lite.model.adapters import load_adapter
from dcr_lite.model.generation import answer
from dcr_lite.names import DCR
from dcr_lite.run import opening
from dcr_lite.run.opening import open_model
from dcr_lite.settings import ModelSettings


def test_an_adapter_of_another_model_is_refused(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Other shapes, other names of weights, or a damaged file are errors, never an adapter without effect."""
    model = load_tiny(tiny_folder("llama"))
    add_random_adapter(model, DCR)
    adapters.save_adapter(model, DCR, tmp_path / "adapter")
    for other in (tiny_folder("llama", hidden_size=32), tiny_folder("llama", num_hidden_layers=6)):
        with pytest.raises(UserError, match="damaged or of another base model"):
            load_adapter(load_tiny(other), "one", tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged or of another base model"):
        load_adapter(load_tiny(tiny_folder("llama")), "one", tmp_path / "adapter")


def test_a_process_looks_for_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its weights may be read whole for that. Another than the first of several looks in its own cache, after the first
    has fetched."""
    asked: list[str] = []
    monkeypatch.setattr(opening, "locate", lambda model: asked.append(model) or (f"folder {len(asked)}", "words"))
    assert opening._locate("m") == ("folder 1", "words")
    assert asked == ["m"]
    monkeypatch.setattr(opening.distributed, "on_main", lambda work: ("of the first process", "words"))
    monkeypatch.setattr(opening.distributed, "is_main", lambda: False)
    assert opening._locate("m") == ("folder 2", "words")


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"bias": "all"}])
def test_an_adapter_of_another_kind_is_refused(
    changes: dict[str, Any], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """DoRA's magnitudes and trained biases are no part of the layers that run on a CPU."""
    model = load_tiny(tiny_folder("llama"))
    add_random_adapter(model, DCR)
    adapters.save_adapter(model, DCR, tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(UserError, match="no plain LoRA adapter: DoRA, or with biases"):
        load_adapter(load_tiny(tiny_folder("llama")), "one", tmp_path / "adapter")


def test_what_cannot_be_opened_is_an_error(demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A method of no run, a run without its adapter, an adapter without weights or base, and no model at all."""
    with pytest.raises(UserError, match="is no run folder"):
        open_model(str(tiny_folder("llama")), "safety_sft", device="cpu")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    shutil.copy(demo_run / "settings.json", unfinished)
    with pytest.raises(UserError, match=r"not finished \(adapter/ is missing\)"):
        open_model(str(unfinished), "dcr", device="cpu")
    adapter = tmp_path / "adapter"
    shutil.copytree(demo_run / "adapter", adapter)
    (adapter / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="does not say what base model"):
        open_model(str(adapter), "dcr", device="cpu")
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="an adapter without weights"):
        open_model(str(adapter), "dcr", device="cpu")
    with pytest.raises(UserError, match="not a model folder"):
        open_model(str(tmp_path), "dcr", device="cpu")


def test_an_adapter_of_a_run_is_read_as_its_run_is(
    demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the openings that were found for the run, by whatever path its folder is named; a base by its own name has
    those of the kit."""
    run = tmp_path / "run"
    shutil.copytree(demo_run, run)
    found = json.loads((run / "found.json").read_text())
    state = {key: value for key, value in found.items() if key != "sha256"} | {"openings": ["Never"]}
    write_state(state, run / "found.json")
    monkeypatch.chdir(run)
    for name in (run, run / "adapter", run / "safety_sft", Path("adapter")):
        assert open_model(str(name), device="cpu").model.openings == ("Never",)
    assert open_model(str(tiny_folder("llama")), device="cpu").model.openings == loading.REFUSING_OPENINGS


def test_an_adapter_on_the_hub_can_be_opened(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Hub name whose snapshot holds an adapter opens as that adapter on the base that it names."""
    locate = opening.locate

    def on_the_hub(name: str) -> tuple[str, str]:
        return (str(demo_run / "adapter"), "Hugging Face Hub") if name == "somebody/adapter" else locate(name)

    monkeypatch.setattr(opening, "locate", on_the_hub)
    opened = open_model("somebody/adapter", "dcr", device="cpu")
    assert opened.adapter == demo_run / "adapter"
    assert opened.base == json.loads((demo_run / "settings.json").read_text())["settings"]["model"]


@pytest.mark.parametrize("brought", [None, "{{ messages[0]['content'] }}"])
def test_an_adapter_brings_its_chat_format(
    brought: str | None, demo_run: Path, tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Prompts of an adapter trained on a base model are written as in training, whether the base brings no format or
    another one; without one of its own the adapter is asked in that of its base."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_folder("llama"), base)
    (base / "chat_template.jinja").unlink()
    if brought:
        (base / "chat_template.jinja").write_text(brought)
    shutil.copytree(demo_run / "adapter", adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    written = json.loads((adapter / "tokenizer_config.json").read_text())
    (adapter / "tokenizer_config.json").write_text(json.dumps(written | {"padding_side": "left"}))
    assert open_model(str(base), "dcr", device="cpu").model.tokenizer.chat_template == brought
    opened = open_model(str(adapter), "dcr", device="cpu")
    assert opened.model.tokenizer.chat_template == load_tiny(tiny_folder("llama")).tokenizer.chat_template
    assert opened.model.tokenizer.padding_side == "right"
    assert opened.base == str(base)
    (adapter / "chat_template.jinja").unlink()
    assert open_model(str(adapter), "dcr", device="cpu").model.tokenizer.chat_template == brought


def test_a_tokenizer_without_an_end_token_takes_the_model_s(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    """That of its generation settings, for padding too. Where they name none, the error says what is missing, and where
    to name it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder("gemma2"), folder)
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokens | {"eos_token": None, "pad_token": None}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 1]}))
    model = load_tiny(folder)
    assert model.tokenizer.pad_token_id == model.tokenizer.eos_token_id == 2
    assert answer(model, [[5, 6], [7]], 3)
    for name in ("config.json", "generation_config.json"):
        stated = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(stated | {"eos_token_id": None}))
    with pytest.raises(UserError, match=r"which token ends an answer. Name it as eos_token in tokenizer_config.json"):
        load_tiny(folder)


def test_a_model_that_only_answers_needs_the_memory_of_answering(tiny: Path, rows: Path, tmp_path: Path) -> None:
    """Without a run's settings no memory is asked for training, with them for every part of the run."""
    on = opening.machine(ModelSettings(model=str(tiny), device="cpu"))
    assert list(opening.what_fits(str(tiny), ModelSettings(model=str(tiny)), on).needs) == ["evaluation"]
    whole = opening.what_fits(str(tiny), small_settings(tiny, rows, tmp_path / "run"), on)
    assert list(whole.needs) == ["stage1", "stage2", "safety_sft", "evaluation"]


def test_an_adapter_without_a_digest_opens(demo_run: Path, tmp_path: Path) -> None:
    """As other tools write it."""
    run = Path(shutil.copytree(demo_run, tmp_path / "run"))
    weights = run / "adapter" / "adapter_model.safetensors"
    save_file(load_file(weights), weights)
    assert open_model(str(run), "dcr", device="cpu").adapter == run / "adapter"
