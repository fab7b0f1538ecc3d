"""General ability: the loss on held-out answers, and multiple choice by log-likelihood.

Alignment can cost general ability; these two numbers, before and after, say how much. For the usual suites use
lm-evaluation-harness (docs/measuring.md).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from dcr_lite.data.rows import Choice, Conversation
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED
from dcr_lite.measure.metrics import wilson_interval
from dcr_lite.model.answer_tokens import answer_places, log_probabilities
from dcr_lite.model.chat import encode_prompts, encode_rows
from dcr_lite.model.hidden_states import adding, final_states
from dcr_lite.model.in_passes import in_passes
from dcr_lite.model.loading import Model, require_finite
from dcr_lite.model.packing import shared_prefix

HELD_OUT_INSTRUCTIONS = SHIPPED / "heldout_instructions.jsonl"
TOKENS_PER_PASS = 2048


def log_likelihoods(model: Model, rows: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """The log-probability (answer tokens,) of each answer token given the tokens before it, for each row of (prompt
    ids, answer ids)."""
    passes = model.passes([prompt + end for prompt, end in rows], TOKENS_PER_PASS)
    return in_passes(passes, lambda part: _together(model, [rows[i] for i in part]))


def answer_states(model: Model, rows: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """In one forward pass, over rows of (prompt ids, answer ids): the states from which the answer tokens are
    predicted, after the final norm (tokens, d_model), and those tokens (tokens,). A prefix that all prompts share is
    computed once where the model packs."""
    whole = [prompt + end for prompt, end in rows]
    prefix = min(shared_prefix(whole), min(len(prompt) for prompt, _ in rows) - 1)
    batch = model.batch(whole, prefix)
    places, targets = answer_places(batch, rows)
    steering = model.steering([prompt for prompt, _ in rows]) if model.steering else {}
    with model.compute(), adding(model.network, steering, places.split([len(end) for _, end in rows])):
        # Steering adds to places of the whole sequence, so the last layer has to compute all of them.
        states = final_states(model.network, batch)[places] if steering else final_states(model.network, batch, places)
    return states, targets


def _together(model: Model, rows: list[tuple[list[int], list[int]]]) -> list[Tensor]:
    """The same in one forward pass."""
    log_p = log_probabilities(model, *answer_states(model, rows)).cpu()
    return list(require_finite(model, log_p, "log-probabilities of answers").split([len(end) for _, end in rows]))


def answer_loss(
    model: Model, rows: list[Conversation], progress: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """{answer_loss, answers, tokens}: mean cross-entropy of the given answers, in nats per token."""
    model.set_training(False)
    encoded = encode_rows(model.tokenizer, rows, model.window)
    total = 0.0
    for part in model.passes([prompt + end for prompt, end in encoded], TOKENS_PER_PASS):
        total -= sum(x.double().sum().item() for x in log_likelihoods(model, [encoded[i] for i in part]))
        progress(len(part))
    tokens = sum(len(end) for _, end in encoded)
    return {"answer_loss": total / tokens, "answers": len(rows), "tokens": tokens}


def multiple_choice(
    model: Model, questions: list[Choice], progress: Callable[[int], None] = lambda done: None
) -> dict[str, Any]:
    """{accuracy, ci95, n, chance}: how often the right choice has the highest log-probability per character as the
    answer to the question alone (the cloze form; Gu et al., 2024, arXiv 2406.08446). This also works for small models,
    which cannot pick a letter from a list.

    Raises UserError for a question that is too long for the model.
    """
    model.set_training(False)
    prompts = encode_prompts(model.tokenizer, [q.question for q in questions], model.window)
    right = 0
    for question, prompt in zip(questions, prompts, strict=True):
        ends = model.tokenizer(list(question.choices), add_special_tokens=False)["input_ids"]
        if len(prompt) + max(map(len, ends)) > model.window:
            raise UserError(f"the question {question.question[:60]!r}... is too long for the model; leave it out")
        log_p = log_likelihoods(model, [(prompt, end) for end in ends])
        scores = [x.sum().item() / len(choice) for x, choice in zip(log_p, question.choices, strict=True)]
        right += max(range(len(scores)), key=scores.__getitem__) == question.answer
        progress(1)
    n = len(questions)
    chance = sum(1 / len(q.choices) for q in questions) / n
    return {"accuracy": right / n, "ci95": list(wilson_interval(right, n)), "n": n, "chance": chance}
