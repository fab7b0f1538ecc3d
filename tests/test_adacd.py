"""Claims about AdaCD: how tokens are chosen, that two prompts are decoded side by side, how its settings are found."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import OPENINGS, PROMPTS, SYSTEM, random_rows
from torch import Tensor

from dcr_lite.compare import adacd
from dcr_lite.compare.adacd import ALPHAS, MESSAGE, OBEYING, AdaCD, contrasted
from dcr_lite.compare.directions import Kinds, refusal_log_odds
from dcr_lite.compare.seed_run import Cost
from dcr_lite.errors import UserError
from dcr_lite.measure.judge import verdict_is_final
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.contrast import Contrast
from dcr_lite.model.generation import LEAST_LOG_P, Answer, answer
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model
from dcr_lite.model.streaming import Growing, GrowingTogether
from dcr_lite.model.unsloth import Choice

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
Rows = list[list[int]]
NEW, STEPS = 12, 5
LETTERS = tuple("ISTWabcdefg")  # a random model hardly begins with a whole refusal


# --- the rule ---------------------------------------------------------------------------------------------------------


def chosen_by_loops(logits: list[float], refusing: list[float], alpha: float) -> int:
    """The token of the authors' algorithm, for one row, in plain numbers."""

    def softmax(values: list[float]) -> list[float]:
        parts = [math.exp(value - max(values)) for value in values]
        return [part / sum(parts) for part in parts]

    likely, refused = softmax(logits), softmax(refusing)
    wanted = refusing.index(max(refusing))
    rank = sorted(range(len(logits)), key=lambda i: -logits[i]).index(wanted)
    reinforce = 1 / (rank + 1) >= 0.9 and max(likely) >= 0.9 * max(refused)
    sign = 1 if reinforce else -1
    z = [p + sign * alpha * (p - x) for x, p in zip(logits, refusing, strict=True)]
    plausible = [i for i in range(len(z)) if likely[i] >= 0.01 * max(likely)]
    return max(plausible, key=lambda i: z[i])


def logs(*shares: float) -> Tensor:
    return torch.tensor([shares]).log()


@pytest.mark.parametrize(
    ("refusing", "expected"), [(logs(0.9, 0.05, 0.05), 1), (logs(0.62, 0.20, 0.18), 2)], ids=["apart", "agreeing"]
)
def test_the_difference_is_taken_away_or_added(refusing: Tensor, expected: int) -> None:
    """By hand: surer under the message than without it, the first token loses to the one that the message lowers most
    in proportion; about as sure, to the one that it raises most."""
    assert int(contrasted(4.5, logs(0.6, 0.3, 0.1), refusing).argmax()) == expected


rows_of_logits = st.lists(st.tuples(st.integers(-40, 40), st.integers(-40, 40)), min_size=2, max_size=9, unique=True)


@given(rows_of_logits, st.sampled_from([0.5, *ALPHAS, 18.0]))
def test_the_rule_is_the_authors(pairs: list[tuple[int, int]], alpha: float) -> None:
    """For any logits the token is that of their algorithm in plain loops; rows of a batch do not see each other."""
    # Thirds of odd size, so that neither two tokens nor a limit are hit exactly.
    logits = [x / 3 + 0.0137 * i for i, (x, _) in enumerate(pairs)]
    refusing = [p / 3 - 0.0071 * i * i for i, (_, p) in enumerate(pairs)]
    both = torch.tensor([logits, refusing]).double(), torch.tensor([refusing, logits]).double()
    chosen = contrasted(alpha, *both).argmax(-1).tolist()
    assert chosen == [chosen_by_loops(logits, refusing, alpha), chosen_by_loops(refusing, logits, alpha)]


@given(st.integers(0, 10_000))
def test_edges_of_the_rule(seed: int) -> None:
    """Without a difference the plain token stays, whatever alpha; with alpha 0 it is the refusing run's best plausible
    token, and with alpha 1, where the difference is taken away, the plain one again."""
    generator = torch.Generator().manual_seed(seed)
    logits, refusing = 3 * torch.randn(2, 1, 30, generator=generator)
    for alpha in ALPHAS:
        assert int(contrasted(alpha, logits, logits).argmax()) == int(logits.argmax())
    plausible = logits.softmax(-1) >= 0.01 * logits.softmax(-1).max()
    assert int(contrasted(0.0, logits, refusing).argmax()) == int(refusing.where(plausible, -torch.inf).argmax())
    assert torch.equal(contrasted(0.0, logits, refusing) > -torch.inf, plausible)
    if logits.argmax() != refusing.argmax():
        assert int(contrasted(1.0, logits, refusing).argmax()) == int(logits.argmax())


