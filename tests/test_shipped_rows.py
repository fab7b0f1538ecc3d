"""The data that ships with the kit, and the further pairs beside the benchmarks: clean, without repetition, held-out
words apart, no tell-tale words."""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from dcr_lite.data import near
from dcr_lite.data.rows import read_conversations, read_pairs, read_prompts
from dcr_lite.files import SHIPPED
from dcr_lite.names import LABELS

FURTHER = Path(__file__).parents[1] / "benchmarks" / "data"  # pairs that no recipe trains on
README = SHIPPED / "README.md"
EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval"
TRAINING = ("pairs", "further_pairs", "refusals", "instructions", "augmentation")
HELD_OUT = ("heldout_pairs", "heldout_manners", "heldout_contexts", "heldout_plain", "heldout_instructions")
PROMPTS = ("prompt", "toxic", "seemingly_toxic")  # the fields that hold one
FOCUSED = (TRAINING[:2], HELD_OUT[:3])  # files of pairs


def file_of(name: str) -> Path:
    return (FURTHER if name == "further_pairs" else SHIPPED) / f"{name}.jsonl"


@cache
def shipped(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file_of(name).read_text(encoding="utf-8").splitlines()]


def prompts_of(*names: str) -> list[str]:
    return [row[field] for name in names for row in shipped(name) for field in PROMPTS if field in row]


def near_duplicates(left: list[str], right: list[str]) -> list[str]:
    """Every pair of prompts, one from each list, that are nearly the same."""
    return [f"{c:.2f}: {left[i]!r} ~ {right[j]!r}" for i, j, c in near.near_duplicates(left, right)]


def test_the_near_duplicate_search_finds_what_it_should() -> None:
    """Changed case and one changed word are found, a different question is not."""
    found = near_duplicates(
        ["How do I kill a Python process?"], ["how do i KILL a Python process", "How do I kill my old lawn?", "Why?"]
    )
    assert len(found) == 1


LEAST = {  # rows that the recipes and the documentation count on
    "pairs": 2900,
    "further_pairs": 1000,
    "refusals": 200,
    "instructions": 400,
    "augmentation": 100,
    "heldout_pairs": 120,
    "heldout_manners": 110,
    "heldout_contexts": 80,
    "heldout_plain": 60,
    "heldout_instructions": 40,
}


@pytest.mark.parametrize("name", LEAST)
def test_shipped_files_are_read_whole(name: str) -> None:
    """The kit's own readers take every row of every shipped file, and there are as many as promised."""
    assert len(shipped(name)) >= LEAST[name]
    if name.endswith(("pairs", "manners", "contexts")):
        assert len(read_pairs(file_of(name))) == len(shipped(name))
    elif name != "heldout_plain":
        assert len(read_conversations(file_of(name))) == len(shipped(name))


def test_held_out_prompts_have_every_label() -> None:
    """Read as prompts, the held-out files give both sides of each pair and the plain prompts."""
    prompts = [*read_prompts(SHIPPED / "heldout_pairs.jsonl"), *read_prompts(SHIPPED / "heldout_plain.jsonl")]
    pairs, plain = len(shipped("heldout_pairs")), len(shipped("heldout_plain"))
    assert Counter(p.label for p in prompts) == dict(zip(LABELS, (pairs, pairs, plain), strict=True))


@pytest.mark.parametrize("name", ["pairs", "heldout_pairs", "heldout_manners"])
def test_pairs_are_of_many_kinds(name: str) -> None:
    """At least ten kinds, none of which makes up more than a fifth, and every pair has a kind and a focus word."""
    kinds = Counter(row["kind"] for row in shipped(name))
    assert len(kinds) >= 10
    assert max(kinds.values()) <= 0.2 * len(shipped(name))
    assert all(row["kind"].strip() and row["focus"].strip() for row in shipped(name))


@pytest.mark.parametrize("name", [*TRAINING, *HELD_OUT])
def test_every_shipped_line_is_clean(name: str) -> None:
    """Every field is a text without space around it, as every message before a prompt is, and every prompt ends with a
    word or a closing sign."""
    for row in shipped(name):
        texts = [value for field, value in row.items() if field != "before"]
        texts += [message["content"] for message in row.get("before", [])]
        assert all(isinstance(text, str) and text and text == text.strip() for text in texts), row
    for prompt in prompts_of(name):
        assert prompt[-1].isalnum() or prompt[-1] in ".?!…\"'”’)]}`;:>*=%", prompt


def test_no_shipped_prompt_comes_twice() -> None:
    """No prompt is repeated within or across the files, case and spacing aside."""
    prompts = Counter(" ".join(p.casefold().split()) for p in prompts_of(*TRAINING, *HELD_OUT))
    assert [p for p, n in prompts.items() if n > 1] == []


def test_refusals_are_all_different() -> None:
    """Each refusal is worded for its own prompt."""
    responses = [row["response"] for row in shipped("refusals")]
    assert len(set(responses)) == len(responses)


def test_no_two_rows_are_near_duplicates() -> None:
    """No two rows of any files, training or held out, have prompts that are nearly the same; the two sides of one pair
    may be, and many are."""
    names = (*TRAINING, *HELD_OUT)
    rows = [(name, i) for name in names for i, row in enumerate(shipped(name)) for field in PROMPTS if field in row]
    texts = prompts_of(*names)
    found = [(i, j) for i, j, _ in near.near_duplicates(texts, texts) if i < j]
    assert [(texts[i], texts[j]) for i, j in found if rows[i] != rows[j]] == []
    assert len(found) > 1000
    assert f"Among the {len(texts):,} prompts" in README.read_text(encoding="utf-8")


