"""A base's weights with an adapter added are what base and adapter compute together."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finished_runs import MakeRun, divergence, logits
from safetensors.torch import load_file
from tiny_models import PROMPTS, assert_close, assert_far, load_reference, random_rows
from transformers import AutoModelForCausalLM, AutoTokenizer

from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun, export_merged
from dcr_lite.export.merge import Merged
from dcr_lite.model.adapters import stock
from dcr_lite.model.chat import encode_prompts, prompt_text
from dcr_lite.model.loading import Model


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral", "gemma2", "phi3"])
def test_merged_weights_answer_as_the_adapter_does(architecture: str, make_run: MakeRun) -> None:
    """The merged folder, loaded by transformers alone, has the logits of base and adapter, which are far from those of
    the base."""
    run, model = make_run(architecture)
    row = random_rows([40])[0]
    found = load_reference(export_merged(run))
    assert_close(logits(found, row), logits(model.network, row), 1e-4)
    with stock(model):
        assert_far(logits(found, row), logits(model.network, row))


def test_merging_is_what_peft_does(make_run: MakeRun) -> None:
    """Every tensor equals that of peft's merge_and_unload, though only one is held at a time."""
    run, model = make_run()
    merged = Merged(Path(run.report["model"]), run.adapter)
    expected = model.network.merge_and_unload().state_dict()
    assert set(merged) == set(expected)
    for name in merged:
        assert_close(merged.tensor(name), expected[name], 1e-6)


def test_the_real_model_merged_in_16_bits(smollm2: tuple[FinishedRun, Model], tmp_path: Path) -> None:
    """SmolLM2 merged into its 16-bit weights says what base and adapter say in float32, up to rounding: a hundred times
    nearer than the base; and it answers and ends its turn."""
    run, model = smollm2
    folder = export_merged(run, tmp_path / "merged")
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert found.dtype == torch.bfloat16
    rows = encode_prompts(model.tokenizer, PROMPTS[:3], model.window)
    for row in rows:
        expected = logits(model.network, row)
        with stock(model):
            before = logits(model.network, row)
        assert divergence(expected, logits(found.float(), row)) < 0.01 * divergence(expected, before)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = tokenizer(prompt_text(tokenizer, "What is the capital of France?"), return_tensors="pt")
    said = found.generate(**asked, max_new_tokens=60, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert said[-1] == tokenizer.eos_token_id
    assert "Paris" in tokenizer.decode(said)


def test_a_base_of_several_files(make_run: MakeRun, tmp_path: Path) -> None:
    """A base that lies in several files is merged file by file, and loads with its index."""
    run, model = make_run()
    base = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(run.report["model"]).save_pretrained(base, max_shard_size="100KB")
    folder = export_merged(run, base=str(base))
    assert len(list(folder.glob("*.safetensors"))) > 2
    row = random_rows([30])[0]
    assert_close(logits(load_reference(folder), row), logits(model.network, row), 1e-4)


def test_how_pictures_are_read_is_merged_along(make_run: MakeRun) -> None:
    """The settings by which a base is given pictures stand beside its merged weights, unchanged."""
    run, _ = make_run()
    names = ("preprocessor_config.json", "processor_config.json")
    for name in names:
        (Path(run.report["model"]) / name).write_text(f'{{"of": "{name}"}}')
    folder = export_merged(run)
    for name in names:
        (Path(run.report["model"]) / name).unlink()
    assert [(folder / name).read_text() for name in names] == [f'{{"of": "{name}"}}' for name in names]
    assert not (folder / "video_preprocessor_config.json").exists()


def test_a_run_in_4_bits_is_merged_into_the_16_bit_base(make_run: MakeRun) -> None:
    """What a run trained on a 4-bit base leaves is added to the base's own weights: nothing of the rounding to 4 bits
    is in the result."""
    run, _ = make_run(four_bit=True)
    folder = export_merged(run)
    base = load_file(Path(run.report["model"]) / "model.safetensors")
    found = load_file(folder / "model.safetensors")
    merged = Merged(Path(run.report["model"]), run.adapter)
    assert found.keys() == base.keys()
    touched = 0
    for name, weight in base.items():
        assert found[name].dtype == weight.dtype
        difference = found[name] - weight
        if difference.abs().max() > 0:
            touched += 1
            assert torch.linalg.matrix_rank(difference, rtol=1e-4) <= 4, name  # the adapter's rank, no rounding noise
    assert touched == 4 * 7  # four layers of seven linear ones
    assert len(merged) == len(base)


def test_a_quantised_base_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    """A base whose files hold 4-bit weights is never merged into, and the sentence names the cure."""
    run, _ = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes"}}))
    with pytest.raises(UserError, match=r"quantised weights.*with --base"):
        export_merged(run, base=str(base))
    assert not (run.path / "merged").exists()


def test_an_adapter_of_another_model_is_refused(make_run: MakeRun, tiny_folder: Callable[..., Path]) -> None:
    """Another depth or another width than the adapter's is said in a sentence."""
    run, _ = make_run()
    for other in (tiny_folder("llama", num_hidden_layers=2), tiny_folder("llama", intermediate_size=160)):
        with pytest.raises(UserError, match="belongs to another model"):
            export_merged(run, base=str(other))


def test_damaged_files_are_named(make_run: MakeRun, tmp_path: Path) -> None:
    """A cut-off file of the base or of the adapter is named."""
    run, _ = make_run()
    base = Path(shutil.copytree(run.report["model"], tmp_path / "base"))
    (base / "model.safetensors").write_bytes((base / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(UserError, match=r"base/model\.safetensors is missing or damaged"):
        export_merged(run, base=str(base))
    (run.adapter / "adapter_model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors is missing or damaged"):
        export_merged(run)
