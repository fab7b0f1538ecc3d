"""Claims about the demo's conversations: what each model is given, and what of its answer is shown."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the demo needs the extra: pip install 'dcr-lite[demo]'")

import gradio
from gradio_client import Client

from dcr_lite.data.marks import read_marks
from dcr_lite.demo import texts
from dcr_lite.demo.chat import ChatTab
from dcr_lite.demo.conversation import MAX_MESSAGES, Conversation, Turn, checked, messages_for
from dcr_lite.demo.score import Score
from dcr_lite.demo.scoring import OpenRun, open_run
from dcr_lite.errors import UserError
from dcr_lite.measure.judge import is_refusal
from dcr_lite.model.generation import answer

pytestmark = pytest.mark.usefixtures("short_answers")

SYSTEM, FIRST, SECOND = "You are a helpful assistant named Tiny.", "Name three cats.", "Can I burn a man with a clock?"


@pytest.fixture(scope="module")
def tab(opened: OpenRun) -> ChatTab:
    with gradio.Blocks():
        return ChatTab(opened)


def answers(talk: Conversation, turn: int = -1) -> dict[str, str]:
    return {name: score.answer for name, score in talk.turns[turn].scores.items()}


def alone(run: OpenRun, name: str, messages: list[dict[str, str]], tokens: int = 12) -> Any:
    """What generation.answer makes of the tokens that the tokenizer's own template gives."""
    row = run.model.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    strength = run.strength_of(name) if name in run.names else None

    def work() -> Any:
        run._models.set_rows([(name, strength)])
        return answer(run.model, [list(row)], tokens)[0]

    return run._worker.submit(work).result()


def test_a_model_that_is_opened_meanwhile_takes_part_from_the_next_conversation_on(
    demo_run: Path, dialled_run: Path
) -> None:
    """It has no answers of its own to go on from."""
    run, talk = open_run(demo_run), Conversation()
    with gradio.Blocks():
        tab = ChatTab(run)
    list(tab.sent(FIRST, "", talk))
    run.open_mended(dialled_run)
    shown = list(tab.sent(SECOND, "", talk))
    assert "mended" not in answers(talk)
    assert texts.NO_MODEL_VERDICT_YET in shown[0][tab.verdicts["mended"]]
    tab.cleared(talk)
    list(tab.sent(SECOND, "", talk))
    assert answers(talk)["mended"] == alone(run, "mended0", [{"role": "user", "content": SECOND}]).text


def test_each_model_goes_on_from_its_own_answers(opened: OpenRun, tab: ChatTab) -> None:
    """Two turns under a system prompt: each model's answer is the greedy one to the system prompt, the prompts and its
    own first answer, and what is shown is the verdict on its last answer with the probability before that."""
    talk, parts = Conversation(), []
    for prompt in (FIRST, SECOND):
        parts += list(tab.sent(prompt, SYSTEM, talk))
    own = set()
    for name in opened.names:
        first = talk.turns[0].scores[name]
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": FIRST},
            {"role": "assistant", "content": first.answer},
            {"role": "user", "content": SECOND},
        ]
        expected, last = alone(opened, name, messages), talk.turns[1].scores[name]
        assert (last.prompt, last.answer) == (SECOND, expected.text)
        assert last.refusal_log_odds == pytest.approx(expected.refusal_log_odds, abs=1e-3)
        assert last.refused == is_refusal(expected.text)
        assert last.kind is not None
        assert last.similarity is None
        own.add(first.answer)
        shown = [part[tab.verdicts[name]] for part in parts if tab.verdicts[name] in part][-1]
        assert f"refusal {last.refusal_probability:.2f}" in shown
        talked = [part[tab.talks[name]] for part in parts if tab.talks[name] in part][-1]
        assert talked.count('class="turn ') == 4
    assert len(own) > 1
    assert talk.prompts == (FIRST, SECOND)


def test_answers_grow_side_by_side(opened: OpenRun, tab: ChatTab) -> None:
    """Every model has begun before any has ended, and all are decoded in turns."""
    talk, orders = Conversation(), []
    for part in tab.sent(FIRST, "", talk):
        orders += [name for name in opened.names if tab.talks[name] in part and len(part) == 2]
    lasts = [len(orders) - orders[::-1].index(name) for name in opened.names]
    assert max(orders.index(name) for name in opened.names) < min(lasts) - 1
    assert talk.turns[0].scores.keys() == set(opened.names)