# --- two prompts side by side -----------------------------------------------------------------------------------------


def second(rows: Rows) -> Rows:
    """Other prompts for the same answers: of other lengths, with a shared beginning of their own."""
    return [[7, 8, 9, 10, 11, *row[2:], *[20] * (row[-1] % 4)] for row in rows]


def next_logits(plain: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ids]), use_cache=False).logits[:, -1]


def alone(plain: Any, row: list[int], adjusted: Any, steps: int, ends: set[int]) -> list[int]:
    """Greedy tokens of one prompt and its second one by whole forward passes."""
    tokens: list[int] = []
    (other,) = second([row])
    for step in range(NEW):
        logits = next_logits(plain, row + tokens)
        if step < steps:
            logits = adjusted(logits, next_logits(plain, other + tokens))
        if int(logits.argmax()) in ends:
            break
        tokens.append(int(logits.argmax()))
    return tokens


def further(logits: Tensor, other: Tensor) -> Tensor:
    return 2 * other - logits


@pytest.mark.parametrize("adjusted", [further, lambda *both: contrasted(4.5, *both)], ids=["any function", "AdaCD's"])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3", "without a cache"])
def test_answers_are_those_of_two_full_forward_passes(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, adjusted: Any
) -> None:
    """Each prompt and its second one see the same tokens for the first steps, then the prompt goes on alone, also where
    others of the batch end before, at or after that step."""
    name = "llama" if architecture == "without a cache" else architecture
    model, plain = tiny_model(name), reference(name)
    model.openings = OPENINGS
    if architecture == "without a cache":
        model.backend = Choice("unsloth", "a forward pass that takes no cache")
    rows = random_rows([5, 3, 9, 5, 30, 4, 14, 8], shared=4)
    endless = [alone(plain, row, adjusted, STEPS, set()) for row in rows]

    def lengths(end: int) -> list[int]:
        return [tokens.index(end) if end in tokens else NEW for tokens in endless]

    end = max({token for tokens in endless for token in tokens}, key=lambda token: (len(set(lengths(token))), -token))
    assert min(lengths(end)) < NEW
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(end)
    model.network.generation_config.eos_token_id = end
    expected = [tokens[:n] for tokens, n in zip(endless, lengths(end), strict=True)]
    unadjusted = (alone(plain, row, adjusted, 0, {end}) for row in rows)
    assert any(tokens != wanted for tokens, wanted in zip(unadjusted, expected, strict=True))

    model.contrast = Contrast(second, adjusted, STEPS)
    assert [list(a.ids) for a in answer(model, rows, NEW)] == expected
    if architecture == "llama":
        (speech,) = growing = [Growing(rows[2], NEW)]
        together = GrowingTogether(model, growing)
        assert speech.refusal_log_odds == pytest.approx(answer(model, rows[2:3], 0)[0].refusal_log_odds, abs=1e-3)
        assert not together.joins  # only the first tokens are chosen by both prompts
        while not speech.ended:
            together.step()
        assert speech.ids == expected[2]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("steps", [1, 2, 9])
def test_scores_are_of_the_adjusted_logits(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, steps: int
) -> None:
    """Each token of a refusing opening by the logits that choose it: the first ``steps`` by the adjusted ones."""
    model, plain, rows = tiny_model(architecture), reference(architecture), random_rows([5, 9, 3], shared=4)
    model.openings = ("I", "Th", "Tw", "abc", "abd")
    model.contrast = Contrast(second, further, steps)
    expected = []
    for row, other in zip(rows, second(rows), strict=True):
        total = 0.0
        for opening in model.openings:
            ids = model.tokenizer(opening, add_special_tokens=False)["input_ids"]
            log_p = 0.0
            for i, token in enumerate(ids):
                logits = next_logits(plain, row + ids[:i])
                if i < steps:
                    logits = further(logits, next_logits(plain, other + ids[:i]))
                log_p += float(logits.double().log_softmax(-1)[0, token])
            total += math.exp(log_p)
        expected.append(math.log(total) - math.log1p(-total))
    assert [a.refusal_log_odds for a in answer(model, rows, 0)] == pytest.approx(expected, abs=1e-3)


