"""Claims about what a token of an answer costs."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import PROMPTS

from dcr_lite.compare import inference_cost
from dcr_lite.compare.inference_cost import TOKENS, TRIES, token_seconds
from dcr_lite.model import generation
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import Answer, Choose
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kit measures, where other tests measure less."""
    monkeypatch.setattr(inference_cost, "TRIES", TRIES)
    monkeypatch.setattr(inference_cost, "TOKENS", TOKENS)


def test_a_token_costs_what_further_tokens_take_longer_in_the_quickest_tries(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the prompts is no part of it, nor is a try that other work slowed, nor tokens that never came."""
    clock, given = [0.0], 0
    slowed = [5.0, 0.0, 1.0]  # of the tries of either kind

    def answer(model: Model, rows: list[list[int]], tokens: int, choose: Choose) -> list[Answer]:
        nonlocal given
        ids = [tuple(range(min(tokens, 3 + i))) for i in range(len(rows))]  # the first one ends after three
        clock[0] += 2.0 + 0.25 * sum(map(len, ids)) + slowed[given % TRIES]
        given += 1
        return [Answer("", 0.0, True, own) for own in ids]

    monkeypatch.setattr(inference_cost, "answer", answer)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert token_seconds(tiny_model(), PROMPTS) == pytest.approx(0.25)
    assert given == 2 * TRIES


def test_no_answer_ends_while_tokens_are_timed(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model whose answers end early, too: a batch that shrinks would make each token dearer."""
    model, lengths = tiny_model(), set[int]()
    said = generation.answer(model, encode_prompts(model.tokenizer, PROMPTS, model.window), TOKENS)
    model.network.generation_config.eos_token_id = [one.ids[1] for one in said[:2]]

    def noted(*given: Any, **more: Any) -> list[Answer]:
        found = generation.answer(*given, **more)
        lengths.update(len(one.ids) for one in found)
        return found

    monkeypatch.setattr(inference_cost, "answer", noted)
    assert token_seconds(model, PROMPTS) is not None
    assert lengths == {1, TOKENS}


def test_a_real_model_takes_time_for_a_token(tiny_model: MakeModel) -> None:
    """One that ends every answer at once has no cost of a token; nor is there one without prompts."""
    model = tiny_model()
    seconds = token_seconds(model, PROMPTS)
    assert seconds is not None
    assert 0 < seconds < 1
    model.network.generation_config.eos_token_id = list(range(len(model.tokenizer)))
    assert token_seconds(model, PROMPTS) is None
    assert token_seconds(model, []) is None
    assert TOKENS > 10  # more than a contrast of the first ten tokens
