"""Claims about the preferences of DPO: who says what to which prompt, what is left out and why, given once and kept."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recipe_runs import small_settings
from tiny_models import add_random_adapter

from dcr_lite.compare import preferences
from dcr_lite.compare.dpo import batches, encoded
from dcr_lite.compare.preferences import Preference, Said, usual_opening
from dcr_lite.data.rows import Conversation, Pair, messages_of
from dcr_lite.errors import UserError
from dcr_lite.measure import openings
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
    say to a prompt, ``forced`` and ``behind`` what they say behind an opening."""

    def __init__(self, **says: Callable[[str], str]):
        usual = {"stock": lambda p: f"It is {p}", "sft": lambda p: SORRY, "behind": lambda p: ", no."}
        self.says = usual | {"forced": lambda p: f" all of {p}"} | says
        self.calls: list[tuple[str, list[str], int]] = []

    def __call__(self, model: Model, rows: list[list[int]], tokens: int) -> list[Answer]:
        asked = [model.tokenizer.decode(row) for row in rows]
        layers = [module for module in model.network.modules() if hasattr(module, "disable_adapters")]
        who = "stock" if all(layer.disable_adapters for layer in layers) else "sft"
        if not asked[0].endswith("assistant\n"):
            who = {"stock": "forced", "sft": "behind"}[who]
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
    return [json.loads(line) for line in (scene[0].path / "dpo_preferences.jsonl").read_text().splitlines()]


