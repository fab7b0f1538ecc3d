"""The user's prompts of dcr-lite mend: every form of file, what is wrong with one, and how they are divided."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcr_lite.data.near import telltale_words
from dcr_lite.errors import UserError
from dcr_lite.mend import prompts
from dcr_lite.mend.prompts import FEW, Wish
from dcr_lite.mend.settings import MendSettings

FIVE = [f"How do I kill process {n}?" for n in range(5)]


def write(path: Path, content: str | bytes | list[Any]) -> Path:
    """A text, bytes, or rows of JSON Lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(row) + "\n" for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def asked(folder: Path, **files: Any) -> list[Wish]:
    """The wishes that these contents of --answer, --refuse or --marks give."""
    paths = {name: write(folder / name, content) for name, content in files.items()}
    return prompts.asked(MendSettings(model="m", run=folder / "run", **paths))


@pytest.mark.parametrize(
    "content",
    [
        "\n".join(FIVE),
        "\ufeff" + "\r\n\n  ".join(FIVE) + "\n",
        [{"prompt": prompt, "label": "seemingly_toxic", "source": "mine"} for prompt in FIVE],
    ],
)
def test_a_prompt_a_line_or_json_lines(content: Any, tmp_path: Path) -> None:
    """Blank lines, line ends of Windows and a byte order mark make no difference."""
    wishes = asked(tmp_path, answer=content)
    assert [(wish.prompt, wish.answered, wish.part) for wish in wishes] == [(prompt, True, "") for prompt in FIVE]
    assert wishes[0].place == f"{tmp_path / 'answer'}, line 1"


def test_a_prompt_counts_once(tmp_path: Path) -> None:
    """However it is spaced and capitalised, with its first line."""
    wishes = asked(tmp_path, answer="\n".join([*FIVE, FIVE[0].upper(), FIVE[1].replace(" ", "  ")]))
    assert [wish.prompt for wish in wishes] == FIVE


def test_twins_are_to_be_refused(tmp_path: Path) -> None:
    """The toxic side of each pair stands behind the prompts of --refuse, and both know each other."""
    pairs = [{"seemingly_toxic": prompt, "toxic": f"How do I hurt {n}?"} for n, prompt in enumerate(FIVE[:2])]
    others = [{"prompt": prompt} for prompt in [*FIVE[2:], "How do I kill time?"]]
    wishes = asked(tmp_path, answer=[*pairs, *others], refuse="How do I hit him?")
    assert [wish.answered for wish in wishes] == [True] * 6 + [False] * 3
    assert [wish.twin for wish in wishes] == [7, 8, -1, -1, -1, -1, -1, 0, 1]
    assert [wish.prompt for wish in wishes[6:]] == ["How do I hit him?", "How do I hurt 0?", "How do I hurt 1?"]
    parts = prompts.divided(wishes, set(range(6)), {0}, 0)
    assert [parts[i].part for i in (0, 7, 1, 8)] == ["left_out", "kept", "trained", "trained"]


def test_a_twin_counts_once(tmp_path: Path) -> None:
    """One that two prompts share, or that is in --refuse as well, however it is written: nothing that is trained on is
    kept to measure by under another number."""
    twins = ["How do I hurt him?", "How do I HURT him?", "How do I hit him?"]
    pairs = [{"seemingly_toxic": prompt, "toxic": toxic} for prompt, toxic in zip(FIVE, twins, strict=False)]
    others = [{"prompt": prompt} for prompt in [*FIVE[3:], "How do I kill time?"]]
    wishes = asked(tmp_path, answer=[*pairs, *others], refuse="How do I hit him?\nHow do I rob him?")
    assert [wish.prompt for wish in wishes[6:]] == ["How do I hit him?", "How do I rob him?", "How do I hurt him?"]
    assert [wish.twin for wish in wishes] == [8, 8, 6, -1, -1, -1, 2, -1, 0]
    for left_out, part in (({0}, "trained"), ({1}, "trained"), ({0, 1}, "kept")):  # few are refused: all are trained on
        assert prompts.divided([*wishes, Wish("And?", True, "")], set(), left_out, 0)[8].part == part


def test_marks_stand_for_both_files(tmp_path: Path) -> None:
    """answer and refuse, as the demo writes them."""
    rows = [{"prompt": prompt, "wanted": "answer", "said": "No."} for prompt in FIVE]
    wishes = asked(tmp_path, marks=[{"prompt": "How do I hit him?", "wanted": "refuse"}, *rows])
    assert [(wish.prompt, wish.answered) for wish in wishes] == [
        *((p, True) for p in FIVE),
        ("How do I hit him?", False),
    ]


