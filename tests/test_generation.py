"""Claims about answers and refusal scores: batches with a shared prefix give what each prompt alone gives."""

import math
from collections.abc import Callable
from itertools import product
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from tiny_models import OPENINGS, add_random_adapter, random_rows
from transformers import GenerationConfig

from dcr_lite.model.adapters import stock
from dcr_lite.model.generation import answer, refusal_log_odds
from dcr_lite.model.loading import REFUSING_OPENINGS, Model

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
Rows = list[list[int]]
NEW, FEW = 24, 12  # tokens: FEW where no row has to end

SHAPES: dict[str, Rows] = {
    "a shared prefix": random_rows([5, 1, 9, 5, 30, 2], shared=11),
    "nothing shared": [[300], *random_rows([4, 40, 9]), [301, 5]],
    "one prompt": random_rows([9]),
    "one token": [[7]],
    "the same prompt twice": random_rows([3], shared=4) * 2,
}
# What a shape may spoil is the same in all that pack, and in all that are padded.
HARDEST = ("a shared prefix", "nothing shared")


def tokens_alone(reference: Any, rows: Rows, new: int, eos: int | list[int] | None) -> list[list[int]]:
    """transformers' own greedy tokens, one prompt at a time, without the end token."""
    ends = [] if eos is None else [eos] if isinstance(eos, int) else eos
    answers = []
    for row in rows:
        ids = torch.tensor([row])
        greedy = GenerationConfig(max_new_tokens=new, do_sample=False, eos_token_id=ends or None, pad_token_id=2)
        out = reference.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        tokens = out[0, len(row) :].tolist()
        answers.append([t for t in tokens if t not in ends])
    return answers


def texts_alone(model: Model, reference: Any, rows: Rows, new: int = NEW) -> list[str]:
    tokens = tokens_alone(reference, rows, new, model.tokenizer.eos_token_id)
    return [model.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens]


def ending_often(model: Model, reference: Any, rows: Rows) -> list[int]:
    """Make a token that greedy answers contain at many places the end token; returns the answers' lengths."""
    plain = tokens_alone(reference, rows, NEW, None)

    def lengths(eos: int) -> list[int]:
        return [tokens.index(eos) if eos in tokens else len(tokens) for tokens in plain]

    token = max({t for tokens in plain for t in tokens}, key=lambda t: (len(set(lengths(t))), -t))
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(token)
    assert model.tokenizer.eos_token_id == token
    return lengths(token)


@pytest.mark.parametrize(
    ("architecture", "config", "shape"),
    [
        *((architecture, {}, shape) for architecture in ("llama", "gemma2") for shape in SHAPES),
        *((architecture, {}, shape) for architecture in ("qwen3", "gemma3") for shape in HARDEST),
        ("qwen2", {}, "a shared prefix"),
        ("mistral", {"sliding_window": 8}, "a shared prefix"),
        ("gemma3", {"sliding_window": 8}, "a shared prefix"),
        ("phi3", {}, "a shared prefix"),
        ("smollm3", {}, "a shared prefix"),
        ("olmo3", {}, "nothing shared"),
        ("olmo3", {"sliding_window": 8}, "a shared prefix"),
        ("ministral", {}, "a shared prefix"),
    ],
)
def test_answers_are_those_of_transformers(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, config: dict[str, Any], shape: str
) -> None:
    """Greedy answers of a batch equal transformers' generate on each prompt alone. Where rows are longer than a sliding
    window, a short row's window is not spent on its padding."""
    model, plain, rows = tiny_model(architecture, **config), reference(architecture, **config), SHAPES[shape]
    model.openings = OPENINGS
    assert [a.text for a in answer(model, rows, FEW)] == texts_alone(model, plain, rows, FEW)


def test_rows_that_leave_early_change_no_other(tiny_model: MakeModel, reference: MakeReference) -> None:
    """Rows end at many different steps; each stops at its own end token and the others go on as if alone. Each says
    whether it has ended or was cut off."""
    model, plain = tiny_model(), reference()
    rows = random_rows([5, 1, 9, 5, 30, 2, 14, 3, 8, 6, 4, 7], shared=3)
    lengths = ending_often(model, plain, rows)
    assert len(set(lengths)) >= 4
    assert max(lengths) == NEW
    found = answer(model, rows, NEW)
    assert [a.text for a in found] == texts_alone(model, plain, rows)
    assert [a.ended for a in found] == [length < NEW for length in lengths]