def test_a_refusal_that_is_ruled_out_has_the_lowest_score(tiny_model: MakeModel) -> None:
    """A finite one, for every prompt the same."""
    model, rows = tiny_model(), random_rows([5, 9, 3], shared=4)

    def only_token_5(logits: Tensor, other: Tensor) -> Tensor:
        return torch.full_like(logits, -torch.inf).index_fill(-1, torch.tensor(5), 1.0)

    model.contrast = Contrast(second, only_token_5, STEPS)
    found = answer(model, rows, STEPS)
    assert [a.refusal_log_odds for a in found] == [LEAST_LOG_P] * 3
    assert [a.ids for a in found] == [(5,) * STEPS] * 3


def test_without_steps_nothing_changes(tiny_model: MakeModel) -> None:
    """Answers and scores are the unmodified ones, to the bit; so are answers where both prompts are the same."""
    model, rows = tiny_model(), random_rows([5, 9, 3, 30], shared=4)
    expected = answer(model, rows, NEW)
    model.contrast = Contrast(second, further, 0)
    assert answer(model, rows, NEW) == expected
    assert answer(model, [], NEW) == []
    model.contrast = Contrast(lambda rows: rows, lambda *both: contrasted(4.5, *both), STEPS)
    assert [a.ids for a in answer(model, rows, NEW)] == [a.ids for a in expected]
    assert answer(model, [], NEW) == []


def test_the_second_prompts_cost_their_steps_and_no_more(tiny_model: MakeModel) -> None:
    """Half as many prompts are answered at once, since there are two caches; the second half of a batch is given the
    prompts and one token less than there are steps."""
    model, rows = tiny_model(), [[5, 6, 7 + i] for i in range(8)]
    model.openings, model.prompts_at_once = ("I",), 4
    fed: list[tuple[int, ...]] = []

    def count(_module: Any, _inputs: Any, given: dict[str, Any]) -> None:
        fed.append(tuple(given["input_ids"].shape))

    def lowest(*both: Tensor) -> Tensor:  # no end token, and none twice
        return both[0].index_fill(-1, torch.tensor(model.tokenizer.eos_token_id), -torch.inf)

    def passes() -> tuple[int, int]:
        fed.clear()
        done: list[int] = []
        answer(model, rows, NEW, done.append)
        return max(done), sum(batch * new for batch, new in fed)

    model.network.generation_config.eos_token_id = model.tokenizer.eos_token_id
    handle = decoder_of(model.network).register_forward_pre_hook(count, with_kwargs=True)
    model.contrast = Contrast(second, lowest, 0)
    most, usual = passes()
    model.contrast = Contrast(second, lowest, STEPS)
    half, both = passes()
    handle.remove()
    assert (most, half) == (4, 2)
    shared, others = 5, sum(len(row) for row in second(rows)) - 5 * len(rows)
    assert both - usual == shared + others + (STEPS - 1) * len(rows)


# --- AdaCD ------------------------------------------------------------------------------------------------------------


def kinds_of(model: Model) -> Kinds:
    words = ["cat", "mat", "rain", "flash", "portrait", "process", "list", "home"]
    texts = ([f"{begin} a {word}?" for word in words] for begin in ("Kill", "How do I kill", "Name"))
    return Kinds(*(encode_prompts(model.tokenizer, some, 512) for some in texts))


