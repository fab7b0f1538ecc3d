"""Claims about the prompt cache: with it a dial reads and answers the same, and the layers below it run once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product

import pytest
import torch
from tiny_models import ADAPTER, OPENINGS, PACKABLE, PADDED, add_random_adapter, random_rows

from dcr_lite.method.dial import Dial, turned
from dcr_lite.model import prompt_cache
from dcr_lite.model.generation import Answer, answer
from dcr_lite.model.hidden_states import decoder_of, width_of
from dcr_lite.model.loading import Model
from dcr_lite.model.prompt_cache import PromptCache

MakeModel = Callable[..., Model]
LAYER = 2
ROWS = random_rows([5, 1, 9, 5, 30, 2], shared=11)
STRENGTHS = (0.5, -1.0, 0.5)


def with_dial(tiny_model: MakeModel, architecture: str) -> tuple[Model, Dial]:
    """A tiny model, whose batches are of three prompts, with an adapter and a random dial."""
    model = tiny_model(architecture)
    model.openings, model.prompts_at_once = OPENINGS, 3
    add_random_adapter(model)
    random = torch.Generator().manual_seed(0)
    width = decoder_of(model.network).layers[LAYER].mlp.down_proj.in_features
    vectors = [torch.randn(n, generator=random) for n in (width_of(model.network), width, width)]
    return model, Dial(LAYER, *vectors)


@contextmanager
def cached(model: Model, layer: int = LAYER) -> Iterator[None]:
    model.prompt_cache = PromptCache(layer)
    yield
    model.prompt_cache = None


def answers(model: Model, dial: Dial, new: int) -> list[list[Answer]]:
    """Those at each of STRENGTHS."""
    found = []
    for strength in STRENGTHS:
        with turned(model, ADAPTER, dial, strength):
            found.append(answer(model, ROWS, new))
    return found


def counted(model: Model, layer: int) -> list[int]:
    """The tokens, padding included, of each pass through a layer from now on."""
    passes: list[int] = []
    decoder_of(model.network).layers[layer].register_forward_hook(
        lambda _layer, args, _output: passes.append(args[0].shape[1])
    )
    return passes


@pytest.mark.parametrize(("architecture", "new"), [*product(PACKABLE, (0, 12)), *product(PADDED, (4,))])
def test_a_dial_answers_the_same_bit_for_bit(tiny_model: MakeModel, architecture: str, new: int) -> None:
    """Before, with and after the cache. It is of use to models that pack, and to no other."""
    model, dial = with_dial(tiny_model, architecture)
    expected = answers(model, dial, new)
    assert expected[0] == expected[2] != expected[1]
    below, at = counted(model, LAYER - 1), counted(model, LAYER)
    with cached(model):
        assert answers(model, dial, new) == expected
    assert (len(below) < len(at)) == (architecture in PACKABLE)
    assert answers(model, dial, new) == expected


@pytest.mark.parametrize("layer", [0, LAYER])
def test_layers_below_read_prompts_and_openings_once(tiny_model: MakeModel, layer: int) -> None:
    model, dial = with_dial(tiny_model, "llama")
    at, below = counted(model, layer), counted(model, layer - 1) if layer else []
    with cached(model, layer):
        answers(model, dial, 0)
    once = len(at) // len(STRENGTHS)  # what all prompts share, and twice each batch
    assert once == 1 + 2 * 2
    assert len(at) == len(STRENGTHS) * once
    if layer:
        assert len(below) == once + (len(STRENGTHS) - 1)  # what all prompts share is not kept


def test_other_prompts_are_not_mistaken_for_those_that_were_read(tiny_model: MakeModel) -> None:
    model, _ = with_dial(tiny_model, "llama")
    others = [[*row[:-1], row[-1] + 1] for row in ROWS]
    expected = answer(model, others, 4)
    with cached(model):
        answer(model, ROWS, 4)
        assert answer(model, others, 4) == expected


def test_without_room_nothing_is_kept(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, dial = with_dial(tiny_model, "llama")
    expected = answers(model, dial, 4)
    monkeypatch.setattr(prompt_cache, "free_memory", lambda device: 0.0)
    below, at = counted(model, LAYER - 1), counted(model, LAYER)
    with cached(model):
        assert answers(model, dial, 4) == expected
    assert len(below) == len(at)