def test_rows_that_leave_early_leave_a_cache_of_any_kind(tiny_model: MakeModel, reference: MakeReference) -> None:
    """LFM2's convolutions keep no keys and values: of prompts of one length some end first, and all answers are those
    of each prompt alone."""
    model = tiny_model("lfm2")
    rows = random_rows([6] * 8, shared=3)
    ending_often(model, reference("lfm2"), rows)
    model.prompts_at_once = 1
    alone = [a.ids for a in answer(model, rows, NEW)]
    assert len(set(map(len, alone))) >= 3
    model.prompts_at_once = len(rows)
    assert [a.ids for a in answer(model, rows, NEW)] == alone


def test_every_end_token_of_the_model_ends_the_answer(tiny_model: MakeModel, reference: MakeReference) -> None:
    """A model whose generation config names several end tokens (Gemma 2, Phi 3, Llama 3) stops at each, as
    transformers does."""
    model, plain = tiny_model(), reference()
    rows = random_rows([5, 1, 9], shared=3)
    second = tokens_alone(plain, rows, NEW, None)[0][3]  # the first answer's fourth token
    ends = [model.tokenizer.eos_token_id, second]
    model.network.generation_config.eos_token_id = ends
    expected = [
        model.tokenizer.decode(t, skip_special_tokens=True).strip() for t in tokens_alone(plain, rows, NEW, ends)
    ]
    assert [a.text for a in answer(model, rows, NEW)] == expected


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_changes_nothing(tiny_model: MakeModel, batch_size: int) -> None:
    """Smaller batches give the same answers and scores, and ``progress`` counts every prompt once."""
    model = tiny_model()
    rows = random_rows([5, 1, 9, 5, 30, 2, 14], shared=3)
    expected = answer(model, rows, 8)
    model.prompts_at_once = batch_size
    done: list[int] = []
    got = answer(model, rows, 8, done.append)
    assert [a.text for a in got] == [a.text for a in expected]
    assert [a.refusal_log_odds for a in got] == pytest.approx([a.refusal_log_odds for a in expected], abs=1e-4)
    assert sum(done) == len(rows)
    assert max(done) <= batch_size


def test_an_answer_for_which_stop_is_true_stops_alone(tiny_model: MakeModel) -> None:
    """It ends early, after the text for which ``stop`` is true; the others are as without it."""
    model = tiny_model()
    rows = random_rows([5, 1, 9, 5, 30, 2, 14], shared=3)
    whole = [a.text for a in answer(model, rows, NEW)]
    early = {c: [t.index(c) for t in whole if c in t] for c in "abcdefghijklmnopqrstuvwxyz"}
    letter = next(c for c, places in early.items() if 0 < len(places) < len(rows) and min(places) < NEW // 3)
    cut = [a.text for a in answer(model, rows, NEW, stop=lambda text: letter in text)]
    for short, long in zip(cut, whole, strict=True):
        if letter in long:
            assert short[: short.index(letter) + 1] == long[: long.index(letter) + 1]
        else:
            assert short == long
    assert any(len(short) < len(long) for short, long in zip(cut, whole, strict=True))


def test_answers_keep_the_order_of_the_prompts(tiny_model: MakeModel) -> None:
    """Prompts are sorted by length inside; answers come in the order given, and no prompts have none."""
    model = tiny_model()
    assert answer(model, [], NEW) == []
    rows = random_rows([12, 1, 7, 7, 3], shared=2)
    forwards, backwards = answer(model, rows, 8), answer(model, rows[::-1], 8)
    assert [a.text for a in forwards] == [a.text for a in backwards[::-1]]
    scores = [a.refusal_log_odds for a in forwards]
    assert scores == pytest.approx([a.refusal_log_odds for a in backwards[::-1]], abs=1e-5)
    assert len(set(scores)) == len(scores)


def score_alone(model: Model, reference: Any, row: list[int]) -> float:
    """Log-odds of a refusing opening, from one full forward pass for each opening."""
    total = 0.0
    for opening in REFUSING_OPENINGS:
        ids = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = reference(torch.tensor([row + ids])).logits[0].double().log_softmax(-1)
        total += math.exp(sum(log_p[len(row) - 1 + i, token].item() for i, token in enumerate(ids)))
    return math.log(total) - math.log1p(-total)


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [
        *product(("llama", "qwen2", "gemma2"), ("a shared prefix", "nothing shared", "one prompt")),
        *product(("qwen3", "mistral", "ministral", "smollm3", "phi3", "olmo3", "lfm2"), ("a shared prefix",)),
    ],
)
def test_scores_are_those_of_one_pass_per_opening(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, shape: str
) -> None:
    """refusal_log_odds equals the sum of the openings' probabilities, each read by a full forward pass of its own."""
    model, plain, rows = tiny_model(architecture), reference(architecture), SHAPES[shape]
    got = [a.refusal_log_odds for a in answer(model, rows, 0)]
    assert got == pytest.approx([score_alone(model, plain, row) for row in rows], abs=2e-4)


