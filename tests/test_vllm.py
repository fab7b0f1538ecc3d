"""An adapter that vLLM would refuse, or compute otherwise, is refused here."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from finished_runs import MakeRun

from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun, open_finished
from dcr_lite.export.vllm import vllm_command
from dcr_lite.files import load_tensors, save_tensors


def option(command: str, name: str) -> str:
    words = shlex.split(command.replace("\\\n", " "))
    return words[words.index(name) + 1]


def test_a_run_can_be_served(make_run: MakeRun) -> None:
    """The command names the base, the run's tokenizer and its adapter, with a rank that vLLM knows; the request is for
    the adapter."""
    run, _ = make_run()
    serve, _, ask = vllm_command(run).partition("\n\n")
    assert shlex.split(serve)[:3] == ["vllm", "serve", run.report["model"]]
    assert option(serve, "--tokenizer") == str(run.adapter)
    name, _, adapter = option(serve, "--lora-modules").partition("=")
    assert adapter == str(run.adapter)
    assert option(serve, "--max-lora-rank") == "8"  # the rank is 4, and 8 the least that vLLM takes
    assert json.loads(option(ask, "-d"))["model"] == name


def test_the_dial_is_one_more_rank_at_the_same_scale(dialled_run: Path, tmp_path: Path) -> None:
    """A run with a dial has one matrix of another rank, which vLLM takes: the rank asked for holds it, and its scale is
    that of all others."""
    run = open_finished(dialled_run)
    config = json.loads((run.adapter / "adapter_config.json").read_text())
    assert list(config["rank_pattern"].values()) == [config["r"] + 1]
    assert int(option(vllm_command(run), "--max-lora-rank")) >= config["r"] + 1


def changed(run: FinishedRun, tensors: dict[str, Any] | None = None, **config: Any) -> FinishedRun:
    """The run with other entries in its adapter's configuration and further tensors in its file."""
    file = run.adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    if tensors:
        weights = load_tensors(run.adapter / "adapter_model.safetensors", "")
        save_tensors(weights | tensors, run.adapter / "adapter_model.safetensors")
    return run


NORM = "base_model.model.model.layers.0.input_layernorm.weight"
HEAD = "base_model.model.lm_head"
DOWN = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("tensors", "config", "why"),
    [
        ({}, {"modules_to_save": ["lm_head"]}, r"modules_to_save is \['lm_head'\]"),
        ({}, {"use_dora": True}, "use_dora is True"),
        ({}, {"bias": "lora_only"}, "bias is 'lora_only'"),
        ({NORM: torch.ones(64)}, {}, f"tensors besides those of LoRA, such as {NORM}"),
        ({f"{HEAD}.lora_A.weight": torch.ones(4, 64), f"{HEAD}.lora_B.weight": torch.ones(384, 4)}, {}, "lm_head"),
        ({f"base_model.model.{DOWN}.lora_A.weight": torch.ones(520, 128)}, {}, "its rank is 520, and 512 the most"),
        ({}, {"alpha_pattern": {DOWN: 8}}, "another scale"),
    ],
)
def test_what_vllm_does_not_take_is_refused(
    tensors: dict[str, Any], config: dict[str, Any], why: str, make_run: MakeRun
) -> None:
    """Each limit is named, with merged weights as the way out."""
    run = changed(make_run()[0], tensors, **config)
    with pytest.raises(UserError, match=rf"cannot serve .*{why}.* --to merged, then vllm serve"):
        vllm_command(run)
