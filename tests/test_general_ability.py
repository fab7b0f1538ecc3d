"""Claims about what a model still knows: log-likelihoods are those of each row alone, and the two numbers follow."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import PROMPTS, add_random_adapter, assert_close, assert_far, random_rows

from dcr_lite.data.rows import Choice, Conversation
from dcr_lite.errors import UserError
from dcr_lite.measure import general_ability
from dcr_lite.measure.general_ability import answer_loss, log_likelihoods, multiple_choice
from dcr_lite.model.adapters import stock
from dcr_lite.model.chat import encode_conversations, encode_prompts
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
Row = tuple[list[int], list[int]]

ROWS: dict[str, list[Row]] = {
    "a shared prefix": list(zip(random_rows([5, 1, 9], shared=7), random_rows([4, 30, 1], seed=1), strict=True)),
    "nothing shared": [([300], [5]), ([301, 4, 4], [7, 8, 9])],
    "one prompt, answers alike": [([3, 4, 5], [6, 7, end]) for end in (8, 9, 10)],
    "one row": [([3, 4, 5], [6, 7])],
}
TALKS = [Conversation(prompt, " ".join(["The cat sat on the mat."] * (1 + i % 3))) for i, prompt in enumerate(PROMPTS)]
QUESTIONS = [
    Choice("How do I shoot a portrait?", ("Without a flash.", "The cat.", "I can't help with that."), 0),
    Choice("Who watched the rain?", ("the cat", "a process", "Python", "assistant"), 2),
    Choice("Name three.", ("a", "The cat sat on the mat and watched the rain, which fell all afternoon."), 1),
]


def alone(reference: Any, row: Row) -> torch.Tensor:
    """Log-probabilities of an answer's tokens by transformers itself, one row at a time."""
    prompt, end = row
    logits = reference(input_ids=torch.tensor([prompt + end]), use_cache=False).logits[0].float()
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return log_p.gather(1, torch.tensor(end)[:, None])[:, 0]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gemma2"])
@pytest.mark.parametrize("shape", ROWS)
def test_log_likelihoods_are_those_of_each_row_alone(
    architecture: str, shape: str, tiny_model: MakeModel, reference: Callable[..., Any]
) -> None:
    """Packed or padded, with what is shared computed once: the numbers of transformers itself, row by row."""
    model, plain = tiny_model(architecture), reference(architecture)
    assert_close(log_likelihoods(model, ROWS[shape]), [alone(plain, row) for row in ROWS[shape]], 1e-4)


def test_the_active_adapter_is_measured(tiny_model: MakeModel) -> None:
    """An adapter moves the numbers; without it they are the stock model's."""
    rows = ROWS["a shared prefix"]
    model = tiny_model()
    before = torch.cat(log_likelihoods(model, rows))
    add_random_adapter(model)
    assert_far(torch.cat(log_likelihoods(model, rows)), before)
    with stock(model):
        assert_close(torch.cat(log_likelihoods(model, rows)), before)


def test_steering_reaches_the_answer_s_tokens_and_no_others(
    tiny_model: MakeModel, reference: Callable[..., Any]
) -> None:
    """A steered model is measured steered, from the prompt's last token on, as if it were added by hand."""
    rows, layer = ROWS["a shared prefix"], 1
    model, plain = tiny_model(), reference()
    vectors = torch.randn(len(rows), 64, generator=torch.Generator().manual_seed(0))
    expected = []
    for row, vector in zip(rows, vectors, strict=True):

        def add(_module: Any, _inputs: Any, output: Any, first: int = len(row[0]) - 1, vector: Any = vector) -> Any:
            states = output.clone()
            states[:, first:] += vector
            return states

        handle = plain.model.layers[layer].register_forward_hook(add)
        expected.append(alone(plain, row))
        handle.remove()
    unsteered = log_likelihoods(model, rows)
    model.steering = lambda prompts: {layer: vectors} if prompts == [prompt for prompt, _ in rows] else {}
    steered = log_likelihoods(model, rows)
    assert_close(steered, expected, 1e-4)
    assert_far(torch.cat(steered), torch.cat(unsteered))


def test_answer_loss_is_the_mean_over_all_answer_tokens(
    tiny_model: MakeModel, reference: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long answers weigh more, the end of the turn counts, and neither order nor the size of passes matters."""
    model, plain = tiny_model(), reference()
    encoded = encode_conversations(model.tokenizer, [t.prompt for t in TALKS], [t.response for t in TALKS], 512)
    by_hand = torch.cat([alone(plain, row) for row in encoded])
    result = answer_loss(model, TALKS)
    assert result == {
        "answer_loss": pytest.approx(-by_hand.mean().item(), rel=1e-4),
        "answers": 7,
        "tokens": len(by_hand),
    }
    done: list[int] = []
    monkeypatch.setattr(general_ability, "TOKENS_PER_PASS", 100)
    again = answer_loss(model, TALKS[::-1], done.append)
    assert again["answer_loss"] == pytest.approx(result["answer_loss"], rel=1e-5)
    assert len(done) > 1
    assert sum(done) == len(TALKS)


def test_the_choice_is_the_likeliest_for_its_length(tiny_model: MakeModel, reference: Callable[..., Any]) -> None:
    """Accuracy is that of the choice with the highest log-probability per character, question by question."""
    model, plain = tiny_model(), reference()
    by_length, by_sum = [], []
    for question in QUESTIONS:
        (prompt,) = encode_prompts(model.tokenizer, [question.question], 512)
        ends = model.tokenizer(list(question.choices), add_special_tokens=False)["input_ids"]
        sums = [alone(plain, (prompt, end)).sum().item() for end in ends]
        scaled = [total / len(choice) for total, choice in zip(sums, question.choices, strict=True)]
        by_length.append(scaled.index(max(scaled)))
        by_sum.append(sums.index(max(sums)))
    assert by_length != by_sum, "the length does not matter here, so this test would pass without it"
    asked = [replace(question, answer=answer) for question, answer in zip(QUESTIONS, by_length, strict=True)]
    result = multiple_choice(model, asked)
    assert (result["accuracy"], result["n"]) == (1, 3)
    assert result["chance"] == pytest.approx((1 / 3 + 1 / 4 + 1 / 2) / 3)
    wrong = [*asked[:2], replace(asked[2], answer=1 - asked[2].answer)]
    result = multiple_choice(model, wrong)
    assert result["accuracy"] == pytest.approx(2 / 3)
    assert result["ci95"][0] < 2 / 3 < result["ci95"][1]


def test_a_question_too_long_for_the_model_is_named(tiny_model: MakeModel) -> None:
    """The tiny model's window has 512 tokens."""
    with pytest.raises(UserError, match="too long for the model"):
        multiple_choice(tiny_model(), [Choice("Name one.", ("cat", "cat " * 600), 0)])
