"""Claims about answers that grow together: whoever joins or leaves, each says what it says alone."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import OPENINGS, add_random_adapter, random_rows

from dcr_lite.model.decoding import _UncachedDecoding, append
from dcr_lite.model.generation import Answer, answer
from dcr_lite.model.loading import Model
from dcr_lite.model.streaming import Growing, GrowingTogether

MakeModel = Callable[..., Model]
NEW = 12
ROWS = [*random_rows([5, 1, 30, 9, 2, 14], shared=6), *random_rows([3, 25], seed=1)]


def ending(model: Model, answers: list[Answer]) -> list[Answer]:
    """Make a token that the answers hold at different places the end token; the answers with it."""
    token, _ = Counter(t for one in answers for t in set(one.ids) - {one.ids[0]}).most_common(1)[0]
    model.tokenizer.eos_token = model.tokenizer.convert_ids_to_tokens(token)
    found = [answer(model, [row], NEW)[0] for row in ROWS]
    assert len({len(one.ids) for one in found}) > 1
    return found


@pytest.fixture(scope="module")
def told(tiny_model: MakeModel) -> tuple[Model, list[Answer]]:
    """A model, and what it says to each of ROWS alone, some of it ended by the model."""
    model = tiny_model()
    add_random_adapter(model)
    model.openings = OPENINGS
    return model, ending(model, [answer(model, [row], NEW)[0] for row in ROWS])


# (rows that begin together, steps until the next begin, which of those still growing then leaves)
ARRIVALS = st.lists(
    st.tuples(
        st.lists(st.integers(0, len(ROWS) - 1), min_size=1, max_size=3),
        st.integers(0, 5),
        st.none() | st.integers(0, 9),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=10)
@given(ARRIVALS)
def test_whoever_joins_or_leaves_changes_no_other(told: tuple[Model, list[Answer]], arrivals: Any) -> None:
    """Tokens and scores are those of answer() on each prompt alone, in any order of coming and going; who leaves early
    has the beginning of it."""
    model, alone = told
    together = GrowingTogether(model, [Growing(ROWS[0], 0)])
    growing: list[tuple[int, Growing]] = []
    gone = []
    for rows, steps, leaving in arrivals:
        new = [Growing(ROWS[i], NEW) for i in rows]
        together.join(GrowingTogether(model, new))
        growing += zip(rows, new, strict=True)
        for _ in range(steps):
            together.step()
        if leaving is not None and together.answers:
            gone.append(together.answers[leaving % len(together.answers)])
            gone[-1].ended = True
    for _ in range(NEW + 1):
        together.step()
    assert not together.answers
    for i, one in growing:
        assert one.refusal_log_odds == pytest.approx(alone[i].refusal_log_odds, abs=1e-4)
        assert tuple(one.ids) == (alone[i].ids[: len(one.ids)] if one in gone else alone[i].ids)


def test_a_batch_that_others_always_join_stays_as_wide_as_a_row(told: tuple[Model, list[Answer]]) -> None:
    """Its memory is that of the rows in it, however long it has been running."""
    model, _ = told
    together = GrowingTogether(model, [Growing(ROWS[1], NEW)])
    widths = set()
    for _ in range(8):
        together.join(GrowingTogether(model, [Growing(ROWS[1], NEW)]))
        for _ in range(3):
            together.step()
        widths.add(together._decoding.cache.layers[0].keys.shape[2])
    assert max(widths) <= len(ROWS[1]) + NEW


@pytest.mark.parametrize(
    ("architecture", "config"),
    [("qwen3", {}), ("gemma2", {}), ("gemma3", {"sliding_window": 8}), ("gemma3", {}), ("lfm2", {})],
)
def test_any_architecture_joins_exactly_or_not_at_all(
    tiny_model: MakeModel, architecture: str, config: dict[str, Any]
) -> None:
    """Softcapping, sliding windows that are full and that are not: caches are joined with the same answers. A model
    with layers of another kind says that it cannot."""
    model = tiny_model(architecture, **config)
    model.openings = OPENINGS
    alone = [answer(model, [row], NEW)[0] for row in ROWS]
    growing = [Growing(row, NEW) for row in ROWS]
    together = GrowingTogether(model, growing[:1])
    assert together.joins == (architecture != "lfm2")
    groups = [together]
    for i, one in enumerate(growing[1:], 1):
        groups.append(GrowingTogether(model, [one]))
        if together.joins:
            together.join(groups.pop())
        for group in groups:
            for _ in range(i % 3):
                group.step()
    for group in groups:
        for _ in range(NEW):
            group.step()
    for one, expected in zip(growing, alone, strict=True):
        assert tuple(one.ids) == expected.ids
        assert one.refusal_log_odds == pytest.approx(expected.refusal_log_odds, abs=1e-4)


def test_an_answer_goes_on_from_its_tokens(told: tuple[Model, list[Answer]]) -> None:
    """One that was begun elsewhere goes on with the same tokens, and keeps its score."""
    model, alone = told
    growing = [
        Growing(row, NEW, ids=list(one.ids[:4]), refusal_log_odds=7.0) for row, one in zip(ROWS, alone, strict=True)
    ]
    together = GrowingTogether(model, growing)
    for _ in range(NEW):
        together.step()
    assert [tuple(one.ids) for one in growing] == [one.ids for one in alone]
    assert {one.refusal_log_odds for one in growing} == {7.0}


def test_an_answer_is_stopped_as_in_a_batch(told: tuple[Model, list[Answer]]) -> None:
    """``stop`` ends an answer where answer() ends it, and no other."""
    model, alone = told

    def stop(text: str) -> bool:
        return len(text) > 5

    expected = answer(model, ROWS, NEW, stop=stop)
    growing = [Growing(row, NEW, stop) for row in ROWS]
    together = GrowingTogether(model, growing)
    for _ in range(NEW):
        together.step()
    assert [tuple(one.ids) for one in growing] == [one.ids for one in expected]
    assert [one.ids for one in expected] != [one.ids for one in alone]


@torch.no_grad()
def test_without_caches_rows_are_put_together(tiny_model: MakeModel) -> None:
    """Where every token is computed again for each new one, joined rows have the logits of each alone."""
    model = tiny_model()
    model.network.eval()
    apart = [_UncachedDecoding(model, [row]) for row in ROWS[:3]]
    joined = _UncachedDecoding(model, ROWS[:1])
    for row in ROWS[1:3]:
        joined.join(_UncachedDecoding(model, [row]))
    for _ in range(3):
        for decoding in (*apart, joined):
            append(decoding, decoding.logits.argmax(-1))
    torch.testing.assert_close(joined.logits, torch.cat([one.logits for one in apart]), rtol=1e-4, atol=1e-4)
