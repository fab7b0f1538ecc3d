"""Claims about a model's own answers: what is learnt from, in whose place, kept once, and the same when resumed."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import small_settings
from small_runs import flags, run_here
from tiny_models import build_tokenizer

from dcr_lite.data.rows import Before, Conversation
from dcr_lite.data.splits import evenly_drawn
from dcr_lite.errors import UserError
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.generation import Answer
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR
from dcr_lite.run import begun_answers, inputs, opening, own_voice, plan, steps
from dcr_lite.run.inputs import Data
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.run.second_turns import with_second_turns
from dcr_lite.settings import Settings

TOKENIZER = build_tokenizer()
SAID = (
    "I have a cat.",
    "I'm sorry, but I can't help with that.",
    "",
    "One two three four five six seven eight. " * 4,
    "Ω Κυρικός Πολεβρούμες και αλλα πολλα",  # in a script that nobody asked for
)


class Talking:
    """A stand-in for the model's answers: to the n-th prompt whatever ``says`` gives, and a record of the calls."""

    def __init__(self, model: Model, says: Callable[[int], Answer]):
        self.model, self.says, self.batches, self.at_once = model, says, [], []

    def __call__(self, model: Model, rows: list[list[int]], tokens: int, **more: Any) -> list[Answer]:
        assert model.network.base_model.active_adapters == [] or all(
            module.disable_adapters for module in model.network.modules() if hasattr(module, "disable_adapters")
        )
        before = sum(self.batches)
        self.batches.append(len(rows))
        self.at_once.append(model.prompts_at_once)
        return [self.says(before + i) for i in range(len(rows))]


@pytest.fixture
def scene(tiny: Path, rows: Path, tmp_path: Path) -> tuple[RunFolder, Model, Data, Settings]:
    """A run of which 8 of 18 instructions are to be learnt, and 10 are watched or left over."""
    settings = small_settings(tiny, rows, tmp_path / "run", instructions=8, answers="own")
    run, data, (model, _) = RunFolder(settings), inputs.load_data(settings), opening.load_model(settings)
    plain = [p for p in data.watched if p.label == "plain"]
    data = replace(data, watched=[p for p in data.watched if p not in plain[4:]])  # of ten, four are watched
    return run, model, data, settings


def file_of(run: RunFolder) -> Path:
    return run.path / "own_answers.jsonl"


@pytest.mark.parametrize("stage2", ["yes", "no"])
@pytest.mark.parametrize("compared", [(), ("safety_sft",)])
def test_the_plan_counts_them_where_they_are_learnt(
    scene: tuple[RunFolder, Model, Data, Settings], stage2: Any, compared: tuple[Any, ...]
) -> None:
    """In stage 2, or by safety SFT alone beside a run that has none; and the dial's readings among the dial."""
    _, model, data, settings = scene
    settings = replace(settings, stage2=stage2, compare_with=compared)
    parts = plan.operations(model, data, settings)
    assert ("own answers" in parts) == (stage2 == "yes" or bool(compared))
    assert "dial" not in parts
    turned = plan.operations(model, data, replace(settings, dial="balanced"))
    assert turned["dial"] > 0
    assert {part: turned[part] for part in parts} == parts


def test_the_plan_counts_what_is_trained(scene: tuple[RunFolder, Model, Data, Settings]) -> None:
    """Of four layers those above L in stage 2, and in a step of stage 1 no more prompts than there are."""
    _, model, data, settings = scene

    def counted(part: str, **changes: Any) -> float:
        return plan.operations(model, data, replace(settings, **changes))[part]

    lower, upper = (counted("stage2", layer=layer, sft_layers="above") for layer in (1, 2))
    assert counted("stage2", sft_layers="all") - upper == pytest.approx(3 * (lower - upper))
    there_are = 2 * len(data.training)
    assert counted("stage1", contrastive_batch=10 * there_are) == counted("stage1", contrastive_batch=there_are)


