"""Claims about answers kept: the distances are those of transformers' whole logits, and say what they should."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import voice
from tiny_models import ADAPTER, PROMPTS, add_random_adapter, assert_close, greedy_tokens
from torch.nn.functional import kl_div

from dcr_lite.compare.directions import steered
from dcr_lite.compare.surgical import ablated
from dcr_lite.data.rows import Conversation, Prompt, messages_of
from dcr_lite.measure.answers import measure
from dcr_lite.measure.general_ability import log_likelihoods
from dcr_lite.measure.kept import (
    NUMBERS,
    StockAnswers,
    answers_kept,
    distances,
    read_stock_answers,
    worth_keeping,
)
from dcr_lite.measure.metrics import bootstrap_mean_interval
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model

SAID = ["Use a flash.", "Hi. I am a cat.", "It may rain all afternoon. " * 5, "Ask the process to stop, then kill it."]


def given(label: str = "plain", response: str = SAID[0], refused: bool = False, prompt: str = "Hi") -> dict[str, Any]:
    """A measured answer."""
    return {"source": "set", "label": label, "prompt": prompt, "response": response, "refused": refused}


ANSWERS = [
    given(label, text, prompt=prompt)
    for label, text, prompt in zip(["seemingly_toxic", "plain"] * 2, SAID, PROMPTS, strict=False)
]


def read(model: Model) -> StockAnswers:
    return read_stock_answers(model, ANSWERS)


def test_a_prompt_is_answered_and_read_behind_the_messages_before_it(
    tiny_model: Callable[..., Model], reference: Callable[..., Any]
) -> None:
    """The greedy answer is that to the template's conversation, and the stock model's answer is read behind it too; the
    stored row says what was asked, without a field where nothing stood before."""
    model, plain = tiny_model(), reference()
    before = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."))
    prompts = [Prompt(PROMPTS[0], "plain", "set", before), Prompt(PROMPTS[0], "plain", "set")]
    found = measure(model, prompts, 6, whole=True)
    stock = read_stock_answers(model, found)
    for prompt, said, (row, _) in zip(prompts, found, stock.rows, strict=True):
        messages = [*messages_of(prompt.before), {"role": "user", "content": prompt.prompt}]
        assert row == model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        after = greedy_tokens(plain, row, 6)
        assert said["response"] == model.tokenizer.decode(after, skip_special_tokens=True).strip()
    assert found[0]["before"] == messages_of(before)
    assert "before" not in found[1]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_distances_are_those_of_whole_logits(
    architecture: str, tiny_model: Callable[..., Model], reference: Callable[..., Any]
) -> None:
    """Of every answer by itself: the mean log-probability of its tokens under both models, and torch's own KL at the
    first token and over all, from transformers' logits of prompt and answer; the active adapter stays active."""
    model, plain = tiny_model(architecture), reference(architecture)
    add_random_adapter(model)
    found = distances(model, read(model))
    assert model.network.active_adapters == [ADAPTER]
    prompts = encode_prompts(model.tokenizer, [row["prompt"] for row in ANSWERS], model.window)
    for row, prompt, got in zip(ANSWERS, prompts, found, strict=True):
        text = model.tokenizer.apply_chat_template(
            [{"role": "user", "content": row["prompt"]}], tokenize=False, add_generation_prompt=True
        )
        ids = model.tokenizer(text + row["response"].strip(), return_tensors="pt", add_special_tokens=False)[
            "input_ids"
        ]
        assert ids[0, : len(prompt)].tolist() == prompt
        with torch.no_grad():
            q, p = (
                network(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
                for network in (model.network, plain)
            )
        said, stock_said = (log_p.gather(1, ids[0, len(prompt) :, None]).mean().item() for log_p in (q, p))
        divergence = kl_div(q, p, reduction="none", log_target=True).sum(-1)
        expected = (said, stock_said, stock_said - said, divergence[0].item(), divergence.mean().item())
        assert [got[name] for name in NUMBERS] == pytest.approx(expected, rel=1e-4)
        assert got["label"] == row["label"]
        assert got["divergence"] > 0.01  # a guard: the adapter does something


def test_the_voice_of_a_model_is_a_mean_over_tokens(tiny_model: Callable[..., Model]) -> None:
    """In benchmarks/voice.py every token of the stock model's answers weighs alike, however long they are: the
    log-probabilities are the means of those that multiple choice goes by, and the divergence weighs answers so too."""
    model = tiny_model()
    add_random_adapter(model)
    stock = read(model)
    found = voice.nearness(model, stock)
    own = torch.cat(log_likelihoods(model, stock.rows)).mean().item()
    with adapters.stock(model):
        of_stock = torch.cat(log_likelihoods(model, stock.rows)).mean().item()
    tokens = torch.tensor([len(answer) for _, answer in stock.rows])
    divergences = torch.tensor([row["divergence"] for row in distances(model, stock)])
    divergence = (divergences * tokens).sum() / tokens.sum()
    assert found == pytest.approx(dict(zip(voice.NEAR, (own, of_stock, divergence.item()), strict=True)), rel=1e-4)
    assert abs(divergence - divergences.mean()) > 1e-3 * divergence  # a guard: their lengths differ


def test_no_answer_has_no_voice(tiny_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/voice.py leaves it out of what is compared, and counts its words."""
    rows, said = [([3, 4], [5]), ([3, 4], [])], [Conversation("Hi", "a"), Conversation("Hi", "")]
    monkeypatch.setattr(voice, "answered", lambda model, prompts: said)
    monkeypatch.setattr(voice, "encode_conversations", lambda *given: rows)
    answers, stock = voice.of_stock(tiny_model(), {"plain": ["Hi", "Hi"]})["plain"]
    assert (answers, stock.labels, stock.rows) == (said, ["plain"], rows[:1])


def test_the_stock_model_keeps_all_of_its_answers(tiny_model: Callable[..., Model]) -> None:
    """So does a fresh adapter, which changes nothing: equal log-probabilities, no divergence, kept 1. A random adapter
    keeps less of the greedy answers, and diverges."""
    model = tiny_model()
    prompts = [Prompt(text, label, "set") for text in PROMPTS for label in ("seemingly_toxic", "plain")]
    answers = measure(model, prompts, 12)
    adapters.add_adapter(model, "fresh", rank=4, seed=0)
    add_random_adapter(model)
    stock = read_stock_answers(model, worth_keeping(answers))
    far = answers_kept(distances(model, stock), answers, answers)
    adapters.activate(model, "fresh")
    fresh = answers_kept(distances(model, stock), answers, answers)
    with adapters.stock(model):
        own = answers_kept(distances(model, stock), answers, answers)
    for label in ("seemingly_toxic", "plain"):
        for same in (own[label], fresh[label]):
            assert same["log_probability"] == pytest.approx(same["stock_log_probability"], abs=1e-6)
            assert (same["first_divergence"], same["divergence"]) == pytest.approx((0, 0), abs=1e-6)
            assert (same["kept"], *same["kept_ci95"]) == pytest.approx((1, 1, 1), abs=1e-6)
        assert far[label]["kept"] < 0.95
        assert far[label]["divergence"] > 0.01


def test_what_steers_a_model_counts_and_leaves_the_reference_alone(tiny_model: Callable[..., Model]) -> None:
    """A steered or an ablated stock model is measured as it answers, against the stock model as it was read before."""
    model = tiny_model()
    stock = read(model)
    vector = torch.randn(model.network.config.hidden_size, generator=torch.Generator().manual_seed(0))
    for change in (steered(model, {1: vector}), ablated(model, vector / vector.norm())):
        with change:
            found = distances(model, stock)
        assert all(row["divergence"] > 1e-4 for row in found)
    assert [row["divergence"] for row in distances(model, stock)] == pytest.approx([0] * len(found), abs=1e-6)


def test_rows_read_together_are_rows_read_alone(tiny_model: Callable[..., Model]) -> None:
    """Neither the order nor the passes change what is found of an answer, and progress counts each once."""
    model = tiny_model()
    add_random_adapter(model)
    done: list[int] = []
    together = distances(model, read(model), done.append)
    assert sum(done) == len(ANSWERS)
    model.tokens_per_pass = 60
    alone = [distances(model, read_stock_answers(model, [row]))[0] for row in ANSWERS[::-1]][::-1]
    for a, b in zip(together, alone, strict=True):
        assert_close(torch.tensor([a[n] for n in NUMBERS]), torch.tensor([b[n] for n in NUMBERS]), 1e-5)


def test_an_answer_that_fills_the_window_is_cut_to_it(tiny_model: Callable[..., Model]) -> None:
    """Encoded anew it may have a token too many, which is no error."""
    model = tiny_model()
    (row,) = encode_prompts(model.tokenizer, ["Hi"], model.window)
    model.network.config.max_position_embeddings = len(row) + 5
    assert model.window == len(row) + 5
    stock = read_stock_answers(model, [given(response=SAID[2])])
    assert [len(states) for states in stock.states] == [len(answer) for _, answer in stock.rows] == [5]


def test_refusals_of_the_stock_model_are_left_out_and_counted() -> None:
    """As are answers to toxic prompts, and empty ones: a character that was cut in two is no answer."""
    sounding = [
        given("seemingly_toxic", "No.", refused=True),
        given("seemingly_toxic", "Yes."),
        given("seemingly_toxic"),
    ]
    plain = [given(response=text) for text in (" \n", "\N{REPLACEMENT CHARACTER}", "Well.")]
    stock = [given("toxic", "Here."), *sounding, *plain]
    assert worth_keeping(stock) == [*sounding[1:], plain[-1]]
    found = [dict.fromkeys(NUMBERS, 0.5) | {"label": row["label"]} for row in worth_keeping(stock)]
    kept = answers_kept(found, stock, stock)
    assert list(kept) == ["seemingly_toxic", "plain"]
    assert [(kept[label]["n"], kept[label]["refused"], kept[label]["empty"]) for label in kept] == [
        (2, 1, 0),
        (1, 0, 2),
    ]


def test_at_most_so_many_of_each_label_from_all_sets() -> None:
    """At even distances: of two sets of one size as many each."""
    rows = [given(source_label, prompt=str(i)) for source_label in ("plain", "seemingly_toxic") for i in range(10)]
    chosen = worth_keeping(rows, 4)
    assert [row["prompt"] for row in chosen] == ["0", "2", "5", "7"] * 2
    assert [row["label"] for row in chosen] == ["seemingly_toxic"] * 4 + ["plain"] * 4
    assert worth_keeping(rows[:3], 4) == rows[:3]


def test_means_and_intervals_are_over_prompts() -> None:
    """Every prompt weighs alike; kept is exp(-loss) with the ends of its interval, the lower first; words leave
    refusals out; one answer has no interval, and none has no numbers."""
    losses = [0.1, 0.5, 0.3, 0.7, 0.2]
    found = [dict.fromkeys(NUMBERS, loss) | {"label": "plain"} for loss in losses]
    own = [given(response="a b c"), given(response="a"), given(response="a b", refused=True)]
    stock = [given() for _ in losses] + [given("seemingly_toxic", refused=True)]
    result = answers_kept(found, stock, own)
    plain = result["plain"]
    assert plain["loss"] == pytest.approx(0.36)
    assert plain["loss_ci95"] == list(bootstrap_mean_interval(losses))
    assert plain["loss_ci95"][0] < 0.36 < plain["loss_ci95"][1]
    assert plain["kept"] == pytest.approx(math.exp(-0.36))
    assert plain["kept_ci95"] == pytest.approx([math.exp(-end) for end in plain["loss_ci95"][::-1]])
    assert (plain["words"], plain["stock_words"]) == (2, 3)
    assert (plain["distinct"], plain["stock_distinct"]) == (1, 1)
    looped = [given(response="no no no no no")]
    assert answers_kept(found, stock, looped)["plain"]["distinct"] == 0.25
    none = result["seemingly_toxic"]
    assert (none["n"], none["refused"], none["kept"], none["kept_ci95"], none["words"]) == (0, 1, None, None, None)
    assert answers_kept(found[:1], stock, own)["plain"]["kept_ci95"] is None


def test_nothing_to_keep_is_no_error(tiny_model: Callable[..., Model]) -> None:
    """Where the stock model refuses everything, there is nothing to measure by."""
    model = tiny_model()
    assert distances(model, read_stock_answers(model, worth_keeping([given(refused=True)]))) == []
