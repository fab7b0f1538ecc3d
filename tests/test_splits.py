"""Drawing rows: splits by focus word, batches, mixtures and samples."""

from collections import Counter

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from dcr_lite.data.rows import Conversation, Pair, Prompt
from dcr_lite.data.splits import (
    folds_by_focus,
    most_toxic,
    pair_batches,
    places_read,
    safety_mixture,
    sample,
    sft_batches,
    split_by_focus,
)
from dcr_lite.errors import UserError

some_pairs = st.lists(
    st.sampled_from(["", "kill", "Kill", "KILL ", "shoot", "bomb", "burn", "poison", "Poison"]), min_size=4, max_size=40
).map(lambda words: [Pair(f"toxic {i}", f"safe {i}", "", word) for i, word in enumerate(words)])


def focus_words(pairs: list[Pair]) -> list[str]:
    """Without regard to case; a pair without one has one of its own."""
    return [pair.focus.strip().lower() or pair.toxic for pair in pairs]


@given(pairs=some_pairs, development=st.integers(0, 20), seed=st.integers(0, 5))
def test_no_focus_word_is_on_both_sides(pairs: list[Pair], development: int, seed: int) -> None:
    """Where there are two focus words, the split shares none, not even in other case, loses and doubles no pair, leaves
    pairs to train on, and repeats itself."""
    assume(len(set(focus_words(pairs))) > 1)
    training, held = split_by_focus(pairs, development, seed)
    assert not set(focus_words(training)) & set(focus_words(held))
    assert Counter(training + held) == Counter(pairs)
    assert training
    assert (training, held) == split_by_focus(pairs, development, seed)


@given(pairs=some_pairs, folds=st.integers(2, 6))
def test_folds_share_no_focus_word(pairs: list[Pair], folds: int) -> None:
    """Every pair has one fold, there are as many as asked for or as focus words allow, and pairs of one word share
    theirs; pairs without one are spread over all."""
    words = focus_words(pairs)
    assume(len(set(words)) > 1)
    found = folds_by_focus(pairs, folds)
    assert len(found) == len(pairs)
    assert set(found) == set(range(min(folds, len(set(words)))))
    assert len({*zip(words, found, strict=True)}) == len(set(words))


def test_folds_are_of_about_one_size() -> None:
    """Where single pairs can be moved, to a pair."""
    sizes = Counter(folds_by_focus([Pair(f"t{i}", f"s{i}") for i in range(43)], 5)).values()
    assert sorted(sizes) == [8, 8, 9, 9, 9]


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


@pytest.mark.parametrize("seed", range(4))
def test_a_frequent_focus_word_is_trained_on(seed: int) -> None:
    """Of 600 pairs about one thing none is held back while others make up 80; where they do not, all may be."""
    frequent = [Pair(f"t{i}", f"s{i}", "", "kill" if i % 2 else "Kill") for i in range(600)]
    others = [Pair(f"other t{i}", f"other s{i}") for i in range(400)]
    held = split_by_focus(frequent + others, 80, seed)[1]
    assert len(held) == 80
    assert not set(held) & set(frequent)
    assert 50 <= len(split_by_focus(frequent + others[:50], 80, seed)[1]) < 650


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


@given(n=st.integers(4, 30), unseen=st.integers(0, 5), first=st.integers(0, 40), last=st.integers(0, 40))
def test_stage_1_reads_both_sides_of_what_it_needs(n: int, unseen: int, first: int, last: int) -> None:
    batches = pair_batches(n, 4, 3, 0)
    places = places_read(n, unseen, batches, first, last)
    assert places == sorted(set(places))
    toxic = {i for i in places if i < n}
    assert {i - n for i in places if n <= i < 2 * n} == toxic
    assert {i - 2 * n for i in places if i >= 2 * n} == set(range(unseen))
    needed = {i for batch in batches for i in batch} | set(range(n)[:first]) | set(list(range(n))[max(0, n - last) :])
    assert toxic == needed


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


@example(128, 3, 8, 0)
@example(12, 1, 3, 0)
@given(st.integers(0, 200), st.integers(1, 200), st.integers(1, 16), st.integers(0, 3))
def test_refusals_are_spread_evenly_over_the_steps(n_refusals: int, others: int, size: int, seed: int) -> None:
    """However many steps have been taken, the refusals seen are the steps' share of all, to within one; to within two
    where most rows refuse, since a batch can be too small for its share. Every row comes once even then, and batches
    are of one size, to a row."""
    refuses = [True] * n_refusals + [False] * others
    batches = sft_batches([1] * len(refuses), refuses, size, 1, seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(refuses)))
    assert max(map(len, batches)) - min(map(len, batches)) <= 1
    seen = 0
    for steps, batch in enumerate(batches, 1):
        seen += sum(refuses[i] for i in batch)
        assert abs(seen - n_refusals * steps / len(batches)) < (1 if n_refusals <= others else 2)


def test_rows_of_similar_length_share_a_batch() -> None:
    """Padding to the longest of a batch wastes far less than in random batches, and epochs differ."""
    lengths = [(7 * i) % 100 + 1 for i in range(320)]
    batches = sft_batches(lengths, [False] * 320, 8, 2, 0)
    wasted = sum(max(lengths[i] for i in b) - lengths[j] for b in batches for j in b)
    assert wasted < 0.25 * sum(lengths) * 2
    assert batches[:40] != batches[40:]


def test_rows_are_sampled_with_a_fixed_seed() -> None:
    """The same few of many and not the first ones, as many of each set and label, both sides of a pair; all where there
    are fewer; at least 1. A prompt that comes twice counts once."""
    sides = [(label, i) for i in range(100) for label in ("toxic", "seemingly_toxic")]
    prompts = [Prompt(f"{label} {i}", label, "set") for label, i in sides]
    others = [Prompt(f"other {i}", "toxic", "other set") for i in range(4)]
    drawn = sample(prompts + others, 10)
    assert drawn == sample(prompts + others, 10)
    assert {p.prompt for p in drawn} != {p.prompt for p in [*prompts[:20], *others]}
    toxic, seemingly, other = (
        [p.prompt.split()[1] for p in drawn if (p.label, p.source) == group]
        for group in (("toxic", "set"), ("seemingly_toxic", "set"), ("toxic", "other set"))
    )
    assert len(toxic) == 10
    assert toxic == seemingly
    assert len(other) == 4
    assert sorted(p.prompt for p in sample(prompts, 100)) == sorted(p.prompt for p in prompts)
    assert sample(prompts, None) == prompts
    assert sample(prompts + prompts[:3], None) == prompts  # as where a file is given twice
    assert sample(prompts + prompts[:3], 10) == sample(prompts, 10)
    with pytest.raises(UserError, match="at least 1"):
        sample(prompts, 0)
