"""Claims about how rows are cut into passes: never more at once than was planned, in few passes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ADAPTER, add_random_adapter

from dcr_lite.data.rows import Conversation
from dcr_lite.method.safety_sft import SafetySFT, SafetySFTConfig
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import decoder_of
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import PROMPT_TOKENS, activations
from dcr_lite.model.packing import ATTENTION_SHARE, passes, tokens_at_once
from dcr_lite.model.shapes import KNOWN
from dcr_lite.model.states import last_states, layer_states

MakeModel = Callable[..., Model]

LENGTHS = st.lists(st.integers(1, 700), min_size=1, max_size=40)
SHARES = st.sampled_from([0.0, ATTENTION_SHARE, 1.0])


@given(lengths=LENGTHS, most=st.integers(1, 2048), shared=st.integers(0, 60), share=SHARES)
def test_no_pass_exceeds_the_plan(lengths: list[int], most: int, shared: int, share: float) -> None:
    """Whatever the rows: every row goes through once, and no pass keeps more tokens than planned, unless it is a
    single row that is longer by itself."""
    rows = [shared + length for length in lengths]
    parts = passes(rows, most, shared, share)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    for part in parts:
        assert part == sorted(part)
        assert len(part) == 1 or tokens_at_once([rows[i] for i in part], shared, share) <= most


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=9), most=st.integers(300, 1200))
def test_passes_are_nearly_the_fewest(lengths: list[int], most: int) -> None:
    """Of a batch of any rows: 11/9 of the fewest passes that any cut has and 6/9 of one more (Dosa, 2007)."""
    assert len(passes(lengths, most)) <= 11 / 9 * fewest_passes(lengths, most) + 6 / 9


def fewest_passes(lengths: list[int], most: int) -> int:
    """By search: each row into every pass that has room for it."""
    rows = sorted(lengths, reverse=True)

    def fits(k: int, rooms: tuple[int, ...]) -> bool:
        if k == len(rows):
            return True
        return any(
            fits(k + 1, tuple(sorted((*rooms[:i], rooms[i] - rows[k], *rooms[i + 1 :]))))
            for i in range(len(rooms))
            if rooms[i] >= rows[k] and rooms[i] not in rooms[:i]
        )

    return next(n for n in range(1, len(rows) + 1) if fits(0, (most,) * n))


@pytest.mark.parametrize("lengths", [[600, 30, 30, 30, 30, 30, 30], [100] * 8])
def test_short_rows_do_not_wait_for_long_ones(lengths: list[int]) -> None:
    """Beside a long row short ones cost an attention as wide as it; in a pass of their own they do not."""
    together = tokens_at_once(lengths, 0, ATTENTION_SHARE)
    assert together >= sum(lengths)
    assert (together > 1.5 * sum(lengths)) == (max(lengths) > 500)


@pytest.mark.parametrize("model", sorted(KNOWN))
def test_the_share_of_attention_is_no_more_than_said(model: str) -> None:
    """Queries, keys, values and output are at most ATTENTION_SHARE of what a layer of a recipe's model keeps."""
    shape = KNOWN[model]
    if not shape.scores:  # softcapped models are padded
        share = 2 * 4 * shape.heads * shape.head_width / activations(shape, 16, 2, 64)
        assert 0.08 < share < ATTENTION_SHARE


@contextmanager
def sizes_seen(model: Model) -> Iterator[list[int]]:
    """The tokens, padding included, of each forward pass through the decoder."""
    seen: list[int] = []

    def note(module: object, args: object, kwargs: dict[str, object]) -> None:
        given = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
        seen.append(given.shape[0] * given.shape[1])

    handle = decoder_of(model.network).register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


# --- every place that computes in passes ------------------------------------------------------------------------------

WORDS = (1, 40, 2, 30, 3, 60, 1, 2, 50, 4, 5, 25)
UNEVEN = [Conversation("word " * n, "Here is a list. " * (1 + n % 4)) for n in WORDS]


@pytest.mark.parametrize("architecture", ["llama", "gemma2"], ids=["packed", "padded"])
@pytest.mark.parametrize("above", [-1, 1], ids=["all layers", "above L"])
def test_no_pass_of_safety_sft_exceeds_the_plan(tiny_model: MakeModel, architecture: str, above: int) -> None:
    """Rows of every length, refusals mixed in, states stored: no forward pass takes more tokens than planned."""
    model = tiny_model(architecture)
    add_random_adapter(model)
    model.tokens_per_pass = 288
    with sizes_seen(model) as seen:
        sft = SafetySFT("stage2", model, ADAPTER, UNEVEN, SafetySFTConfig(above, 1, 6, 1e-3), seed=0)
        model.network.train()
        for number in range(sft.steps):
            sft.step(number)
    assert max(len(row.ids) for row in sft.rows) < 288 >= max(seen)
    assert len(seen) > sft.steps  # several passes each


@pytest.mark.parametrize("architecture", ["llama", "gemma2"], ids=["packed", "padded"])
def test_no_pass_of_states_exceeds_the_plan(tiny_model: MakeModel, architecture: str) -> None:
    """States of layer L and of every layer: the same plan, the same cut."""
    model = tiny_model(architecture)
    rows = [[1 + i % 50] * n for i, n in enumerate((3, 90, 5, 60, 2, 100, 7, 8))]
    model.tokens_per_pass = 128
    with sizes_seen(model) as seen:
        layer_states(model, rows, 1)
        last_states(model, rows)
    assert max(seen) <= 128


def test_long_prompts_are_answered_few_at_once(tiny_model: MakeModel) -> None:
    """The plan counts prompts of PROMPT_TOKENS; of longer ones fewer are answered together."""
    model = tiny_model()
    model.prompts_at_once = 4
    rows = [[1 + i] * n for i, n in enumerate((5, 200, 6, 7, 200, 8, 100, 9))]
    with sizes_seen(model) as seen:
        answer(model, rows, 4)
    assert max(seen) <= 4 * (PROMPT_TOKENS + 4)
