"""An NVIDIA card that cannot be used stops a command with the cure; nothing begins on the CPU instead of it."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import flags, run_here, save_rows

from dcr_lite.errors import UserError
from dcr_lite.model import cuda, loading
from dcr_lite.model.loading import Model
from dcr_lite.run.opening import machine
from dcr_lite.settings import ModelSettings


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """pretend(card=, built=, driver=) -> a machine with a card or without, torch built for a version of CUDA or for
    none, and a driver of which nvidia's own file tells."""

    def here(card: bool, built: str | None, driver: str = "550.54.15") -> None:
        file = tmp_path / "version"
        if card:
            file.write_text(f"NVRM version: NVIDIA UNIX x86_64 Kernel Module  {driver}  Tue Mar  5 22:23:56 UTC 2024\n")
        monkeypatch.setattr(cuda, "LINUX_DRIVER", file)
        monkeypatch.setattr(cuda.shutil, "which", lambda name: None)
        monkeypatch.setattr(torch.version, "cuda", built)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    return here


@pytest.mark.parametrize("device", ["auto", "cuda"])
@pytest.mark.parametrize(("built", "needed"), [("13.0", "580"), ("12.8", "525"), ("14.0", "580")])
def test_an_old_driver_is_named_with_the_one_that_is_needed(
    pretend: Callable[..., None], built: str, needed: str, device: str
) -> None:
    """The driver that is there, the driver that this torch needs, and the way on without the card."""
    pretend(card=True, built=built, driver="470.57.02")
    with pytest.raises(UserError, match=rf"driver 470\.57\.02: it needs driver {needed} or newer.*--device cpu"):
        machine(ModelSettings(model="any", device=device))  # type: ignore[arg-type]


def test_a_torch_without_cuda_beside_a_card_is_named(pretend: Callable[..., None]) -> None:
    """Installed from the wrong place: the cure is another torch, not another driver."""
    pretend(card=True, built=None)
    with pytest.raises(UserError, match=r"built without CUDA. Install a CUDA build.*--device cpu"):
        machine(ModelSettings(model="any"))


def test_a_recipe_stops_before_anything_is_loaded(
    pretend: Callable[..., None], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """The sentence, exit status 1, and no stage; with --device cpu it goes on."""
    pretend(card=True, built="13.0")
    rows = save_rows(tmp_path / "rows")
    few = {"contrastive_steps": 1, "stage2": "no", "compare_with": [], "evaluation": rows / "plain.jsonl"}
    argv = flags(tiny_folder("llama"), rows, tmp_path / "run", **few)
    on_auto = [word for word in argv if word not in ("--device", "cpu")]
    done = run_here(on_auto)
    assert done.code == 1
    assert done.err.startswith("\nerror: an NVIDIA card is there, and torch ")
    assert "Stage 1" not in done.out
    assert run_here([*argv, "--resume"]).code == 0


def test_without_a_card_the_cpu_is_what_there_is(pretend: Callable[..., None]) -> None:
    """torch for Linux comes with CUDA wherever it is installed: that alone is no sign of a card."""
    pretend(card=False, built="13.0")
    assert machine(ModelSettings(model="any")).device == "cpu"
    with pytest.raises(UserError, match=r"--device cuda: torch sees no CUDA GPU"):
        machine(ModelSettings(model="any", device="cuda"))


@pytest.mark.parametrize(
    ("capability", "built_for", "fits"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90", "compute_120"], False),
        ((6, 1), ["sm_75"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((9, 0), ["sm_75", "sm_80", "sm_90"], True),
        ((8, 9), ["sm_75", "sm_86"], True),  # runs what was built for earlier cards of its major version
        ((8, 0), ["sm_75", "sm_86"], False),
        ((12, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((12, 0), ["sm_75", "sm_80", "sm_90", "compute_90"], True),  # PTX, which is compiled for any later card
        ((9, 0), ["sm_75", "sm_80", "sm_90a"], True),
        ((7, 0), [], True),  # a build that does not say
    ],
)
def test_a_card_without_kernels_is_named(capability: tuple[int, int], built_for: list[str], fits: bool) -> None:
    """CUDA 13 has none for capability 7.0 and below, and CUDA 12.6 none for 12.0: torch would find the card and fail at
    the first product."""
    said = cuda._missing_kernels(capability, built_for)
    assert (said is None) == fits
    if said:
        assert f"capability {capability[0]}.{capability[1]}" in said
        if capability < (7, 5):
            assert "has kernels from 7.5 on. Install a torch built for an older CUDA" in said
        else:
            assert re.search(r"has kernels up to \d\.\d and none for it. Install a torch built for a newer CUDA", said)
        assert "--device cpu" in said


@pytest.mark.parametrize(
    ("model", "capability", "asked", "precision"),
    [
        ("gemma3", (7, 5), "auto", torch.float32),
        ("unsloth/gemma-3-4b-it", (7, 5), "auto", torch.float32),
        ("gemma3", (7, 5), "float16", torch.float16),
        ("gemma3", (8, 0), "auto", torch.bfloat16),
        ("gemma2", (7, 5), "auto", torch.float16),
        ("qwen3", (7, 5), "auto", torch.float16),
    ],
)
def test_a_model_that_outgrows_float16_does_without(
    tiny_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, model: str, capability: tuple[int, int],
    asked: str, precision: torch.dtype,
) -> None:  # fmt: skip
    """On a card without bfloat16 Gemma 3 computes in float32 unless float16 is asked for; other models do not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(cuda, "obstacle", lambda: None)
    name = model if "/" in model else str(tiny_folder(model))
    assert machine(ModelSettings(model=name, device="cuda", precision=asked)).precision == precision  # type: ignore[arg-type]


def test_attention_that_spoils_gradients_is_off_on_a_card(tiny_model: Callable[..., Model]) -> None:
    """cuDNN's, whose gradients are NaN on some cards where rows have a mask; on a CPU nothing is changed."""
    network, before = tiny_model().network, torch.backends.cuda.cudnn_sdp_enabled()
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        loading.prepare(network, "cpu", four_bit=False)
        assert torch.backends.cuda.cudnn_sdp_enabled()
        loading.prepare(network, "cuda", four_bit=False)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_card_that_is_hidden_is_no_obstacle(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    """Whoever hides it wants the CPU; nothing is wrong with the driver."""
    pretend(card=True, built="13.0")
    assert "it needs driver 580" in str(cuda.obstacle())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert cuda.obstacle() is None


def test_nvidia_smi_tells_the_driver_where_the_file_is_missing(
    pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On Windows and in containers; a broken one tells nothing, and is no obstacle to the message."""
    pretend(card=False, built="13.0")
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 551.23\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(cuda.shutil, "which", lambda name: str(tool))
    assert cuda.card_is_there()
    assert cuda.driver_version() == "551.23"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert cuda.driver_version() is None
    assert "driver of unknown version" in str(cuda.obstacle())
