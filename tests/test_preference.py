"""Claims about benchmarks/preference.py: what counts as better is what a judge prefers in both orders."""

import json
from pathlib import Path
from typing import Any

import pytest
from preference import Choices, main, outcome_of, pairs_of, summary
from scripted_endpoint import Scripted, said
from small_runs import write_rows

from dcr_lite.errors import UserError

GOOD, BAD = "Use a flash.", "I'm sorry, I can't."


def row(prompt: str, response: str, label: str = "plain") -> dict[str, Any]:
    return {
        "source": "set", "label": label, "prompt": prompt, "response": response, "refused": False,
        "refusal_log_odds": 0.0,
    }  # fmt: skip


def files(folder: Path, first: list[dict[str, Any]], second: list[dict[str, Any]]) -> tuple[Path, Path]:
    return write_rows(folder / "first.jsonl", first), write_rows(folder / "second.jsonl", second)


def replies_of(body: Any) -> tuple[str, str]:
    """Both replies as the judge is shown them, in its order."""
    parts = body["messages"][0]["content"].split("<<<\n")
    return tuple(part.split("\n>>>")[0] for part in parts[2:4])  # type: ignore[return-value]


def by_content(path: str, body: Any, headers: Any) -> Any:
    """A judge that reads: it prefers GOOD wherever it stands."""
    if path.endswith("/models"):
        return 200, {"data": [{"id": "m"}]}, {}
    one, other = replies_of(body)
    return 200, said("TIE" if one == other else "FIRST" if one == GOOD else "SECOND"), {}


def test_the_better_answer_wins_wherever_it_stands(
    scripted: Scripted,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each pair is asked about in both orders; equal answers are a tie without a request; toxic prompts are left out;
    each label has its own counts."""
    scripted.reply = by_content
    first = [row("a", GOOD), row("b", BAD), row("c", GOOD), row("d", BAD, "seemingly_toxic"), row("e", GOOD, "toxic")]
    second = [row("c", GOOD), row("a", BAD), row("b", GOOD), row("d", GOOD, "seemingly_toxic"), row("e", BAD, "toxic")]
    one, other = files(tmp_path, first, second)
    result = main(Choices(one, other, scripted.url, json=tmp_path / "out.json"))
    shown = [replies_of(body) for path, body, _ in scripted.asked if path.endswith("completions")]
    assert sorted(shown) == sorted([(GOOD, BAD), (BAD, GOOD)] * 3)
    plain, sounding = result["plain"], result["seemingly_toxic"]
    assert (plain["n"], plain["first"], plain["second"], plain["tie"], plain["share"]) == (3, 1, 1, 1, 0.5)
    assert (sounding["n"], sounding["second"], sounding["share"], sounding["ci95"]) == (1, 1, 0, None)
    assert json.loads((tmp_path / "out.json").read_text()) == result
    assert "| seemingly toxic | 1 | 0 | 1 | 0 | 0 | 0 | 0.00 |" in capsys.readouterr().out


def test_a_judge_that_stays_with_a_place_finds_ties(scripted: Scripted, tmp_path: Path) -> None:
    """Whichever stands first: no side gains by it, and the table says how often."""
    scripted.reply = lambda path, body, headers: (200, said("<think>SECOND?</think> **First**"), {})
    one, other = files(tmp_path, [row(p, GOOD) for p in "abcd"], [row(p, BAD) for p in "abcd"])
    plain = main(Choices(one, other, f"{scripted.url}#m"))["plain"]
    assert (plain["tie"], plain["turned"], plain["share"], plain["ci95"]) == (4, 4, 0.5, [0.5, 0.5])


def test_a_judge_without_a_word_is_an_error(scripted: Scripted, tmp_path: Path) -> None:
    """Some unclear replies are counted; nothing but them is for the user to hear of."""
    one, other = files(tmp_path, [row("a", GOOD), row("b", GOOD)], [row("a", BAD), row("b", BAD)])
    scripted.reply = lambda path, body, headers: (200, said("FIRST or SECOND"), {})
    with pytest.raises(UserError, match="neither FIRST nor SECOND nor TIE"):
        main(Choices(one, other, f"{scripted.url}#m"))
    assert summary([(None, 1), (1, 1), (1, 1)])["unclear"] == 1


def test_outcomes_and_their_interval() -> None:
    """A tie is all but a preference in both orders; a tie counts half."""
    votes = {(1, 1): "first", (-1, -1): "second", (1, -1): "tie", (0, 1): "tie", (0, 0): "tie", (None, 1): None}
    assert [outcome_of(vote) for vote in votes] == list(votes.values())
    found = summary([(1, 1)] * 30 + [(-1, -1)] * 10 + [(0, 0)] * 10)
    assert found["share"] == 0.7
    low, high = found["ci95"]
    assert 0.55 < low < 0.65
    assert 0.75 < high < 0.85


def test_answers_to_other_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="the same seemingly toxic or plain prompts"):
        pairs_of([row("a", GOOD)], [row("b", GOOD)])
    with pytest.raises(UserError, match="the same"):
        pairs_of([row("a", GOOD, "toxic")], [row("a", GOOD, "toxic")])


def test_the_question_keeps_its_texts_as_they_are(scripted: Scripted, tmp_path: Path) -> None:
    """Per cent signs and braces in a prompt or an answer reach the judge."""
    scripted.reply = lambda path, body, headers: (200, said("TIE"), {})
    one, other = files(tmp_path, [row("50 %s", "{a} %d")], [row("50 %s", "100 %")])
    main(Choices(one, other, f"{scripted.url}#m"))
    shown = [body["messages"][0]["content"] for _, body, _ in scripted.asked]
    assert [text.count("<<<\n50 %s\n>>>") for text in shown] == [1, 1]
    assert replies_of(scripted.asked[0][1]) == ("{a} %d", "100 %")