def test_an_answer_to_a_prompt_that_stands_alone_can_be_marked(opened: OpenRun, tmp_path: Path) -> None:
    """Once it is whole, and until something else is asked; no answer behind a turn or a system prompt can."""
    with gradio.Blocks():
        tab = ChatTab(opened, tmp_path / "marks.jsonl")
    best, talk = opened.names[0], Conversation()
    buttons = tab.marks[best]

    def works(parts: list[dict[Any, Any]]) -> bool:
        return [part[buttons._buttons[0]].interactive for part in parts if buttons._buttons[0] in part][-1]

    growing = tab.sent(FIRST, "", talk)
    assert not works([next(growing), next(growing)])
    assert works(list(growing))
    assert "Marked" in buttons.mark("answer", talk, FIRST)
    ((mark, _),) = read_marks(tmp_path / "marks.jsonl")
    assert (mark.prompt, mark.wanted, mark.said) == (FIRST, "answer", answers(talk)[best])
    assert not works(list(tab.sent(SECOND, "", talk)))
    assert texts.NOT_MARKED in buttons.mark("answer", talk, FIRST)
    tab.cleared(talk)
    assert not works(list(tab.sent(FIRST, SYSTEM, talk)))
    assert works(list(tab.retried("", talk)))
    assert not works([tab.undone(talk)])


def test_there_are_always_changes_to_show(opened: OpenRun, tmp_path: Path) -> None:
    """Gradio takes an empty dictionary for too few values, with marks and without."""
    for marks in (None, tmp_path / "marks.jsonl"):
        with gradio.Blocks():
            tab = ChatTab(opened, marks)
        talk = Conversation()
        assert all([*tab.sent(FIRST, "", talk), *tab.sent(SECOND, "", talk), *tab.turned(talk, 0.5)])


def test_who_goes_away_is_answered_no_more(opened: OpenRun, tab: ChatTab) -> None:
    """When the client of a page has gone, nothing of its three answers is kept or computed; another's goes on."""
    gone = tab.sent(FIRST, SYSTEM, Conversation())
    stays = tab.sent(SECOND, "", other := Conversation())
    for _ in range(4):
        next(gone), next(stays)
    assert len(opened._batching._running) > 0
    gone.close()
    list(stays)
    assert not opened._batching._running
    assert answers(other)["base"] == opened.score("base", SECOND, words=False).answer


def test_a_new_turn_ends_what_is_streamed(opened: OpenRun, tab: ChatTab) -> None:
    """A prompt that is sent while answers grow is asked after what there is of them; undoing and clearing end them as
    well. Nothing of the ended ones is computed."""
    talk = Conversation()
    growing = tab.sent(FIRST, "", talk)
    for _ in range(6):
        next(growing)
    so_far = answers(talk)
    list(tab.sent(SECOND, "", talk))
    assert list(growing) == []
    assert answers(talk, 0) == so_far
    for name in opened.names:
        given = messages_for(name, talk.turns, "")
        assert given[1] == {"role": "assistant", "content": so_far.get(name, "")}
        assert answers(talk)[name] == alone(opened, name, given).text
    for end in (tab.undone, tab.cleared):
        growing = tab.retried("", talk)
        next(growing), next(growing)
        end(talk)
        assert list(growing) == []
    assert not opened._batching._running


def test_a_turn_is_undone_asked_again_and_cleared(tab: ChatTab) -> None:
    """Undo gives the last prompt back and shows the verdict on the answer before; Retry asks it anew, with the system
    prompt as it is now; Clear leaves nothing."""
    talk = Conversation()
    list(tab.sent(FIRST, "", talk))
    before = tab._shown(talk)
    list(tab.sent(SECOND, "", talk))
    assert tab.undone(talk) == before | {tab.prompt: SECOND}
    assert [turn.prompt for turn in talk.turns] == [FIRST]
    without = answers(talk)
    list(tab.retried("", talk))
    assert answers(talk) == without
    list(tab.retried(SYSTEM + " Say no.", talk))
    assert len(talk.turns) == 1
    assert answers(talk) != without
    tab.cleared(talk)
    assert talk.turns == []
    assert tab.undone(talk) == tab.cleared(talk) == tab._shown(Conversation())
    assert list(tab.retried("", talk)) == [tab._shown(talk)]
    assert list(tab.turned(talk, 1.0)) == []


def test_the_example_is_a_conversation(opened: OpenRun, tab: ChatTab) -> None:
    """A click asks all its turns under its system prompt, but for those that are left when the client has gone on."""
    talk = Conversation()
    first, *_ = tab.example_sent(talk)
    assert first[tab.system] == texts.EXAMPLE_SYSTEM
    assert talk.prompts == texts.EXAMPLE_TURNS
    assert all(turn.scores.keys() == set(opened.names) for turn in talk.turns)
    shown = tab.example_sent(talk)
    next(shown)
    tab.cleared(talk)
    assert list(shown) == []
    assert talk.turns == []


