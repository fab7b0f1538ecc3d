"""A model that reads pictures beside texts, as Gemma 3 4B does: its decoder is used as any other, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from finished_runs import MakeRun, divergence, logits, rounded
from llama_cpp import llama_cpp
from peft import PeftModel
from tiny_models import (
    ADAPTER,
    PROMPTS,
    add_random_adapter,
    assert_close,
    assert_far,
    full_states,
    load_reference,
    random_rows,
)

from dcr_lite.check import rows as rows_check
from dcr_lite.export.command import export_gguf, export_merged
from dcr_lite.model.adapters import add_adapter, save_adapter, train_only
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import depth, prompt_states
from dcr_lite.model.loading import Model
from dcr_lite.model.shapes import shape_of

KIND = "gemma3_pictures"


@torch.no_grad()
def test_states_and_answers_are_those_of_transformers(
    tiny_model: Callable[..., Model], reference: Callable[..., Any]
) -> None:
    """The last token's state at every layer and greedy answers, behind windows shorter than the rows: a model whose
    configuration hides them in a part of itself is not packed."""
    model, plain = tiny_model(KIND), reference(KIND)
    rows = random_rows([12, 30, 2], shared=6)
    assert not model.packs
    assert model.window == 512
    assert depth(model.network) == 6
    for layer in range(5):
        states = prompt_states(model.network, model.batch(rows), layer)
        assert_close(states, torch.stack([full_states(plain, row, layer)[-1] for row in rows]))
    for row, said in zip(rows, answer(model, rows, 6), strict=True):
        whole = plain.generate(torch.tensor([row]), max_new_tokens=6, do_sample=False, pad_token_id=2)[0].tolist()
        assert list(said.ids) == [t for t in whole[len(row) :] if t != model.tokenizer.eos_token_id]


def test_the_adapter_is_on_the_decoder_alone(tiny_model: Callable[..., Model], tmp_path: Path) -> None:
    """On its seven maps a layer, a second adapter as well; peft loads what was saved onto the library's own model."""
    model = tiny_model(KIND)
    add_random_adapter(model)
    add_adapter(model, "second", rank=4, seed=1)
    for name in (ADAPTER, "second"):
        keys = [key for key, _ in model.network.named_parameters() if f".lora_A.{name}." in key]
        assert len(keys) == 6 * 7
        assert all(".language_model.layers." in key for key in keys)
        assert len(train_only(model, name, [0])) == 2 * 7
    save_adapter(model, ADAPTER, tmp_path / "adapter")
    model.network.set_adapter(ADAPTER)
    row = random_rows([20])[0]
    found = PeftModel.from_pretrained(load_reference(Path(model.network.config._name_or_path)), tmp_path / "adapter")
    assert_close(logits(found.eval(), row), logits(model.network.eval(), row), 1e-4)


def test_the_shape_is_the_decoders(tiny_folder: Callable[..., Path], tiny_model: Callable[..., Model]) -> None:
    """What is planned for: the pictures' part is left out."""
    shape = shape_of(str(tiny_folder(KIND)))
    decoder = tiny_model(KIND).network.get_decoder()
    assert (shape.layers, shape.norms, shape.head_norms, shape.tied) == (6, 4, True, True)
    assert rows_check._load(str(tiny_folder(KIND)), from_hub=False)[1] == tiny_model(KIND).window
    assert shape.parameters == sum(p.numel() for p in decoder.parameters() if p.dim() == 2)


def test_exports_hold_the_merged_decoder(make_run: MakeRun) -> None:
    """A merged folder answers as model and adapter do; llama.cpp, for which the pictures' part is left out, gives every
    next token the same probability."""
    run, model = make_run(KIND)
    row = encode_prompts(model.tokenizer, PROMPTS[:1], model.window)[0]
    found = load_reference(export_merged(run))
    assert_close(logits(found, row), logits(model.network, row), 1e-4)
    with model.network.disable_adapter():
        assert_far(logits(found, row), logits(model.network, row))
    expected = rounded(found)
    size = expected.config.get_text_config().vocab_size
    with llama_cpp(export_gguf(run)) as served:
        theirs = served.log_probabilities(row, size)
    assert divergence(logits(expected, row)[-1:], theirs[None]) < 1e-4