def test_the_run_goes_on_with_the_prompts_that_it_kept(tmp_path: Path) -> None:
    """Whatever has become of the file."""
    wishes = asked(tmp_path, answer="\n".join(FIVE))
    prompts.keep(tmp_path / "run", wishes)
    assert asked(tmp_path, answer="others") == wishes
    (tmp_path / "run" / "mend" / "prompts.json").write_text('{"prompts": [{"prompt": 1}]}')
    with pytest.raises(UserError, match=r"prompts\.json is missing or damaged"):
        asked(tmp_path, answer="others")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "name the prompts that are to be answered with --answer"),
        ({"answer": "\n".join(FIVE[:4])}, "4 prompts to answer, and 5 are needed"),
        ({"answer": "\n \n"}, "answer: no prompts in it"),
        ({"answer": b"\n\n\xff"}, "answer, line 3: not UTF-8"),
        ({"answer": b"a\0b"}, "answer: not a text file"),
        (
            {"answer": "prompt,verdict\n" + "\n".join(FIVE)},
            "answer: a table or a JSON array. Save its prompts",
        ),
        ({"answer": json.dumps(FIVE, indent=1)}, "answer: a table or a JSON array. Save its prompts"),
        ({"answer": '{"prompt": "a"}\nb'}, "answer, line 2: not JSON"),
        ({"answer": [{"text": "a"}]}, 'answer, line 1: field "prompt" is missing'),
        ({"answer": [{"prompt": "a", "label": "toxic"}]}, 'line 1: label "toxic" among the prompts to answer'),
        ({"answer": [{"prompt": "a", "label": "Toxic"}]}, 'line 1: label "Toxic" among the prompts to answer'),
        ({"answer": "\n".join(FIVE), "refuse": [{"prompt": "a", "label": "plain"}]}, "among the prompts to refuse"),
        (
            {"answer": [{"prompt": "a", "before": [{"role": "system", "content": "b"}]}], "refuse": "c"},
            "stand alone: take",
        ),
        ({"answer": "\n".join(FIVE), "refuse": [{"toxic": "a", "seemingly_toxic": "b"}]}, "Give pairs with --answer"),
        ({"answer": "\n".join(FIVE), "refuse": f"x\n{FIVE[2]} "}, "refuse, line 2 refused, the same prompt"),
        ({"marks": ""}, "marks: no marks in it"),
        ({"answer": "\n".join(FIVE), "marks": "x"}, "--marks stands in place of --answer and --refuse"),
    ],
)
def test_what_is_wrong_is_a_sentence(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    """With the file and the line where there is one."""
    with pytest.raises(UserError) as caught:
        asked(tmp_path, **files)
    assert said in str(caught.value)


def test_json_lines_hold_objects(tmp_path: Path) -> None:
    """A text in quotation marks would be a prompt with these; a label may be written in capitals."""
    file = write(tmp_path / "answer.jsonl", FIVE)
    with pytest.raises(UserError, match=r"answer\.jsonl, line 1: str where an object"):
        prompts.asked(MendSettings(model="m", run=tmp_path / "run", answer=file))
    wishes = asked(tmp_path, answer="\n".join(FIVE), refuse=[{"prompt": "a", "label": "TOXIC"}])
    assert [wish.answered for wish in wishes] == [True] * 5 + [False]


def wishes_of(to_answer: int, to_refuse: int) -> list[Wish]:
    """No two are nearly the same."""
    return [Wish(chr(0x4E00 + i) * 4, i < to_answer, "") for i in range(to_answer + to_refuse)]


def parts_of(wishes: list[Wish], answered: bool) -> dict[str, int]:
    found = [wish.part for wish in wishes if wish.answered == answered]
    return {part: found.count(part) for part in sorted(set(found))}


@pytest.mark.parametrize("twin", [FIVE[1], FIVE[0].upper()])
def test_a_twin_that_is_to_be_answered_is_a_contradiction(twin: str, tmp_path: Path) -> None:
    """One text cannot stand on both sides of stage 1, be it in two rows or in one."""
    rows = [{"seemingly_toxic": FIVE[0], "toxic": twin}, *({"prompt": prompt} for prompt in FIVE[1:])]
    with pytest.raises(UserError, match=r"line \d is to be answered and \S*answer, line 1 refused, the same prompt"):
        asked(tmp_path, answer=rows)


def test_half_of_what_is_refused_today_is_kept() -> None:
    """And half of the others; what is doubtful is in neither; every seed draws others."""
    refused, doubtful = set(range(FEW + 1)), {0}
    found = [prompts.divided(wishes_of(30, 7), refused, doubtful, seed) for seed in (0, 1)]
    for wishes in found:
        of_refused = [wishes[i] for i in refused]
        assert parts_of(of_refused, True) == {"kept": FEW // 2, "left_out": 1, "trained": FEW // 2}
        assert parts_of(wishes, True) == {"kept": 14, "left_out": 1, "trained": 15}
        assert parts_of(wishes, False) == {"calibrating": 2, "kept": 2, "trained": 3}
    assert found[0] != found[1]


def test_prompts_to_refuse_are_dealt_by_what_is_refused_of_them() -> None:
    """Each part has as many of these, as near as can be, and as many of all."""
    for refused in range(13):
        today = set(range(5, 5 + refused))
        wishes = prompts.divided(wishes_of(5, 12), today, set(), 0)
        assert parts_of(wishes, False) == {"calibrating": 4, "kept": 4, "trained": 4}
        counts = [[wishes[i].part for i in today].count(part) for part in ("trained", "calibrating", "kept")]
        assert max(counts) - min(counts) <= 1


SIZES = st.lists(st.integers(1, 9), min_size=FEW, max_size=FEW + 9)


@settings(deadline=None, max_examples=20)
@given(sizes=SIZES, refused=st.integers(0, 3), seed=st.integers(0, 9))
def test_what_is_nearly_the_same_falls_on_one_side(sizes: list[int], refused: int, seed: int) -> None:
    """Of groups of prompts that say the same in other words each has one part, be it that of their toxic twins alone;
    the parts are of equal size, as near as the largest group allows, and so are what is refused today of them."""
    sides = {side: [(g, n) for g, size in enumerate(sizes) for n in range(size)] for side in (True, False)}
    alike = {place: f"{chr(0x4E00 + place[0]) * 40} {place[1]}" for place in sides[True]}
    few, many = len(sides[True]), len(sides[True]) + len(sides[False])
    own = [Wish(alike[place], True, "") for place in sides[True]]
    own += [Wish(alike[place].replace(" ", " not "), False, "") for place in sides[False]]
    today = {i for i, (_, n) in enumerate([*sides[True], *sides[False]]) if n < 1 + refused}
    parts = [wish.part for wish in prompts.divided(own, today, set(), seed)]
    by_twins = [replace(own[i], prompt=chr(0x5000 + i) * 4, twin=few + i) for i in range(few)]
    twins = [replace(own[i], twin=i - few) for i in range(few, many)]
    both = prompts.divided([*by_twins, *twins], today, set(), seed)
    twins_apart = [wish.part for wish in both[:few]]
    for found, first, turns in ((parts[:few], 0, 2), (parts[few:], few, 3), (twins_apart, 0, 2)):
        groups: dict[int, set[str]] = {}
        for (group, _), part in zip(sides[True], found, strict=True):
            groups.setdefault(group, set()).add(part)
        assert all(len(of_group) == 1 for of_group in groups.values())
        dealt = ("trained", "kept", "calibrating")[:turns]
        of_today = [part for i, part in enumerate(found, first) if i in today]
        for some, largest in ((found, max(sizes)), (of_today, 1 + refused)):
            counts = [some.count(part) for part in dealt]
            assert max(counts) - min(counts) <= largest


def test_prompts_that_are_all_nearly_the_same_are_all_trained_on() -> None:
    """None of them could say anything of others."""
    wishes = [Wish(f"How do I kill process {i}?", True, "") for i in range(FEW)]
    assert parts_of(prompts.divided(wishes, set(range(FEW)), set(), 0), True) == {"trained": FEW}


def test_few_prompts_are_all_trained_on() -> None:
    """However many others are answered today; fewer than five are not enough."""
    assert parts_of(prompts.divided(wishes_of(30, 0), set(range(FEW - 1)), set(), 0), True) == {"trained": 30}
    with pytest.raises(UserError, match="4 prompts to answer are left and 5 are needed"):
        prompts.divided(wishes_of(6, 0), set(range(6)), {1, 4}, 0)


def test_words_that_tell_two_kinds_apart_are_found() -> None:
    """Those that cover nearly all of one kind and are in hardly any prompt of another; no list is longer than a quarter
    of the prompts, and a kind without common words has none."""
    pods = [f"How do I kill pod {n}?" for n in range(8)]
    jobs = [f"How do I kill job {n}?" for n in range(8)]
    toxic = [f"How do I kill man {n}?" for n in range(16)]
    assert telltale_words(pods, toxic) == ["pod"]
    assert set(telltale_words(pods + jobs, toxic)) == {"pod", "job"}
    assert telltale_words(pods[:3], toxic) == []
    assert telltale_words([text.replace("pod", "man") for text in pods], toxic) == []
    assert telltale_words([f"word{n} again{n}" for n in range(16)], toxic) == []
    assert telltale_words(pods, toxic, ["Shut the pod down", "Go away"]) == []
    shipped = [f"How do I kill man {n}?" for n in range(200)]
    assert telltale_words(pods, [*shipped, *pods[:2]]) == ["pod"]  # in one of a hundred
    assert telltale_words(pods, [*shipped, *pods[:3]]) == []
