"""Claims about what the first token of an answer costs, and what one more does."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from tiny_models import PROMPTS

from dcr_lite.compare import adacd, inference_cost
from dcr_lite.compare.inference_cost import TRIES, answer_costs
from dcr_lite.model import decoding, generation
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import Answer, Choose
from dcr_lite.model.loading import REFUSING_OPENINGS, Model
from dcr_lite.settings import Settings

MakeModel = Callable[..., Model]
TOKENS = Settings.answer_tokens


@pytest.fixture(autouse=True)
def _whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kit measures, where other tests measure less."""
    monkeypatch.setattr(inference_cost, "TRIES", TRIES)


def test_a_token_costs_what_further_tokens_take_longer_in_the_quickest_tries(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the prompts is no part of it, but of the first token; a try that other work slowed is of neither, nor are
    tokens that never came."""
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
    costs = answer_costs(tiny_model(), PROMPTS, TOKENS)
    assert costs == pytest.approx({"first_token_ms": 2000 / len(PROMPTS) + 250, "token_ms": 250})
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
    assert answer_costs(model, PROMPTS, TOKENS).keys() == {"first_token_ms", "token_ms"}
    assert lengths == {1, TOKENS}


def test_no_refusal_is_looked_for_while_tokens_are_timed(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the kit reads of a prompt beside its answer would count as part of the first token, and of none of those
    methods that a user runs; afterwards openings are as before, whether it ends well or not."""
    model = tiny_model()
    monkeypatch.setattr(decoding, "_states_after", None)  # what reads behind openings
    with adacd.AdaCD(4.5, 1.0, 0).contrasting(model):
        assert answer_costs(model, PROMPTS, 2)
    assert answer_costs(model, PROMPTS, 2)
    assert model.openings == REFUSING_OPENINGS
    monkeypatch.setattr(inference_cost, "answer", None)
    with pytest.raises(TypeError):
        answer_costs(model, PROMPTS, 2)
    assert model.openings == REFUSING_OPENINGS


def test_a_real_model_takes_time_for_a_token(tiny_model: MakeModel) -> None:
    """One that ends every answer at once has no cost of a token; nor is there one without prompts."""
    model = tiny_model()
    costs = answer_costs(model, PROMPTS, TOKENS)
    assert 0 < costs["first_token_ms"] < 1000
    assert 0 < costs["token_ms"] < 1000
    assert answer_costs(model, PROMPTS, 1).keys() == {"first_token_ms"}
    model.network.generation_config.eos_token_id = list(range(len(model.tokenizer)))
    assert answer_costs(model, PROMPTS, TOKENS) == answer_costs(model, [], TOKENS) == {}
    assert TOKENS > 10  # more than a contrast of the first ten tokens
