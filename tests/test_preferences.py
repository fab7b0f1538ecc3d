"""Claims about the preferences of DPO: who says what to which prompt, what is left out and why, given once and kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import small_settings
from tiny_models import add_random_adapter

from dcr_lite.compare import preferences
from dcr_lite.compare.preferences import Preference, Said, usual_opening
from dcr_lite.data.rows import Conversation, Pair
from dcr_lite.errors import UserError
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import Answer, answer
from dcr_lite.model.loading import Model
from dcr_lite.run.run_folder import RunFolder

SORRY = "I'm sorry, but I can't help with that."
REFUSALS = [Conversation("", text) for text in (SORRY, "I won't do that.", "I'm sorry, no.")]
PAIRS = [Pair(f"what is cat {n}?", f"what is mat {n}?") for n in range(6)]
Scene = tuple[RunFolder, Model]


class Talking:
    """A stand-in for answers, and a record of the calls. ``stock`` and ``sft`` give what the stock model and safety SFT
    say to a prompt, and ``behind`` what safety SFT says behind an opening."""

    def __init__(self, **says: Callable[[str], str]):
        self.says = {"stock": lambda p: f"It is {p}", "sft": lambda p: SORRY, "behind": lambda p: ", no."} | says
        self.calls: list[tuple[str, list[str], int]] = []

    def __call__(self, model: Model, rows: list[list[int]], tokens: int) -> list[Answer]:
        asked = [model.tokenizer.decode(row) for row in rows]
        layers = [module for module in model.network.modules() if hasattr(module, "disable_adapters")]
        who = "stock" if all(layer.disable_adapters for layer in layers) else "sft"
        if not asked[0].endswith("assistant\n"):
            who = "behind"
        prompts = [text.partition("user\n")[2].partition("<|im_end|>")[0] for text in asked]
        self.calls.append((who, asked, tokens))
        said = [self.says[who](prompt) for prompt in prompts]
        ids = [tuple(model.tokenizer(text)["input_ids"]) for text in said]
        return [Answer(text, 0.0, len(text) < 30, some) for text, some in zip(said, ids, strict=True)]

    @property
    def who(self) -> list[str]:
        return [who for who, _, _ in self.calls]


@pytest.fixture
def scene(tiny: Path, rows: Path, tmp_path: Path, tiny_model: Callable[..., Model]) -> Scene:
    """A run, and a model with the adapter of safety SFT."""
    model = tiny_model()
    add_random_adapter(model)
    return RunFolder(small_settings(tiny, rows, tmp_path / "run")), model


@pytest.fixture
def other(scene: Scene, tiny: Path, rows: Path, tmp_path: Path) -> Scene:
    """A second run of the same model."""
    return RunFolder(small_settings(tiny, rows, tmp_path / "other")), scene[1]


def found(scene: Scene, pairs: list[Pair] = PAIRS, seed: int = 0) -> list[Preference]:
    return preferences.of_run(*scene, pairs, REFUSALS, seed)


def kept(scene: Scene) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (scene[0].path / "preference_answers.jsonl").read_text().splitlines()]


def test_each_kind_prefers_its_own(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock model's answer over safety SFT's refusal where a prompt only seems toxic, the refusal over the answer
    where it is toxic; both sides of every pair, next to each other, with their own ends."""
    monkeypatch.setattr(preferences, "answer", Talking(stock=lambda p: f"It is {p}"))
    rows = found(scene)
    assert len(rows) == 2 * len(PAIRS)
    refusal = Said(SORRY, False)  # here what is long is cut off
    for toxic, sounding in zip(rows[::2], rows[1::2], strict=True):
        assert toxic.toxic
        assert not sounding.toxic
        assert toxic.pair == sounding.pair
        assert Pair(toxic.prompt, sounding.prompt) in PAIRS
        assert (toxic.chosen, toxic.rejected) == (refusal, Said(f"It is {toxic.prompt}", True))
        assert (sounding.chosen, sounding.rejected) == (Said(f"It is {sounding.prompt}", True), refusal)
    assert len({row.pair for row in rows}) == len(PAIRS)