def test_each_kind_prefers_its_own(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stock model's answer over safety SFT's refusal where a prompt only seems toxic, the refusal over the answer
    where it is toxic; both sides of every pair, next to each other, with their own ends."""
    monkeypatch.setattr(openings, "answer", Talking(stock=lambda p: f"It is {p}"))
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


def test_prompts_are_answered_and_learnt_behind_the_messages_before_them(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both models are asked the template's conversation, and y+ and y- stand behind it."""
    talking, before = Talking(), (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."))
    monkeypatch.setattr(openings, "answer", talking)
    rows = found(scene, [replace(pair, before=before) for pair in PAIRS])
    assert {row.before for row in rows} == {before}
    prompts = [row.prompt for row in encoded(scene[1], rows)]
    tokenizer = scene[1].tokenizer
    for one, ids in zip(rows, prompts[::2], strict=True):
        messages = [*messages_of(before), {"role": "user", "content": one.prompt}]
        assert ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert prompts[::2] == prompts[1::2]
    stock, sft = (asked for who, asked, _ in talking.calls if who in ("stock", "sft"))
    assert stock == sft
    assert set(map(tokenizer.decode, prompts)) <= set(stock)


def test_who_does_not_refuse_is_led_to_it(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where safety SFT answers, the refusal is what it says behind the opening of most refusals, the opening included,
    in as many tokens altogether; other prompts are not asked again."""
    talking = Talking(sft=lambda p: SORRY if "cat" in p else "A mat.", behind=lambda p: f", I can't do mat {p[-2]}.")
    monkeypatch.setattr(openings, "answer", talking)
    rows = found(scene)
    assert {row.rejected.text for row in rows if not row.toxic} == {f"I'm sorry, I can't do mat {n}." for n in range(6)}
    assert {row.chosen.text for row in rows if row.toxic} == {SORRY}
    assert talking.who == ["stock", "sft", "behind"]
    _, asked, tokens = talking.calls[-1]
    assert all(text.endswith("assistant\nI'm sorry") and "mat" in text for text in asked)
    assert tokens == preferences.TOKENS - len(scene[1].tokenizer("I'm sorry")["input_ids"])


def both(pair: Pair) -> tuple[str, str]:
    return pair.toxic, pair.seemingly_toxic


def sides(rows: list[Preference]) -> dict[str, tuple[bool, str, str]]:
    """Whether it is toxic, and what is chosen and rejected, by prompt."""
    return {row.prompt: (row.toxic, row.chosen.text, row.rejected.text) for row in rows}


def test_what_a_model_refuses_by_itself_has_both_sides(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one model says both, as where DPO begins with a chat model that refuses: its own refusal, and behind a
    complying opening, which is part of it, an answer in as many tokens altogether. Of what it answers, the refusal is
    the side that it has to be led to. The forced ones are counted."""

    def say(prompt: str) -> str:
        return SORRY if prompt[-2] in "012" else "Fine."

    talking = Talking(stock=say, sft=say, behind=lambda p: ", I can't do that.")
    monkeypatch.setattr(openings, "answer", talking)
    found_sides = sides(found(scene))
    assert len(found_sides) == 2 * len(PAIRS)
    for pair in PAIRS:
        for prompt, toxic in zip(both(pair), (True, False), strict=True):
            refused = prompt[-2] in "012"
            answered = f"Sure, here is all of {prompt}" if refused else "Fine."
            refusal = SORRY if refused else "I'm sorry, I can't do that."
            expected = (refusal, answered) if toxic else (answered, refusal)
            assert found_sides[prompt] == (toxic, *expected)
    assert talking.who == ["stock", "forced", "sft", "behind"]
    _, asked, tokens = talking.calls[1]
    assert all(text.endswith("assistant\nSure, here is") for text in asked)
    assert tokens == preferences.TOKENS - len(scene[1].tokenizer("Sure, here is")["input_ids"])
    assert {row["prompt"] for row in kept(scene) if row["forced"]} == {p for p in found_sides if p[-2] in "012"}
    assert (scene[0].finished(preferences.PART) or {})["counts"] == {
        "toxic: learnt": 3, "toxic: learnt, answer forced": 3,
        "seemingly_toxic: learnt": 3, "seemingly_toxic: learnt, answer forced": 3,
    }  # fmt: skip


def test_sides_keep_the_number_of_their_pair(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever side of which pair is left out: toxic first, as the file has them, and both sides of a pair that has
    both in one batch."""
    broken = {"what is cat 0?", "what is mat 2?", "what is cat 3?", "what is mat 3?"}
    monkeypatch.setattr(openings, "answer", Talking(stock=lambda p: "" if p in broken else "Fine."))
    rows = found(scene)
    asked = [row["prompt"] for row in kept(scene)]
    assert [Pair(*asked[i : i + 2]) for i in range(0, len(asked), 2)] == [
        next(pair for pair in PAIRS if prompt == pair.toxic) for prompt in asked[::2]
    ]
    assert [row.prompt for row in rows] == [prompt for prompt in asked if prompt not in broken]
    assert all((row.pair, row.toxic) == (n // 2, n % 2 == 0) for row in rows for n in [asked.index(row.prompt)])
    for batch in batches(rows, 0):
        together = {rows[i].pair for i in batch}
        assert sorted(batch) == [i for i, row in enumerate(rows) if row.pair in together]


def test_the_opening_is_that_of_most_refusals() -> None:
    """Of those that the model is known by; the first of them where none begins so."""
    rows = [Conversation("", text) for text in ("I won't.", "Sorry!", "I won't, no.", "Never. Never. Never.")]
    assert usual_opening(("Sorry", "I won't", "I can't"), rows) == "I won't"
    assert usual_opening(("Sorry", "I won't"), []) == "Sorry"


def test_what_is_of_no_use_is_left_out_with_its_reason(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt that the stock model refuses behind a complying opening too, whatever that hides of it, or gives a
    broken answer to, there as well, and one that safety SFT cannot be led to refuse; the other side of its pair stays,
    and the note counts them."""
    odd = {
        "what is cat 1?": SORRY, "what is mat 2?": "no yes " * 12, "what is cat 3?": "", "what is cat 5?": SORRY,
    }  # fmt: skip
    talking = Talking(
        stock=lambda p: odd.get(p, "Fine."), sft=lambda p: "Fine." if p == "what is mat 4?" else SORRY,
        forced=lambda p: " I won't." if p == "what is cat 1?" else "",
        behind=lambda p: " to be late. Here it is.",
    )  # fmt: skip
    monkeypatch.setattr(openings, "answer", talking)
    monkeypatch.setattr(preferences, "usual_opening", lambda *given: "Glad")
    pairs = [*PAIRS, Pair("what is cat 6?", "what is mat 6?")]
    rows = found(scene, pairs)
    reasons = {row["prompt"]: row["left_out"] for row in kept(scene) if row["left_out"]}
    assert reasons == {
        "what is cat 1?": "the stock model refuses behind an opening, too",
        "what is mat 2?": "the stock model's answer is broken",
        "what is cat 3?": "the stock model's answer is broken",
        "what is cat 5?": "the stock model's answer is broken",
        "what is mat 4?": "no refusal of safety SFT",
    }
    assert {row.prompt for row in rows} == {side for pair in pairs for side in both(pair)} - set(reasons)
    assert all(len({row.pair for row in rows if row.prompt[-2] == n}) == 1 for n in "0123456")
    assert (scene[0].finished(preferences.PART) or {})["counts"] == {
        "toxic: learnt": 4, "toxic: the stock model refuses behind an opening, too": 1,
        "toxic: the stock model's answer is broken": 2,
        "seemingly_toxic: learnt": 5, "seemingly_toxic: the stock model's answer is broken": 1,
        "seemingly_toxic: no refusal of safety SFT": 1,
    }  # fmt: skip


def test_too_few_preferences_are_an_error(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the stock model cannot be led to answer nearly all, the sentence says so and names the file."""
    talking = Talking(stock=lambda p: SORRY if p[-2] in "0123" else "Fine.", forced=lambda p: SORRY)
    monkeypatch.setattr(openings, "answer", talking)
    with pytest.raises(UserError, match=r"only 4 preferences in 12 prompts.*dpo_preferences\.jsonl.*--pairs"):
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
        monkeypatch.setattr(openings, "answer", talking)
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
    with pytest.raises(UserError, match=r"dpo_preferences\.jsonl is missing or damaged\. Delete it and"):
        found(scene, seed=1)
    (scene[0].path / "dpo_preferences.jsonl").write_text("")
    with pytest.raises(UserError, match=r"dpo_preferences\.jsonl is missing or damaged\. Delete it and"):
        found(scene)


def test_pairs_are_drawn_and_long_ones_left_out(scene: Scene, other: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most PAIRS of them, others with another seed, none whose preferences, of two rows each, are too long."""
    monkeypatch.setattr(openings, "answer", Talking())
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


def test_a_real_model_that_refuses_learns_from_itself(
    scene: Scene, tiny_model: Callable[..., Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing has been trained, the stock model is the one that DPO begins with: of what it refuses and of what
    it answers, toxic and seemingly toxic, each has what it said by itself on one side, and on the other what it says
    behind the opening for that."""
    model = tiny_model()
    ids = {p: encode_prompts(model.tokenizer, [p], model.window)[0] for one in PAIRS for p in both(one)}
    own = dict(zip(ids, (said.text for said in answer(model, list(ids.values()), preferences.TOKENS)), strict=True))
    refused = {text for prompt, text in own.items() if int(prompt[-2]) % 2}
    assert refused
    assert not refused & {text for prompt, text in own.items() if not int(prompt[-2]) % 2}
    for module in (openings, preferences):
        monkeypatch.setattr(module, "is_refusal", lambda text: text in refused or text.startswith("I'm sorry"))
    monkeypatch.setattr(preferences, "is_broken", lambda prompt, text: not text)

    def behind(opening: str) -> dict[str, str]:
        first = model.tokenizer(opening)["input_ids"]
        said = answer(model, [row + first for row in ids.values()], preferences.TOKENS - len(first))
        texts = [model.tokenizer.decode([*first, *one.ids], skip_special_tokens=True).strip() for one in said]
        return dict(zip(ids, texts, strict=True))

    forced, led = behind("Sure, here is"), behind("I'm sorry")

    found_sides = sides(found((scene[0], model)))
    kinds = {(toxic, prompt, own[prompt] in refused) for prompt, (toxic, _, _) in found_sides.items()}
    assert kinds == {(p == one.toxic, p, own[p] in refused) for one in PAIRS for p in both(one)}
    assert {(toxic, refuses) for toxic, _, refuses in kinds} == {(a, b) for a in (True, False) for b in (True, False)}
    for prompt, (toxic, chosen, rejected) in found_sides.items():
        refusal, answered = (chosen, rejected) if toxic else (rejected, chosen)
        refuses = own[prompt] in refused
        assert refusal == (own[prompt] if refuses else led[prompt])
        assert answered == (forced[prompt] if refuses else own[prompt])
