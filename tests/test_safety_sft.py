"""Stage 2 on tiny models: its loss and gradients are those of transformers on padded rows, whatever is left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from dcr_lite import backend, safety_sft
from dcr_lite.chat import encode_conversations
from dcr_lite.data import Conversation
from dcr_lite.hidden_states import decoder_of
from dcr_lite.safety_sft import SafetySFT

ROWS = [
    Conversation("what is a lamp?", "a thing that gives light"),
    Conversation("name a bird", "the wren is a small brown bird with a loud voice"),
    Conversation("hello", "hi"),
    Conversation("write about rain and snow and wind over the road", "rain falls, snow drifts, wind blows"),
]
MakeModel = Callable[..., Any]


@dataclass
class OneStep:
    """In place of the training loop: the loss and the gradients of the first step."""

    loss: float
    gradients: dict[str, Tensor]


def one_step(model: Any, above: int, monkeypatch: pytest.MonkeyPatch) -> OneStep:
    """What stage 2 computes in a step over all ROWS, the adapter moved off its zero start."""
    backend.add_adapter(model, "test", rank=4, seed=0)
    torch.manual_seed(1)
    for name, parameter in model.network.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.05)

    class Loop:
        def __init__(self, **kwargs: Any):
            self.backward = kwargs["backward"]

        def run(self) -> Any:
            loss = self.backward(0)
            named = model.network.named_parameters()
            return OneStep(loss, {name: p.grad.clone() for name, p in named if p.grad is not None})

    monkeypatch.setattr(safety_sft, "Loop", Loop)
    how = SafetySFT(above=above, epochs=1, batch_size=len(ROWS), learning_rate=1e-3)
    done: Any = safety_sft.safety_sft(model, "test", ROWS, how, seed=0)
    return done


def by_transformers(model: Any) -> OneStep:
    """The same step as transformers computes it: full logits of right-padded rows, prompts masked out of the loss."""
    rows = encode_conversations(model.tokenizer, [r.prompt for r in ROWS], [r.response for r in ROWS], model.window)
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
    named = model.network.named_parameters()
    return OneStep(loss.item(), {name: p.grad.clone() for name, p in named if p.grad is not None})


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
        monkeypatch.setattr(safety_sft, "LOGITS_PER_PASS", 3)
    ours = one_step(model, above, monkeypatch)
    theirs = by_transformers(model)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert ours.gradients.keys() == theirs.gradients.keys()
    assert len(ours.gradients) > 0
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_only_layers_above_get_gradients(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above layer 0 of a model, every gradient belongs to a later layer and every later layer has some."""
    model = tiny_model()
    step = one_step(model, 0, monkeypatch)
    depth = len(decoder_of(model.network).layers)
    trained = {i for i in range(depth) for name in step.gradients if f".layers.{i}." in name}
    assert trained == set(range(1, depth))
    assert all(".layers." in name for name in step.gradients)