def test_unusable_answers_are_replaced_while_others_are_left(
    scene: tuple[RunFolder, Model, Data, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refusals, empty and broken answers are not learnt from, cut off and repeating ones are but for their ends, and
    nothing that was thought before an answer. The next instructions in the order of the draw take their place, but
    never a prompt that is watched; all are in the file with their reasons. The baseline learns the same answers."""
    run, model, data, settings = scene
    said = [*SAID, *(f"<think>Hm.</think>Answer {i}." for i in range(len(SAID), 11))]
    talking = Talking(model, lambda i: Answer(said[i], 0.0, ended=i != 5))
    monkeypatch.setattr(own_voice, "answer", talking)
    own = own_voice.in_own_voice(run, model, data, settings)
    kept = [json.loads(line) for line in file_of(run).read_text().splitlines()]
    assert [row["left_out"] for row in kept] == ["", "refusal", "empty", "", "broken", *[""] * 6]
    watched = {p.prompt for p in data.watched}
    order = [row.prompt for row in evenly_drawn("", data.instructions, 18, settings.seed) if row.prompt not in watched]
    assert [row["prompt"] for row in kept] == order[:11]
    assert [(row.prompt, row.response, row.ends) for row in own.instructions] == [
        (row["prompt"], row["response"], row["ends"]) for row in kept if not row["left_out"]
    ]
    assert [row.ends for row in own.instructions] == [True, False, False, *[True] * 5]
    assert own.instructions[1].response == "One two three four five six seven eight."
    assert len(own.instructions) == 8
    assert own.instructions[-1].response == "Answer 10."
    mixed = {(row.prompt, row.response) for row in own.baseline_mixture if not row.refuses}
    assert mixed == {(row.prompt, row.response) for row in own.instructions}
    assert len(own.baseline_mixture) == 8 + settings.sizes["baseline_refusals"]
    assert talking.batches == [8, 3]
    assert model.prompts_at_once == 128
    assert set(talking.at_once) == {128 * (64 + 6) // (64 + 80)}  # planned for answers of 6 tokens
    assert (run.finished("own_answers") or {})["counts"] == {"learnt": 8, "refusal": 1, "empty": 1, "broken": 1}


def test_too_few_usable_answers_are_an_error(
    scene: tuple[RunFolder, Model, Data, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer than wanted are learnt from where no instruction is left; fewer than a quarter end with a sentence that
    names the cure."""
    run, model, data, settings = scene
    monkeypatch.setattr(own_voice, "answer", Talking(model, lambda i: Answer(f"Answer {i}." * (i < 2), 0.0, True)))
    own = own_voice.in_own_voice(run, model, data, settings)
    assert [row.response for row in own.instructions] == ["Answer 0.", "Answer 1."]
    file_of(run).unlink()
    run.note("own_answers").unlink()
    monkeypatch.setattr(own_voice, "answer", Talking(model, lambda i: Answer("Answer." * (i < 1), 0.0, True)))
    with pytest.raises(UserError, match=r"gives only 1 of 14 general .*--answers given"):
        own_voice.in_own_voice(run, model, data, settings)


@pytest.mark.parametrize(("ended", "said"), [(False, True), (True, False)])
def test_answers_that_never_end_are_spoken_of(
    scene: tuple[RunFolder, Model, Data, Settings], ended: bool, said: bool,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """A base model whose tokenizer brings a chat template gives such, and is to be told by the user what it is."""
    run, model, data, settings = scene
    monkeypatch.setattr(own_voice, "answer", Talking(model, lambda i: Answer(f"Answer {i}.", 0.0, ended)))
    own_voice.in_own_voice(run, model, data, settings)
    out = " ".join(capsys.readouterr().out.split())
    assert ("Of 8 own answers 0 end by themselves within 80 tokens." in out) == said
    assert ("with --chat-format chatml, or with --answers given" in out) == said


def test_stopped_answers_go_on_and_are_given_once(
    scene: tuple[RunFolder, Model, Data, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop keeps every finished batch; afterwards nothing is answered again, and a file that was changed or belongs
    to other rows is named."""
    run, model, data, settings = scene
    monkeypatch.setattr(own_voice, "BATCH", 3)

    def until(stop: int) -> Talking:
        def says(i: int) -> Answer:
            if i == stop:
                raise KeyboardInterrupt
            return Answer("Fine.", 0.0, ended=True)

        talking = Talking(model, says)
        monkeypatch.setattr(own_voice, "answer", talking)
        return talking

    until(4)
    with pytest.raises(KeyboardInterrupt):
        own_voice.in_own_voice(run, model, data, settings)
    assert len(file_of(run).read_text().splitlines()) == 3
    talking = until(99)
    first = own_voice.in_own_voice(run, model, data, settings)
    assert talking.batches == [3, 2]
    assert own_voice.in_own_voice(run, model, data, settings) == first
    assert talking.batches == [3, 2]
    lines = file_of(run).read_text().splitlines(keepends=True)
    file_of(run).write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"own_answers\.jsonl is missing or damaged\. Delete it and"):
        own_voice.in_own_voice(run, model, data, settings)
    run.note("own_answers").unlink()
    file_of(run).write_text("".join(lines[::-1]))
    with pytest.raises(UserError, match=r"own_answers\.jsonl is missing or damaged"):
        own_voice.in_own_voice(run, model, data, settings)


def test_stage_2_and_the_baseline_learn_the_models_own_answers(
    scene: tuple[RunFolder, Model, Data, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are trained on what the stock model said, and on the given answers with --answers given."""
    run, model, data, settings = scene
    settings = replace(settings, compare_with=("safety_sft",))
    learnt: dict[str, set[str]] = {}

    def train(run: Any, model: Any, name: str, adapter: str, title: str, rows: Any, *more: Any) -> None:
        learnt[name] = {row.response for row in rows if not row.refuses}

    monkeypatch.setattr(steps, "train_safety_sft", train)
    monkeypatch.setattr(own_voice, "answer", Talking(model, lambda i: Answer("Mine.", 0.0, ended=True)))
    steps.refine(run, model, data, settings)
    for answers, expected in (("own", {"Mine."}), ("given", {row.response for row in data.instructions})):
        given = replace(settings, answers=answers)
        steps.teach_refusals(run, model, data, given)
        steps.teach_refusals_alone(run, model, data, given)
        assert learnt.keys() == {"stage2", "safety_sft"}
        assert all(said and said <= expected for said in learnt.values())


def test_refusals_are_learnt_again_behind_the_stock_models_own_beginnings(
    scene: tuple[RunFolder, Model, Data, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind at most MOST of its tokens, and once more beside all other rows of stage 2; where it refuses or says
    nothing there is no beginning to stop. Nothing of a beginning is learnt: the targets are the refusal alone."""
    run, model, data, settings = scene
    settings = replace(settings, refusals=4, begun_refusals=4, stage2="yes")
    ids = model.tokenizer("It is quite easy if you know how", add_special_tokens=False)["input_ids"]
    said = ("It is quite easy if you know how", "I'm sorry, but I can't help with that.", "", "It is quite easy")
    talking = Talking(model, lambda i: Answer(said[i], 0.0, ended=True, ids=tuple(ids[: 7 * (said[i] != "")])))
    monkeypatch.setattr(begun_answers, "answer", talking)
    steps.refine(run, model, data, settings)
    usual = steps.rows_of_stage2(run, model, data, replace(settings, begun_refusals=0))
    rows = steps.rows_of_stage2(run, model, data, settings)
    assert rows[: len(usual)] == usual
    begun = rows[len(usual) :]
    assert len(begun) == 2
    refusals = [row for row in usual if row.refuses]
    for row in begun:
        assert replace(row, begun="") in refusals
        assert row.begun
        assert model.tokenizer.decode(ids).startswith(row.begun)
    sft = SafetySFT("stage2", model, DCR, begun, SafetySFTConfig(0, 1, 2, 1e-3), 0)
    starts = encode_conversations(model.tokenizer, [r.prompt for r in begun], [r.response for r in begun], 512)
    for row, one, (prompt, answer) in zip(begun, sft.rows, starts, strict=True):
        assert one.prompt == prompt + model.tokenizer(row.begun, add_special_tokens=False)["input_ids"]
        assert one.answer == answer
    with pytest.raises(UserError, match="--begun-refusals 5: there are 4 --refusals"):
        inputs.load_data(replace(settings, begun_refusals=5))


def test_second_turns_are_conversations_of_the_template(
    scene: tuple[RunFolder, Model, Data, Settings],
) -> None:
    """As many rows as asked for, each behind another one with its answer, and nothing else changed; what the model is
    taught is the chat template's conversation, of which the last answer alone is learnt."""
    run, model, data, settings = scene
    settings = replace(settings, stage2="yes", answers="given", instructions=8, refusals=4, second_turns=0.5)
    steps.refine(run, model, data, settings)
    usual = steps.rows_of_stage2(run, model, data, replace(settings, second_turns=0.0))
    rows = steps.rows_of_stage2(run, model, data, settings)
    assert [replace(row, before=()) for row in rows] == usual
    second = [row for row in rows if row.before]
    assert len(second) == 6
    said = {turn_of(row) for row in usual}
    assert all(row.before in said and row.before[0][1] != row.prompt for row in second)
    sft = SafetySFT("stage2", model, DCR, second, SafetySFTConfig(0, 1, 2, 1e-3), 0)
    for row, one in zip(second, sft.rows, strict=True):
        turns = [*(content for _, content in row.before), row.prompt]
        messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
        expected = model.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert one.prompt == expected
        assert model.tokenizer.decode(one.answer, skip_special_tokens=True).strip() == row.response.strip()


def turn_of(row: Conversation) -> Before:
    """The row as a turn before another one."""
    return (("user", row.prompt), ("assistant", row.response))


def test_a_second_turn_keeps_the_messages_that_it_had() -> None:
    """The other row's turn comes behind the system message and before the further ones; what stands behind messages
    comes before nothing, where these would be missing."""
    system, talk = (("system", "Be brief."),), (("user", "Hi"), ("assistant", "Hello."))
    rows = [Conversation("a", "b"), Conversation("c", "d", before=system), Conversation("e", "f", before=system + talk)]
    found = with_second_turns(TOKENIZER, rows, 1.0, 0, 512)
    assert [row.before for row in found] == [(), system + turn_of(rows[0]), system + turn_of(rows[0]) + talk]


words = st.text("abc ", max_size=30).map(str.strip)


@given(st.lists(st.tuples(words, words, st.booleans()), min_size=1, max_size=9), st.floats(0, 1), st.integers(0, 60))
def test_no_second_turn_is_longer_than_fits(texts: list[tuple[str, str, bool]], share: float, room: int) -> None:
    """Of tokens with the turn before; at most the share of the rows is chosen, and none whose answer was cut off comes
    first."""
    rows = [Conversation(f"{i} {prompt}", response, ends=ends) for i, (prompt, response, ends) in enumerate(texts)]
    alone = [sum(map(len, row)) for row in encode_conversations(TOKENIZER, *texts_of(rows), 512)]
    most = max(alone) + room
    found = with_second_turns(TOKENIZER, rows, share, 0, most)
    assert [replace(row, before=()) for row in found] == rows
    second = [row for row in found if row.before]
    assert len(second) <= round(share * len(rows))
    ended = {turn_of(row) for row in rows if row.ends}
    for row in second:
        assert row.before in ended
    whole = encode_conversations(TOKENIZER, *texts_of(found), 2048, before=[row.before for row in found])
    assert max(len(prompt) + len(answer) for prompt, answer in whole) <= most


def texts_of(rows: list[Conversation]) -> tuple[list[str], list[str]]:
    return [row.prompt for row in rows], [row.response for row in rows]


def test_the_report_and_the_card_say_whose_answers_were_learnt(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How many were learnt and why others were not; how long it took; the card says that the model answered itself.
    Without others to take, fewer are learnt."""
    said = ["", *(f"Answer {i}." for i in range(99))]
    monkeypatch.setattr(own_voice, "answer", lambda model, rows, *more, **stop: [
        Answer(said.pop(0), 0.0, ended=True) for _ in rows
    ])  # fmt: skip
    run = tmp_path / "run"
    short = {"instructions": 8, "contrastive_steps": 4, "sft_epochs": 1}
    done = run_here(flags(tiny, rows, run, answers="own", **short))
    assert (done.code, done.err) == (0, "")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    assert report["data"]["own_answers"] == {"empty": 1, "learnt": 7}
    assert report["seconds"]["own_answers"] > 0
    page = (run / "report.md").read_text(encoding="utf-8")
    assert "learns 7 general answers that the stock model gave itself (left out: 1 empty)." in page
    assert "own answers 0 s, stage 2" in page
    card = (run / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "7 instructions (rows of its own, answered by the stock model itself)" in card
