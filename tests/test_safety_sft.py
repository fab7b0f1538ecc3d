"""Stage 2 on tiny models: its loss and gradients are those of transformers on padded rows, whatever is left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dcr_lite.data.rows import Conversation
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model import adapters, answer_tokens
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.hidden_states import decoder_of

ROWS = [
    Conversation("what is a lamp?", "a thing that gives light"),
    Conversation("name a bird", "the wren is a small brown bird with a loud voice"),
    Conversation("hello", "hi"),
    Conversation("write about rain and snow and wind over the road", "rain falls, snow drifts, wind blows"),
]
MakeModel = Callable[..., Any]


@dataclass
class OneStep:
    """The loss and the gradients of a step."""

    loss: float
    gradients: dict[str, Tensor]


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


def one_step(model: Any, above: int) -> OneStep:
    """What safety SFT computes in a step over all rows, the adapter moved off its zero start."""
    adapters.add_adapter(model, "test", rank=4, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)
    config = SafetySFTConfig(above=above, epochs=1, batch_size=len(ROWS), learning_rate=1e-3)
    loss = SafetySFT("stage2", model, "test", ROWS, config, seed=0).step(0)
    return OneStep(loss, gradients(model))


def by_transformers(model: Any) -> OneStep:
    """The same step as transformers computes it: full logits of right-padded rows, prompts masked out of the loss."""
    prompts, answers = [r.prompt for r in ROWS], [r.response for r in ROWS]
    rows = encode_conversations(model.tokenizer, prompts, answers, model.window)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), model.tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt + answer)] = torch.tensor(prompt + answer)
        mask[i, : len(prompt + answer)] = 1
        labels[i, len(prompt) : len(prompt + answer)] = torch.tensor(answer)
    model.network.zero_grad()
    loss = model.network(input_ids=ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    return OneStep(loss.item(), gradients(model))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("above", [-1, 0], ids=["all layers", "above layer 0"])
@pytest.mark.parametrize("small_passes", [False, True])
def test_a_step_is_that_of_transformers(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, architecture: str, above: int, small_passes: bool
) -> None:
    """Loss and adapter gradients to 1e-5, with stored states or without, in one pass or several."""
    model = tiny_model(architecture)
    if small_passes:
        model.tokens_per_pass = 40
        monkeypatch.setattr(answer_tokens, "LOGITS_PER_PASS", 3)
    ours = one_step(model, above)
    theirs = by_transformers(model)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert len(ours.gradients) > 0
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_layers_above_get_gradients(tiny_model: MakeModel) -> None:
    """Above layer 0 of a model, every gradient belongs to a later layer and every later layer has some."""
    model = tiny_model()
    step = one_step(model, 0)
    depth = len(decoder_of(model.network).layers)
    trained = {i for i in range(depth) for name in step.gradients if f".layers.{i}." in name}
    assert trained == set(range(1, depth))
    assert all(".layers." in name for name in step.gradients)
