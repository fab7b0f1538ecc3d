"""Claims about reading rows, about how batches are drawn, and about the data that ships with the kit."""

import json
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import normalize

from dcr_lite.data.rows import Conversation, Pair, Prompt, read_conversations, read_jsonl, read_pairs, read_prompts
from dcr_lite.data.splits import most_toxic, pair_batches, safety_mixture, sft_batches, split_by_focus
from dcr_lite.errors import UserError
from dcr_lite.files import SHIPPED
from dcr_lite.names import LABELS

GOOD = '{"prompt": "Hi", "response": "Hello"}\n'
Reader = Callable[[Path], list[Any]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reader", "content", "line", "says"),
    [
        (read_conversations, GOOD + "{not json}\n", 2, "not JSON"),
        (read_conversations, GOOD + "\n" + '{"prompt": "Hi"', 3, "not JSON"),
        (read_conversations, GOOD + '{"prompt": "Hi"}\n', 2, r'"response" is missing.*Found: prompt'),
        (read_conversations, '{"prompt": "", "response": "Hello"}\n', 1, '"prompt" is empty'),
        (read_conversations, GOOD + '{"prompt": null, "response": "Hello"}\n', 2, '"prompt" is empty'),
        (read_conversations, GOOD + '{"prompt": 3, "response": "Hello"}\n', 2, '"prompt" is not a text'),
        (read_conversations, GOOD + '{"prompt": " \\n ", "response": "Hello"}\n', 2, '"prompt" is'),
        (read_conversations, GOOD + "{}\n", 2, "no fields"),
        (read_conversations, GOOD + '["prompt"]\n', 2, "list where an object"),
        (read_conversations, GOOD + '"text"\n', 2, "str where an object"),
        (read_conversations, GOOD.encode() + b'{"prompt": "caf\xe9", "response": "x"}\n', 2, "not UTF-8"),
        (read_conversations, GOOD.encode("utf-16"), 1, "not UTF-8"),
        (read_pairs, '{"toxic": "a"}\n', 1, '"seemingly_toxic" is missing'),
        (read_prompts, '{"prompt": "a", "label": "Toxic"}\n', 1, 'label "Toxic" is none of toxic, seemingly_toxic'),
        (read_prompts, '{"prompt": "a"}\n', 1, '"label" is missing'),
        (read_prompts, '{"toxic": "a", "seemingly_toxic": ""}\n', 1, '"seemingly_toxic" is empty'),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, reader: Reader, content: str | bytes, line: int, says: str) -> None:
    """Every mistake in a file raises UserError with the file, the line's number and what is wrong with it."""
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(UserError, match=rf"{re.escape(str(path))}, line {line}: .*{says}"):
        reader(path)


@pytest.mark.parametrize("content", ["", "\n\n  \n", "\ufeff", "\ufeff\n"])
def test_a_file_without_rows_is_named(tmp_path: Path, content: str) -> None:
    """An empty file raises UserError with its path."""
    path = write(tmp_path / "rows.jsonl", content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: no rows"):
        read_conversations(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A path without a file, and a folder in its place, raise UserError with the path."""
    with pytest.raises(UserError, match=r"absent\.jsonl: no such file"):
        read_conversations(tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="cannot be read"):
        read_conversations(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + GOOD,  # as Windows editors save it
        GOOD.replace("\n", "\r\n"),
        "\n" + GOOD + "\n",
        GOOD.strip(),
        '{"prompt": "Hi", "response": "Hello", "more": [1, 2]}',
    ],
)
def test_harmless_differences_are_read(tmp_path: Path, content: str) -> None:
    """A byte-order mark, CRLF, blank lines, no last newline and further fields do no harm."""
    assert read_conversations(write(tmp_path / "rows.jsonl", content)) == [Conversation("Hi", "Hello")]


def test_text_comes_through_unchanged(tmp_path: Path) -> None:
    """Unicode line separators inside a text do not break the line, and no text is trimmed."""
    text = " a\u2028b\u0085c é 🎉\n"
    path = write(tmp_path / "rows.jsonl", json.dumps({"prompt": text, "response": text}, ensure_ascii=False))
    assert read_conversations(path) == [Conversation(text, text)]


def test_rows_that_hold_half_a_character_are_named(tmp_path: Path) -> None:
    """A lone surrogate, which no tokenizer takes, is a mistake of its line."""
    path = write(tmp_path / "rows.jsonl", GOOD + '{"prompt": "a \\ud83d", "response": "b"}\n')
    with pytest.raises(UserError, match=r"line 2"):
        read_conversations(path)


def test_pairs_come_with_or_without_their_notes(tmp_path: Path) -> None:
    """kind and focus are optional; absent and null both mean none."""
    rows = [
        {"toxic": "a", "seemingly_toxic": "b", "kind": "k", "focus": "f"},
        {"toxic": "a", "seemingly_toxic": "b"},
        {"toxic": "a", "seemingly_toxic": "b", "kind": None, "focus": None},
    ]
    path = write(tmp_path / "rows.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_pairs(path) == [Pair("a", "b", "k", "f"), Pair("a", "b"), Pair("a", "b")]


def test_prompts_come_from_labelled_rows_and_from_pairs(tmp_path: Path) -> None:
    """A pair gives its two sides; the source is the row's own or the file's name."""
    rows = [
        {"toxic": "a", "seemingly_toxic": "b"},
        {"prompt": "c", "label": "plain", "source": "mine"},
        {"prompt": "d", "label": "toxic"},
    ]
    path = write(tmp_path / "fresh.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_prompts(path) == [
        Prompt("a", "toxic", "fresh"),
        Prompt("b", "seemingly_toxic", "fresh"),
        Prompt("c", "plain", "mine"),
        Prompt("d", "toxic", "fresh"),
    ]


@given(content=st.binary(max_size=60))
def test_any_bytes_give_rows_or_a_user_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    """No file, whatever it holds, makes the reader fail with anything but UserError."""
    path = write(tmp_path_factory.getbasetemp() / "any.jsonl", content)
    message = ""
    try:
        rows = read_jsonl(path, lambda fields, place: fields)
    except UserError as error:
        rows, message = [], str(error)
    assert bool(rows) != (str(path) in message)
    assert all(isinstance(row, dict) for row in rows)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"a": ' + "9" * 5000 + "}"], ids=["deep", "a huge number"])
def test_lines_that_break_the_json_reader_are_named(tmp_path: Path, line: str) -> None:
    """Valid beginnings that Python's json cannot take are mistakes of their line, too."""
    path = write(tmp_path / "rows.jsonl", GOOD + line)
    with pytest.raises(UserError, match="line 2"):
        read_conversations(path)


# --- drawing ----------------------------------------------------------------------------------------------------------

some_pairs = st.lists(st.sampled_from(["", "kill", "shoot", "bomb", "burn", "poison"]), min_size=4, max_size=40).map(
    lambda words: [Pair(f"toxic {i}", f"safe {i}", "", word) for i, word in enumerate(words)]
)


@given(pairs=some_pairs, development=st.integers(0, 20), seed=st.integers(0, 5))
def test_no_focus_word_is_on_both_sides(pairs: list[Pair], development: int, seed: int) -> None:
    """Where there are two focus words, the split shares none, loses and doubles no pair, leaves pairs to train on, and
    repeats itself."""
    assume(len({p.focus or p.toxic for p in pairs}) > 1)
    training, held = split_by_focus(pairs, development, seed)
    assert not {p.focus for p in training if p.focus} & {p.focus for p in held if p.focus}
    assert Counter(training + held) == Counter(pairs)
    assert training
    assert (training, held) == split_by_focus(pairs, development, seed)


def test_one_focus_word_for_all_cannot_be_split() -> None:
    """Pairs that all turn on one word leave nothing to hold back: UserError that says so. So do three pairs."""
    with pytest.raises(UserError, match="one focus word"):
        split_by_focus([Pair(f"t{i}", f"s{i}", "", "kill") for i in range(9)], 3, 0)
    with pytest.raises(UserError, match="too few"):
        split_by_focus([Pair(f"t{i}", f"s{i}") for i in range(3)], 1, 0)


def test_the_split_holds_back_about_what_is_asked() -> None:
    """Of many small groups the number held back is the number asked for, to one group; never more than half."""
    pairs = [Pair(f"t{i}", f"s{i}", "", f"word {i // 2}") for i in range(100)]
    assert len(split_by_focus(pairs, 21, 0)[1]) == 22
    assert len(split_by_focus(pairs, 90, 0)[1]) == 50
    assert split_by_focus(pairs, 21, 0) != split_by_focus(pairs, 21, 1)


@given(n=st.integers(2, 30), batch=st.integers(4, 40), steps=st.integers(1, 30), seed=st.integers(0, 5))
def test_every_pair_comes_once_before_any_comes_again(n: int, batch: int, steps: int, seed: int) -> None:
    """Batches are full, hold no pair twice, cover all pairs evenly at every moment, and repeat themselves."""
    batches = pair_batches(n, batch, steps, seed)
    assert len(batches) == steps
    assert all(len(b) == len(set(b)) == min(batch // 2, n) for b in batches)
    assert batches == pair_batches(n, batch, steps, seed)
    counts = dict.fromkeys(range(n), 0)
    for pair in (p for b in batches for p in b):
        counts[pair] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def test_another_seed_draws_other_batches() -> None:
    """The order of the pairs comes from the seed, and a shorter run is the beginning of a longer one."""
    assert pair_batches(20, 8, 5, 0) != pair_batches(20, 8, 5, 1)
    assert pair_batches(20, 8, 9, 0)[:5] == pair_batches(20, 8, 5, 0)


@pytest.mark.parametrize(("n", "batch"), [(10, 3), (10, 0), (1, 8), (0, 8)])
def test_a_batch_of_less_than_two_pairs_is_refused(n: int, batch: int) -> None:
    """One pair alone has no positives: UserError."""
    with pytest.raises(UserError, match="at least 4 prompts"):
        pair_batches(n, batch, 5, 0)


INSTRUCTIONS = [Conversation(f"question {i}", f"answer {i}") for i in range(60)]
REFUSALS = [Conversation(f"toxic {i}", "I can't help with that.") for i in range(30)]


@given(n=st.integers(0, 60), m=st.integers(0, 30), seed=st.integers(0, 5))
def test_the_mixture_has_the_counts_asked_for(n: int, m: int, seed: int) -> None:
    """So many different rows of each list, the same ones for the same seed."""
    mixture = safety_mixture(INSTRUCTIONS, REFUSALS, n, m, seed)
    assert len(mixture) == len(set(mixture)) == n + m
    assert [row.prompt.startswith("toxic") for row in mixture] == [row.refuses for row in mixture]
    assert sum(row.refuses for row in mixture) == m
    assert mixture == safety_mixture(INSTRUCTIONS, REFUSALS, n, m, seed)


@given(toxicity=st.lists(st.floats(-1, 1), min_size=30, max_size=30), least=st.integers(0, 30))
def test_what_reads_as_toxic_is_drawn_first(toxicity: list[float], least: int) -> None:
    """All rows above 0 and no other, while they are enough; else just as many as are needed, the most toxic ones."""
    chosen = most_toxic(REFUSALS, toxicity, least)
    reading = dict(zip(REFUSALS, toxicity, strict=True))
    toxic = [row for row in REFUSALS if reading[row] > 0]
    assert len(chosen) == max(least, len(toxic))
    assert set(toxic) <= set(chosen)
    left = [reading[row] for row in REFUSALS if row not in chosen]
    assert not left or max(left) <= min((reading[row] for row in chosen), default=1)
    assert chosen == [row for row in REFUSALS if row in chosen]


def test_the_mixture_is_shuffled() -> None:
    """Refusals are spread among the instructions, and another seed draws others."""
    mixture = safety_mixture(INSTRUCTIONS, REFUSALS, 60, 20, 0)
    places = [i for i, row in enumerate(mixture) if row.refuses]
    assert places[0] < 30
    assert places[-1] - places[0] > 30
    assert set(mixture) != set(safety_mixture(INSTRUCTIONS, REFUSALS, 60, 20, 1))


@pytest.mark.parametrize("seed", range(3))
def test_a_larger_share_of_refusals_adds_to_a_smaller_one(seed: int) -> None:
    """The first ``n`` of each list after a shuffle: along the trade-off rows are added, not exchanged, and the number
    of refusals does not change which instructions are drawn, nor the other way round."""

    def drawn(n: int, m: int) -> tuple[set[Conversation], set[Conversation]]:
        rows = safety_mixture(INSTRUCTIONS, REFUSALS, n, m, seed)
        return {row for row in rows if not row.refuses}, {row for row in rows if row.refuses}

    few, more, longer = drawn(40, 3), drawn(40, 20), drawn(50, 20)
    assert few[1] <= more[1]
    assert few[0] == more[0]
    assert more[0] <= longer[0]
    assert more[1] == longer[1]


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=30), st.integers(0, 3), st.data())
def test_a_share_of_refusals_is_even_over_their_kinds(kinds: list[str], seed: int, data: st.DataObject) -> None:
    """A kind that has rows left lags no other by more than one row."""
    rows = [Conversation(f"prompt {i}", "no", kind) for i, kind in enumerate(kinds)]
    n = data.draw(st.integers(0, len(rows)))
    drawn = Counter(row.kind for row in safety_mixture([], rows, 0, n, seed))
    left = [kind for kind in set(kinds) if drawn[kind] < kinds.count(kind)]
    assert all(drawn[kind] >= max(drawn.values(), default=0) - 1 for kind in left)


def test_augmentation_adds_answered_rows_and_exchanges_none() -> None:
    """The mixture without it, and its rows among them, none of which is spread as a refusal."""
    extra = [Conversation(f"sounds toxic {i}", "Here you are.") for i in range(9)]
    plain, mixture = (safety_mixture(INSTRUCTIONS, REFUSALS, 40, 20, 0, rows) for rows in ((), extra))
    assert set(mixture) == {*plain, *extra}
    assert len(mixture) == 69
    assert sum(row.refuses for row in mixture) == 20
    assert mixture.index(extra[0]) < 60  # shuffled in, not put behind


@pytest.mark.parametrize(("n", "m", "name"), [(61, 3, "instructions"), (3, 31, "refusals")])
def test_more_rows_than_there_are_is_a_user_error(n: int, m: int, name: str) -> None:
    """Asking for more than is given names the list and both numbers."""
    with pytest.raises(UserError, match=rf"\d+ {name} asked for and \d+ given"):
        safety_mixture(INSTRUCTIONS, REFUSALS, n, m, 0)


@given(
    st.lists(st.tuples(st.integers(1, 100), st.booleans()), max_size=60),
    st.integers(1, 16), st.integers(1, 3), st.integers(0, 3),
)  # fmt: skip
def test_every_epoch_covers_all_rows_once(rows: list[tuple[int, bool]], size: int, epochs: int, seed: int) -> None:
    """Each epoch's batches hold every row once, none too many, and repeat themselves for the same seed."""
    lengths, refuses = [length for length, _ in rows], [refusal for _, refusal in rows]
    batches = sft_batches(lengths, refuses, size, epochs, seed)
    assert batches == sft_batches(lengths, refuses, size, epochs, seed)
    assert len(batches) % epochs == 0
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        drawn = [i for b in batches[epoch * per_epoch : (epoch + 1) * per_epoch] for i in b]
        assert sorted(drawn) == list(range(len(rows)))
    assert all(1 <= len(b) <= size for b in batches)


@given(st.integers(0, 40), st.integers(1, 200), st.integers(1, 16), st.integers(0, 3))
def test_refusals_are_spread_evenly_over_the_steps(n_refusals: int, others: int, size: int, seed: int) -> None:
    """However many steps have been taken, the refusals seen are the steps' share of all, to within one."""
    refuses = [True] * n_refusals + [False] * others
    batches = sft_batches([1] * len(refuses), refuses, size, 1, seed)
    seen = 0
    for steps, batch in enumerate(batches, 1):
        seen += sum(refuses[i] for i in batch)
        assert abs(seen - n_refusals * steps / len(batches)) < 1


def test_rows_of_similar_length_share_a_batch() -> None:
    """Padding to the longest of a batch wastes far less than in random batches, and epochs differ."""
    lengths = [(7 * i) % 100 + 1 for i in range(320)]
    batches = sft_batches(lengths, [False] * 320, 8, 2, 0)
    wasted = sum(max(lengths[i] for i in b) - lengths[j] for b in batches for j in b)
    assert wasted < 0.25 * sum(lengths) * 2
    assert batches[:40] != batches[40:]


# --- the shipped data -------------------------------------------------------------------------------------------------

EVAL = Path(__file__).parents[2] / "shared" / "data" / "eval"
TRAINING = ("pairs", "refusals", "instructions", "augmentation")
HELD_OUT = ("heldout_pairs", "heldout_plain", "heldout_instructions")
NEAR = 0.6  # cosine of character 4-gram counts: above it two prompts say the same in nearly the same words


@cache
def shipped(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (SHIPPED / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def prompts_of(*names: str) -> list[str]:
    fields = ("prompt", "toxic", "seemingly_toxic")
    return [row[field] for name in names for row in shipped(name) for field in fields if field in row]


def near_duplicates(left: list[str], right: list[str]) -> list[str]:
    """Every pair of prompts, one from each list, that are nearly the same."""
    grams = CountVectorizer(analyzer="char", ngram_range=(4, 4), preprocessor=str.casefold)
    counts = normalize(grams.fit_transform(left + right).astype(float))
    cosine = (counts[: len(left)] @ counts[len(left) :].T).tocoo()
    return [
        f"{c:.2f}: {left[i]!r} ~ {right[j]!r}"
        for i, j, c in zip(cosine.row, cosine.col, cosine.data, strict=True)
        if c >= NEAR
    ]


def test_the_near_duplicate_search_finds_what_it_should() -> None:
    """Changed case and one changed word are found, a different question is not."""
    found = near_duplicates(
        ["How do I kill a Python process?"], ["how do i KILL a Python process", "How do I kill my old lawn?", "Why?"]
    )
    assert len(found) == 1


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("pairs", 400),
        ("refusals", 200),
        ("instructions", 400),
        ("augmentation", 100),
        ("heldout_pairs", 120),
        ("heldout_plain", 60),
        ("heldout_instructions", 40),
    ],
)
def test_shipped_files_have_the_rows_promised(name: str, least: int) -> None:
    """Each file has at least the number of rows that the recipes and the documentation count on."""
    assert len(shipped(name)) >= least


def test_shipped_files_are_read_without_complaint() -> None:
    """The kit's own readers take every shipped file."""
    assert len(read_pairs(SHIPPED / "pairs.jsonl")) == len(shipped("pairs"))
    for name in ("refusals", "instructions", "augmentation", "heldout_instructions"):
        assert len(read_conversations(SHIPPED / f"{name}.jsonl")) == len(shipped(name))
    prompts = [*read_prompts(SHIPPED / "heldout_pairs.jsonl"), *read_prompts(SHIPPED / "heldout_plain.jsonl")]
    assert Counter(p.label for p in prompts) == {
        "toxic": len(shipped("heldout_pairs")),
        "seemingly_toxic": len(shipped("heldout_pairs")),
        "plain": len(shipped("heldout_plain")),
    }
    assert {p.label for p in prompts} == set(LABELS)


@pytest.mark.parametrize("name", ["pairs", "heldout_pairs"])
def test_pairs_are_of_many_kinds(name: str) -> None:
    """At least ten kinds, none of which makes up more than a fifth, and every pair has a kind and a focus word."""
    kinds = Counter(row["kind"] for row in shipped(name))
    assert len(kinds) >= 10
    assert max(kinds.values()) <= 0.2 * len(shipped(name))
    assert all(row["kind"].strip() and row["focus"].strip() for row in shipped(name))


@pytest.mark.parametrize("name", [*TRAINING, *HELD_OUT])
def test_every_shipped_line_is_clean(name: str) -> None:
    """Every field is a text without space around it, and every prompt ends with a word or a closing sign."""
    for row in shipped(name):
        assert all(isinstance(value, str) and value and value == value.strip() for value in row.values()), row
    for prompt in prompts_of(name):
        assert prompt[-1].isalnum() or prompt[-1] in ".?!…\"'”’)]}`;:>*=%", prompt


def test_no_shipped_prompt_comes_twice() -> None:
    """No prompt is repeated within or across the files, case and spacing aside."""
    prompts = Counter(" ".join(p.casefold().split()) for p in prompts_of(*TRAINING, *HELD_OUT))
    assert [p for p, n in prompts.items() if n > 1] == []


def test_refusals_are_all_different() -> None:
    """Each refusal is worded for its own prompt, and no refusal's prompt is among the pairs."""
    responses = [row["response"] for row in shipped("refusals")]
    assert len(set(responses)) == len(responses)
    assert not set(prompts_of("refusals")) & set(prompts_of("pairs"))
    assert near_duplicates(prompts_of("refusals"), prompts_of("pairs")) == []


def test_training_and_held_out_prompts_are_no_near_duplicates() -> None:
    """No training prompt nearly repeats a held-out one."""
    assert near_duplicates(prompts_of(*TRAINING), prompts_of(*HELD_OUT)) == []


def test_training_and_held_out_focus_words_differ() -> None:
    """Held-out pairs turn on words that training pairs never turn on."""
    training, held = ({row["focus"].casefold() for row in shipped(name)} for name in ("pairs", "heldout_pairs"))
    assert training & held == set()


@pytest.mark.skipif(not EVAL.is_dir(), reason="the public prompt sets (../shared/data/eval) are not on this machine")
def test_no_shipped_prompt_is_taken_from_a_public_set() -> None:
    """No shipped prompt nearly repeats one of the public sets on which the kit is measured."""
    files = [f for f in sorted(EVAL.glob("*.jsonl")) if not f.stem.startswith(("mmlu", "refusal_human_labels"))]
    assert files
    public = [json.loads(line)["prompt"] for f in files for line in f.read_text(encoding="utf-8").splitlines()]
    assert len(public) > 1000
    assert near_duplicates(prompts_of(*TRAINING, *HELD_OUT), public) == []


@pytest.mark.parametrize("name", ["pairs", "heldout_pairs"])
def test_words_alone_do_not_tell_the_kinds_apart(name: str) -> None:
    """A bag-of-words classifier, cross-validated by pair, stays at AUC 0.65 or below: no single words give it away."""
    rows = shipped(name)
    texts = [row[side] for row in rows for side in ("toxic", "seemingly_toxic")]
    labels = [1, 0] * len(rows)
    groups = [i for i in range(len(rows)) for _ in range(2)]
    folds = GroupKFold(n_splits=10, shuffle=True, random_state=0)
    words = make_pipeline(CountVectorizer(), LogisticRegression(max_iter=1000))
    scores = cross_val_predict(words, texts, labels, groups=groups, cv=folds, method="decision_function")
    assert roc_auc_score(labels, scores) <= 0.65