def test_who_does_not_refuse_is_led_to_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where safety SFT answers, the refusal is what it says behind the opening of most refusals, the opening included,
    in as many tokens altogether; other prompts are not asked again."""
    talking = Talking(sft=lambda p: SORRY if "cat" in p else "A mat.", behind=lambda p: f", I can't do mat {p[-2]}.")
    monkeypatch.setattr(preferences, "answer", talking)
    rows = found(scene)
    assert {row.rejected.text for row in rows if not row.toxic} == {f"I'm sorry, I can't do mat {n}." for n in range(6)}
    assert {row.chosen.text for row in rows if row.toxic} == {SORRY}
    assert talking.who == ["stock", "sft", "behind"]
    _, asked, tokens = talking.calls[-1]
    assert all(text.endswith("assistant\nI'm sorry") and "mat" in text for text in asked)
    assert tokens == preferences.TOKENS - len(scene[1].tokenizer("I'm sorry")["input_ids"])


def test_the_opening_is_that_of_most_refusals() -> None:
    """Of those that the model is known by; the first of them where none begins so."""
    rows = [Conversation("", text) for text in ("I won't.", "Sorry!", "I won't, no.", "Never. Never. Never.")]
    assert usual_opening(("Sorry", "I won't", "I can't"), rows) == "I won't"
    assert usual_opening(("Sorry", "I won't"), []) == "Sorry"


def test_what_is_of_no_use_is_left_out_with_its_reason(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that the stock model refuses or gives a broken answer to, and one that safety SFT cannot be led to
    refuse; the other side of its pair stays, and the note counts them."""
    odd = {"what is cat 1?": SORRY, "what is mat 2?": "no yes " * 12, "what is cat 3?": ""}
    talking = Talking(
        stock=lambda p: odd.get(p, "Fine."), sft=lambda p: "Fine." if p == "what is mat 4?" else SORRY,
        behind=lambda p: " to be late. Here it is.",
    )  # fmt: skip
    monkeypatch.setattr(preferences, "answer", talking)
    monkeypatch.setattr(preferences, "usual_opening", lambda *given: "Glad")
    rows = found(scene)
    reasons = {row["prompt"]: row["left_out"] for row in kept(scene) if row["left_out"]}
    assert reasons == {
        "what is cat 1?": "the stock model refuses",
        "what is mat 2?": "the stock model's answer is broken",
        "what is cat 3?": "the stock model's answer is broken",
        "what is mat 4?": "no refusal of safety SFT",
    }
    assert {row.prompt for row in rows} == {side for p in PAIRS for side in (p.toxic, p.seemingly_toxic)} - set(reasons)
    assert all(len({row.pair for row in rows if row.prompt[-2] == n}) == 1 for n in "012345")
    assert (scene[0].finished(preferences.PART) or {})["counts"] == {
        "toxic: learnt": 4, "toxic: the stock model refuses": 1, "toxic: the stock model's answer is broken": 1,
        "seemingly_toxic: learnt": 4, "seemingly_toxic: the stock model's answer is broken": 1,
        "seemingly_toxic: no refusal of safety SFT": 1,
    }  # fmt: skip


def test_too_few_preferences_are_an_error(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stock model refuses nearly all, the sentence says so and names the file."""
    monkeypatch.setattr(preferences, "answer", Talking(stock=lambda p: SORRY if p[-2] in "0123" else "Fine."))
    with pytest.raises(UserError, match=r"only 4 preferences in 12 prompts.*preference_answers\.jsonl.*--pairs"):
        found(scene)


def test_a_stop_keeps_every_batch_and_nothing_is_answered_twice(
    scene: Scene, other: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answers go on where they stopped and end as undisturbed ones; a file that was changed, or of other pairs, is
    named."""
    monkeypatch.setattr(preferences, "BATCH", 4)

    def until(stop: str) -> Talking:
        def sft(prompt: str) -> str:
            if prompt == stop:
                raise KeyboardInterrupt
            return SORRY

        talking = Talking(sft=sft)
        monkeypatch.setattr(preferences, "answer", talking)
        return talking

    until("never")
    expected = found(other)
    until(expected[5].prompt)
    with pytest.raises(KeyboardInterrupt):
        found(scene)
    assert len(kept(scene)) == 4
    talking = until("never")
    assert found(scene) == expected
    assert talking.who == ["stock", "sft"] * 2
    assert found(scene) == expected
    assert talking.who == ["stock", "sft"] * 2
    with pytest.raises(UserError, match=r"preference_answers\.jsonl is missing or damaged\. Delete it and"):
        found(scene, seed=1)
    (scene[0].path / "preference_answers.jsonl").write_text("")
    with pytest.raises(UserError, match=r"preference_answers\.jsonl is missing or damaged\. Delete it and"):
        found(scene)


def test_pairs_are_drawn_and_long_ones_left_out(scene: Scene, other: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most PAIRS of them, others with another seed, none whose preferences, of two rows each, are too long."""
    monkeypatch.setattr(preferences, "answer", Talking())
    monkeypatch.setattr(preferences, "PAIRS", 5)
    model = scene[1]
    long = Pair("what is " + "a cat and " * 90, "what is a mat?")
    (length,) = map(len, encode_prompts(model.tokenizer, [long.toxic], model.window))
    assert length + preferences.TOKENS < model.window < 2 * (length + preferences.TOKENS)
    rows = found(scene, [*PAIRS, long])
    prompts = {row.prompt for row in rows}
    assert len(rows) == 2 * 5
    assert long.toxic not in prompts
    assert {row.prompt for row in found(other, [*PAIRS, long], seed=1)} != prompts


def test_a_real_model_speaks_for_itself(scene: Scene) -> None:
    """The words that are kept are those of the model without its adapter and with it; where these do not refuse, and
    random ones never do, they are what follows the opening."""
    model = scene[1]
    with pytest.raises(UserError, match="only 0 preferences"):
        found(scene)
    rows = kept(scene)
    ids = encode_prompts(model.tokenizer, [row["prompt"] for row in rows], model.window)
    with adapters.stock(model):
        assert [said.text for said in answer(model, ids, preferences.TOKENS)] == [row["answer"] for row in rows]
    first = model.tokenizer("I'm sorry")["input_ids"]
    behind = answer(model, [row + first for row in ids], preferences.TOKENS - len(first))
    texts = [model.tokenizer.decode([*first, *said.ids], skip_special_tokens=True).strip() for said in behind]
    assert texts == [row["refusal"] for row in rows]
    assert [said.ended for said in behind] == [row["refusal_ends"] for row in rows]