def test_the_dial_answers_the_last_turn_again(opened: OpenRun, tab: ChatTab) -> None:
    """Of DCR alone, and only its last answer: those before are its context. A turn that was sent before that, and has
    waited, is answered where the dial stands now."""
    talk = Conversation()
    for prompt in (FIRST, SECOND):
        list(tab.sent(prompt, "", talk, 0.5))
    before = [answers(talk, 0), answers(talk)]
    talk.position = -2.0
    list(tab.turned(talk, -2.0))
    assert answers(talk, 0) == before[0]
    assert {name: text for name, text in answers(talk).items() if name != "dcr"} == {
        name: text for name, text in before[1].items() if name != "dcr"
    }
    *_, expected = opened.converse("dcr", messages_for("dcr", talk.turns, ""), strength=-2.0)
    assert talk.turns[1].scores["dcr"] == expected
    assert expected.strength == -2.0
    list(tab.sent(FIRST, "", talk, 0.5))
    assert talk.turns[2].scores["dcr"].strength == -2.0


def test_a_prompt_sent_while_the_dial_turns_has_no_answer_to_another(
    tab: ChatTab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent when the turned answer has just been asked for: nothing of it is shown, or kept under the new one."""
    talk, streams = Conversation(), tab._streams
    list(tab.sent(FIRST, "", talk, 0.5))

    def and_a_prompt_comes(*given: Any) -> Any:
        asked = streams(*given)
        talk.begin([*talk.turns, Turn(SECOND)], "", 0.5)
        return asked

    monkeypatch.setattr(tab, "_streams", and_a_prompt_comes)
    assert list(tab.turned(talk, 0.5)) == []
    assert talk.turns[-1].scores == {}


@pytest.mark.parametrize(
    ("prompt", "system", "says"),
    [("", "", "The prompt is empty"), ("Hi", "a" * 9_000, "9,000 characters"), ("word " * 400, "", "Undo a turn")],
)
def test_a_turn_that_cannot_be_asked_changes_nothing(prompt: str, system: str, says: str, tab: ChatTab) -> None:
    """A sentence, and the conversation is as it was."""
    talk = Conversation()
    list(tab.sent(FIRST, "", talk))
    before = tab._shown(talk)
    with pytest.raises(gradio.Error, match=says):
        list(tab.sent(prompt, system, talk))
    assert tab._shown(talk) == before
    assert [turn.prompt for turn in talk.turns] == [FIRST]


def test_what_was_thought_is_no_context() -> None:
    """An earlier answer is given without its thinking block, and as empty where there is none yet."""
    turns = [Turn("a", {"base": Score("base", "a", 0.0, answer="<think>\nhm\n</think>\n\nB.")}), Turn("c"), Turn("d")]
    assert [message["content"] for message in messages_for("base", turns, "")] == ["a", "B.", "c", "", "d"]


def test_a_program_has_conversations_too(opened: OpenRun, url: str) -> None:
    """/chat streams the values of the score of the last answer, for any model and strength, and says what is wrong."""
    client = Client(url, verbose=False)
    messages = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": FIRST},
        {"role": "assistant", "content": "Tom."},
        {"role": "user", "content": SECOND},
    ]
    parts = list(client.submit(messages, "dcr", -2.0, api_name="/chat"))
    *_, expected = opened.converse("dcr", messages, strength=-2.0)
    assert len(parts) > 3
    assert (parts[-1]["prompt"], parts[-1]["answer"], parts[-1]["strength"]) == (SECOND, expected.answer, -2.0)
    assert parts[-1]["refused"] == expected.refused
    with pytest.raises(Exception, match=r"Message 2 of 2: its role has to be assistant"):
        client.predict([messages[1], messages[3]], "dcr", api_name="/chat")


USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        (None, "a list of messages"),
        ([], "a list of messages"),
        ("Hi", "a list of messages"),
        (["Hi"], "message 1 of 1: .*role and content"),
        ([{"role": "user"}], "message 1 of 1: .*role and content"),
        ([USER | {"name": "me"}], "message 1 of 1: .*role and content"),
        ([USER | {"role": "tool"}], "message 1 of 1: its role has to be system or user, not 'tool'"),
        ([USER | {"role": ["user"]}], "message 1 of 1: its role has to be system or user"),
        ([ASSISTANT], "message 1 of 1: its role"),
        ([USER, USER], "message 2 of 2: its role has to be assistant"),
        ([USER, ASSISTANT], "the last message has to be the user's"),
        ([USER | {"content": 3}], "message 1 of 1: the prompt is not a text"),
        ([USER | {"content": " "}], "message 1 of 1: the prompt is empty"),
        ([USER, ASSISTANT] * 200, f"the limit is {MAX_MESSAGES}"),
    ],
)
def test_messages_that_are_no_conversation_are_an_error(messages: Any, says: str) -> None:
    """Each in a sentence that names the message."""
    with pytest.raises(UserError, match=says):
        checked(messages)


def test_a_conversation_of_a_program_is_cleaned() -> None:
    """Control characters go, and a model may have said nothing."""
    silent = [USER | {"content": "a\0b "}, ASSISTANT | {"content": ""}, USER]
    assert [message["content"] for message in checked(silent)] == ["ab", "", "Hi"]