def test_a_certain_refusal_has_a_finite_score(tiny_model: MakeModel) -> None:
    """When the model is sure to refuse, the log-odds are large and finite."""
    model = tiny_model()
    first = model.tokenizer("Sorry", add_special_tokens=False)["input_ids"]
    head, norm = model.network.lm_head, model.network.model.norm
    with torch.no_grad():
        norm.weight.zero_()  # the same final state for everything ...
        norm.weight[0] = 1
        head.weight.zero_()
        head.weight[first[0], 0] = 100  # ... which names one token with certainty, one way or the other
    scores = [a.refusal_log_odds for a in answer(model, random_rows([3, 4, 5, 6, 7, 8]), 0)]
    assert all(math.isfinite(s) for s in scores)


@pytest.mark.parametrize("ahead", [10.0, 20.0, 30.0])
def test_an_all_but_certain_refusal_is_told_from_a_surer_one(ahead: float) -> None:
    """By its log-odds and their gradient, where float32 has lost what is left beside it: of one token ``ahead`` of 299
    others in logits, by the closed form."""
    logits = torch.zeros(1, 300)
    logits[0, 5] = ahead
    logits.requires_grad_()
    model: Any = SimpleNamespace(openings=("x",), contrast=None, tokenizer=lambda texts, **_: {"input_ids": [[5]]})
    odds = refusal_log_odds(cast(Any, SimpleNamespace(model=model, logits=logits)))
    assert odds.item() == pytest.approx(ahead - math.log(299), abs=1e-3)
    odds.sum().backward()
    assert logits.grad is not None
    assert logits.grad[0, 5].item() == pytest.approx(1, abs=1e-3)


def test_no_opening_is_the_beginning_of_another() -> None:
    """The openings exclude each other, so their probabilities may be added."""
    for a in REFUSING_OPENINGS:
        assert not any(a != b and b.startswith(a) for b in REFUSING_OPENINGS)


def test_scores_need_no_answer(tiny_model: MakeModel) -> None:
    """max_new_tokens=0 gives empty texts and the same scores; 1 gives one token."""
    model = tiny_model()
    rows = random_rows([5, 1, 9], shared=3)
    none, one, some = (answer(model, rows, n) for n in (0, 1, 6))
    assert [a.text for a in none] == ["", "", ""]
    assert [a.refusal_log_odds for a in none] == [a.refusal_log_odds for a in some]
    for short, long in zip(one, some, strict=True):
        assert long.text.startswith(short.text)


def test_the_adapter_answers_and_stock_does_not(tiny_model: MakeModel) -> None:
    """answer() is of the active adapter, and inside stock() of the model as it was loaded."""
    model = tiny_model()
    rows = random_rows([5, 1, 9], shared=3)
    loaded = [a.text for a in answer(model, rows, 8)]
    add_random_adapter(model)
    assert [a.text for a in answer(model, rows, 8)] != loaded
    with stock(model):
        assert [a.text for a in answer(model, rows, 8)] == loaded