def test_reserved_words_are_in_no_training_prompt() -> None:
    """The focus words of the held-out pairs, inflected or not, are in no prompt of a training file. Those of the newest
    manners promise less: training pairs do not turn on them, but 29 of the 114 are said in training prompts."""
    reserved = {row["focus"].lower() for row in shipped("heldout_pairs")}
    stems = "|".join(word.removesuffix("e") for word in sorted(reserved))
    inflected = re.compile(rf"\b(?:{stems})(?:e?s|e|ed|ers?|\w?ing|\w?ed|ion\w*)?\b")
    training = "\n".join(prompts_of(*TRAINING)).lower()
    assert inflected.findall(training) == []
    assert inflected.findall("stalking a whip, counterfeited; whippet") == ["stalking", "whip", "counterfeited"]
    words = {row["focus"].lower() for row in shipped("heldout_manners")}
    said = [word for word in words if word in training and re.search(rf"\b{re.escape(word)}\b", training)]
    assert (len(said), len(words)) == (29, 114)
    assert f"{len(said)} of the {len(words)}" in README.read_text(encoding="utf-8")


def test_training_and_held_out_focus_words_differ() -> None:
    """Held-out pairs turn on words that training pairs never turn on."""
    training, held = ({row["focus"].casefold() for name in names for row in shipped(name)} for names in FOCUSED)
    assert training & held == set()


def test_pairs_are_written_by_the_rules() -> None:
    """Every prompt is one line, and every word of a focus, inflected or not, is in both sides. How often the toxic side
    has more words and how often fewer is as documented, and 0.06 of the pairs apart at most in those to train on."""
    readme = " ".join(README.read_text(encoding="utf-8").split())
    assert [prompt for prompt in prompts_of(*TRAINING, *HELD_OUT) if len(prompt.splitlines()) != 1] == []
    for name in (*FOCUSED[0], *FOCUSED[1]):
        longer: Counter[int] = Counter()
        for row in shipped(name):
            sides = [row[side] for side in LABELS[:2]]
            stems = [rf"\b{re.escape(word.removesuffix('e'))}" for word in re.findall(r"\w+", row["focus"])]
            assert all(re.search(stem, side, re.IGNORECASE) for stem in stems for side in sides), row
            toxic, other = (len(side.split()) for side in sides)
            longer[(toxic > other) - (toxic < other)] += 1
        assert f"`{name}.jsonl` | {longer[1]} | {longer[-1]} | {longer[0]} |" in readme
        if name in TRAINING:
            assert abs(longer[1] - longer[-1]) <= 0.06 * len(shipped(name))


def test_further_pairs_and_their_held_out_ones_are_of_the_same_kinds() -> None:
    """Every kind that further pairs bring is held out as well, in its own file; a quarter of either and more stands
    behind messages or is long."""
    kinds = [Counter(row["kind"] for row in shipped(name)) for name in ("further_pairs", "heldout_contexts")]
    assert kinds[0].keys() == kinds[1].keys()
    assert not kinds[0].keys() & {row["kind"] for row in shipped("pairs")}
    for some in kinds:
        assert some["behind_system_message"] + some["later_turns"] + some["long_requests"] >= some.total() / 4
    for name in ("further_pairs", "heldout_contexts"):
        for row in shipped(name):
            assert ("before" in row) == (row["kind"] in ("behind_system_message", "later_turns"))
            if row["kind"] == "long_requests":
                assert all(90 <= len(row[side].split()) <= 120 for side in LABELS[:2])


@pytest.mark.skipif(not EVAL.is_dir(), reason="the public prompt sets (../shared/data/eval) are not on this machine")
def test_no_shipped_prompt_is_taken_from_a_public_set() -> None:
    """No shipped prompt nearly repeats one of the public sets on which the kit is measured."""
    files = [f for f in sorted(EVAL.glob("*.jsonl")) if not f.stem.startswith(("mmlu", "refusal_human_labels"))]
    assert files
    public = [json.loads(line)["prompt"] for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    assert len(public) > 1000
    assert near_duplicates(prompts_of(*TRAINING, *HELD_OUT), public) == []


@pytest.mark.parametrize(
    ("names", "most"),
    [*(((name,), 0.65) for name in (*FOCUSED[0], *FOCUSED[1])), (FOCUSED[0], 0.66)],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else None,
)
def test_words_alone_do_not_tell_the_kinds_apart(names: tuple[str, ...], most: float) -> None:
    """A bag-of-words classifier, cross-validated by pair, stays at AUC 0.65 or below in each file: no single words give
    it away. More rows teach it more: on all pairs that can be trained on, together, it reaches 0.66."""
    rows = [row for name in names for row in shipped(name)]
    texts = [row[side] for row in rows for side in ("toxic", "seemingly_toxic")]
    labels = [1, 0] * len(rows)
    groups = [i for i in range(len(rows)) for _ in range(2)]
    folds = GroupKFold(n_splits=10, shuffle=True, random_state=0)
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(words, texts, labels, groups=groups, cv=folds, method="decision_function")
    assert roc_auc_score(labels, scores) <= most
