"""Stage 2 on tiny models: its loss and gradients are those of transformers on padded rows, whatever is left out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import kl_div

from dcr_lite.data.rows import Conversation
from dcr_lite.method import safety_sft
from dcr_lite.method.safety_sft import SafetySFT
from dcr_lite.model import adapters
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
    """In place of the training loop: the loss and the gradients of the first step."""

    loss: float
    gradients: dict[str, Tensor]


def one_step(
    model: Any, above: int, monkeypatch: pytest.MonkeyPatch, rows: list[Conversation] = ROWS, keep: float = 0.0
) -> OneStep:
    """What stage 2 computes in a step over all rows, the adapter moved off its zero start."""
    adapters.add_adapter(model, "test", rank=4, seed=0)
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
    how = SafetySFT(above=above, epochs=1, batch_size=len(rows), learning_rate=1e-3, keep=keep)
    done: Any = safety_sft.safety_sft(model, "test", rows, how, seed=0)
    return done


def by_transformers(model: Any, conversations: list[Conversation] = ROWS, keep: float = 0.0) -> OneStep:
    """The same step as transformers computes it: full logits of right-padded rows, prompts masked out of the loss, and
    the divergence from the stock model by torch's own ``kl_div``."""
    prompts, answers = [r.prompt for r in conversations], [r.response for r in conversations]
    rows = encode_conversations(model.tokenizer, prompts, answers, model.window)
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.full((len(rows), width), model.tokenizer.pad_token_id)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : len(prompt + answer)] = torch.tensor(prompt + answer)
        mask[i, : len(prompt + answer)] = 1
        labels[i, len(prompt) : len(prompt + answer)] = torch.tensor(answer)
    model.network.zero_grad()
    out = model.network(input_ids=ids, attention_mask=mask, labels=labels)
    loss = out.loss
    if keep:
        with torch.no_grad(), adapters.stock(model):
            before = model.network(input_ids=ids, attention_mask=mask).logits
        general = torch.tensor([not c.refuses for c in conversations])[:, None] & (labels != -100)
        now, then = (logits[:, :-1][general[:, 1:]].log_softmax(-1) for logits in (out.logits, before))
        loss = loss + keep * kl_div(now, then, reduction="sum", log_target=True) / (labels != -100).sum()
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


@pytest.mark.parametrize("above", [-1, 0], ids=["all layers", "above layer 0"])
@pytest.mark.parametrize("small_passes", [False, True])
def test_the_divergence_from_the_stock_model_is_torchs(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, above: int, small_passes: bool
) -> None:
    """Over general rows alone: a refusal has to move away from what the stock model says."""
    rows = [*ROWS, Conversation("harm him", "sorry, not that", refuses=True)]
    model = tiny_model()
    if small_passes:
        model.tokens_per_pass = 40
        monkeypatch.setattr(safety_sft, "LOGITS_PER_PASS", 3)
        monkeypatch.setattr(safety_sft, "STOCK_ROWS", 2)
    ours = one_step(model, above, monkeypatch, rows, keep=0.7)
    theirs = by_transformers(model, rows, keep=0.7)
    without = by_transformers(model, rows)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-5)
    assert abs(ours.loss - without.loss) > 1e-3 * without.loss
    assert ours.gradients.keys() == theirs.gradients.keys()
    for name, gradient in theirs.gradients.items():
        torch.testing.assert_close(ours.gradients[name], gradient, rtol=1e-4, atol=1e-6, msg=name)