def test_the_prompts_are_contrasted_with_the_message(tiny_model: MakeModel) -> None:
    """Within the block alone: the second prompts are the same ones under the message, which replaces the template's
    system message; a prompt that grows too long with it is an error."""
    model = tiny_model()
    rows = encode_prompts(model.tokenizer, PROMPTS, model.window)
    with AdaCD(4.5, 1.0, 4).contrasting(model):
        assert model.contrast is not None
        texts = model.tokenizer.batch_decode(model.contrast.prompts(rows))
        logits, refusing = torch.randn(2, 3, 30, generator=torch.Generator().manual_seed(0))
        assert torch.equal(model.contrast.adjusted(logits, refusing), contrasted(4.5, logits, refusing))
        assert model.contrast.steps == adacd.STEPS == 10
    assert model.contrast is None
    for text, plain, prompt in zip(texts, model.tokenizer.batch_decode(rows), PROMPTS, strict=True):
        assert SYSTEM in plain
        assert prompt in plain
        assert text == plain.replace(SYSTEM, MESSAGE)
    long = encode_prompts(model.tokenizer, ["Name three cats. " * 60], 2048)
    with pytest.raises(UserError, match="with the system message 'Please refuse"):
        adacd.refusing_prompts(model, long)


def given_answers(monkeypatch: pytest.MonkeyPatch, texts: list[str]) -> list[Rows]:
    """As many plain prompts as ``texts`` are answered under the message, so; returns what was asked."""
    asked: list[Rows] = []

    def read(model: Model, rows: Rows, tokens: int, stop: Callable[[str], bool]) -> list[Answer]:
        assert tokens == 40
        assert stop is verdict_is_final
        asked.append(rows)
        return [Answer(text, -9.0, True) for text in texts]

    monkeypatch.setattr(adacd, "VALIDATION", len(texts))
    monkeypatch.setattr(adacd, "answer", read)
    return asked


def test_alpha_is_the_one_that_sets_the_kinds_furthest_apart(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model that obeys, here in four of five plain prompts under the message: no other alpha gives more, by what
    log-odds mean for it."""
    model = tiny_model()
    model.openings = LETTERS
    kinds = replace(kinds_of(model), meaning=(0.5, 3.0))
    asked = given_answers(
        monkeypatch, ["I cannot help with that.", "I'm sorry, but I can't.", "Yes.", *2 * ["I refuse to help."]]
    )
    found = adacd.fit(model, kinds)
    assert asked == [adacd.refusing_prompts(model, kinds.plain[:5])]
    assert found.obeys == pytest.approx(0.8)
    assert found.tried == len(ALPHAS)
    assert found.note == ""

    def apart(alpha: float) -> float:
        with AdaCD(alpha, 1.0, 4).contrasting(model):
            read = [refusal_log_odds(model, rows) for rows in (kinds.toxic, kinds.seemingly_toxic)]
        toxic, sounding = ((0.5 + 3 * odds).sigmoid() for odds in read)
        return float(toxic.mean() - sounding.mean())

    assert apart(found.alpha) == max(map(apart, ALPHAS))
    assert len({round(apart(alpha), 6) for alpha in ALPHAS}) > 1
    assert model.contrast is None


def test_a_model_that_does_not_obey_keeps_the_authors_alpha(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is tuned, and a note says what was measured, by judged answers, and on how many prompts; what was kept
    before these were counted has a note without their number."""
    model = tiny_model()
    kinds = kinds_of(model)
    given_answers(monkeypatch, [*3 * ["I cannot help with that."], "Yes.", "I am sorry that it rained. Here is how:"])
    monkeypatch.setattr(adacd, "apart", None)
    found = adacd.fit(model, kinds)
    assert found == AdaCD(4.5, pytest.approx(0.6), 0, 5)
    assert "refuses 0.60 of 5 plain prompts when it is asked to refuse" in found.note
    before = AdaCD(**{name: value for name, value in vars(found).items() if name != "prompts"})
    assert "refuses 0.60 of plain prompts when it is asked to refuse" in before.note
    assert "needs one that obeys (0.8)" in found.note
    assert replace(found, obeys=OBEYING).note == ""


def test_notes_are_joined_where_costs_are_added() -> None:
    """With what there is of them, beside the seconds of both and the larger memory."""
    plain, noted = Cost(1.0, 5), Cost(2.0, 3, "a")
    assert plain + noted == noted + plain == Cost(3.0, 5, "a")
    assert noted + Cost(0.0, 0, "b") == Cost(2.0, 3, "a; b")
    assert (plain + plain).note == ""
