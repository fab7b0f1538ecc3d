"""Claims about packed and padded batches: the same values and gradients as every prompt alone in the whole model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import (
    ADAPTER,
    LAYERS,
    PACKABLE,
    PADDED,
    PROMPTS,
    add_random_adapter,
    all_states,
    assert_close,
    assert_far,
    full_states,
    own_states,
    random_rows,
    take_gradients,
)
from torch import Tensor

from dcr_lite.model.adapters import set_adapter_weights, train_only
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.hidden_states import states_at_layer
from dcr_lite.model.loading import Model
from dcr_lite.model.packing import Batch, filled, pack, pad, rounded, shared_prefix

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
Rows = list[list[int]]

SHAPES: dict[str, Rows] = {
    "nothing shared": [[3, 4, 5], [6, 7, 8, 9, 10], [11], [12, 13, 14]],
    "short prefix": random_rows([5, 1, 9, 5, 2, 9], shared=2),
    "long prefix": random_rows([3, 8, 1, 1], shared=90),
    "long and short rows": random_rows([110, 3, 40], shared=5),
    "one row": random_rows([7]),
    "one token": [[5]],
    "equal rows": random_rows([0, 0, 0], shared=6),
    "a row that is the prefix": random_rows([4, 0, 2], shared=6),
}


def states_by_row(model: Model, batch: Batch, rows: Rows, layer: int, skip: int) -> list[Tensor]:
    with torch.no_grad():
        return own_states(states_at_layer(model.network, batch, layer), batch, rows, skip)


@torch.no_grad()
def states_alone(reference: Any, rows: Rows, skip: int) -> list[list[Tensor]]:
    """At each layer those of each row by itself."""
    found = [all_states(reference, row) for row in rows]
    return [[states[layer][skip:] for states in found] for layer in range(LAYERS)]


# What a shape may spoil is the same in every architecture: those of the last years are given the hardest.
HARDEST = ("short prefix", "long and short rows", "a row that is the prefix")


@pytest.mark.parametrize(
    ("architecture", "shape"),
    [(a, s) for a in PACKABLE for s in SHAPES if a not in ("smollm3", "phi3") or s in HARDEST],
)
def test_states_are_those_of_each_row_alone(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, shape: str
) -> None:
    """Packed and padded states at several layers equal those of the untouched model fed one row at a time."""
    model, plain, rows = tiny_model(architecture), reference(architecture), SHAPES[shape]
    assert model.packs
    packed, padded = pack(rows), pad(rows, model.tokenizer.pad_token_id)
    for layer, alone in enumerate(states_alone(plain, rows, packed.shared)[:-1]):
        assert_close(states_by_row(model, packed, rows, layer, packed.shared), alone)
        assert_close(states_by_row(model, padded, rows, layer, packed.shared), alone)


@pytest.mark.parametrize("architecture", PACKABLE)
def test_gradients_are_those_of_each_row_alone(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """Adapter gradients of packed, padded and single rows agree, for the last tokens and for all own tokens."""
    model = tiny_model(architecture)
    weights = add_random_adapter(model)
    plain = Model(reference(architecture), model.tokenizer, "cpu", torch.float32, False)
    add_random_adapter(plain)
    set_adapter_weights(plain, ADAPTER, weights)
    rows = encode_prompts(model.tokenizer, PROMPTS, model.window)
    packed, padded = pack(rows), pad(rows, model.tokenizer.pad_token_id)
    assert packed.shared > 10  # the default system prompt
    layer = 2
    direction = torch.randn(64, generator=torch.Generator().manual_seed(3))

    def loss_of(states: list[Tensor], all_tokens: bool) -> Tensor:
        return torch.stack([(s if all_tokens else s[-1:]).tanh().matmul(direction).sum() for s in states]).sum()

    for all_tokens in (False, True):
        gradients = []
        for batch in (packed, padded):
            parameters = train_only(model, ADAPTER, range(layer + 1))
            states = own_states(states_at_layer(model.network, batch, layer), batch, rows, packed.shared)
            loss_of(states, all_tokens).backward()
            gradients.append(take_gradients(parameters))
        parameters = train_only(plain, ADAPTER, range(layer + 1))
        for row in rows:
            loss_of([full_states(plain.network, row, layer)[packed.shared :]], all_tokens).backward()
        alone = take_gradients(parameters)
        assert all(g.abs().max() > 0 for g in alone)
        assert_close(gradients[0], alone)
        assert_close(gradients[1], alone)


def test_the_shared_prefix_collects_gradients(tiny_model: MakeModel) -> None:
    """A packed row's gradient reaches the tokens of the shared prefix, which padding would compute per row."""
    model = tiny_model()
    rows = random_rows([3, 5], shared=20)
    embeddings = model.network.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    batch = pack(rows)
    states_at_layer(model.network, batch, 1)[batch.last].sum().backward()
    prefix = sorted(set(rows[0][:20]) - set(rows[0][20:] + rows[1][20:]))
    assert (embeddings.weight.grad[prefix].abs().sum(1) > 0).all()


@pytest.mark.parametrize("architecture", [*PACKABLE, *PADDED])
@pytest.mark.parametrize("training", [False, True])
def test_longer_neighbours_change_nothing(tiny_model: MakeModel, architecture: str, training: bool) -> None:
    """Adding a much longer row, and with it padding, changes no other row's states, in training mode as well."""
    model = tiny_model(architecture)
    model.network.train(training)
    short = random_rows([4, 6, 1], shared=3)
    longer = [*short, random_rows([60], seed=9)[0]]
    for lay in ([pack] if model.packs else []) + [lambda rows, prefix: pad(rows, 2)]:
        alone = states_by_row(model, lay(short, 0), short, 2, 0)
        beside = states_by_row(model, lay(longer, 0), longer, 2, 0)[:3]
        assert_close(beside, alone)


def test_the_padding_token_changes_nothing(tiny_model: MakeModel) -> None:
    """Padding with another token gives the same states."""
    model, rows = tiny_model(), random_rows([4, 9, 1])
    assert_close(states_by_row(model, pad(rows, 2), rows, 2, 0), states_by_row(model, pad(rows, 77), rows, 2, 0))


@pytest.mark.parametrize("prefix", [0, 1, 5])
def test_a_shorter_prefix_gives_the_same_states(tiny_model: MakeModel, prefix: int) -> None:
    """Any prefix up to the longest shared one may be asked for."""
    model, rows = tiny_model(), random_rows([4, 9, 1], shared=8)
    batch = pack(rows, prefix)
    assert batch.shared == prefix
    whole = states_by_row(model, pack(rows), rows, 2, 8)
    assert_close(states_by_row(model, batch, rows, 2, 8), whole)


def test_the_model_packs_by_itself_where_it_can(tiny_model: MakeModel) -> None:
    """Model.batch packs for Llama and pads for Gemma 2, whose softcapping the packed attention does not know."""
    rows = random_rows([4, 9], shared=5)
    for architecture, packs in (("llama", True), ("gemma2", False)):
        model = tiny_model(architecture)
        batch = model.batch(rows)
        assert (model.packs, batch.shared, "layout" in batch.inputs) == (packs, 5 * packs, packs)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("gemma2", {}),
        ("mistral", {"sliding_window": 8}),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}),
        ("gemma3", {"sliding_window": 8}),
        ("phi3", {"sliding_window": 8}),
        ("olmo3", {"sliding_window": 8}),
        ("ministral", {}),
        ("lfm2", {}),
    ],
    ids=[
        "gemma2's softcapping",
        "mistral's window",
        "qwen2's window",
        "gemma3's window",
        "phi3's window",
        "olmo3's window",
        "ministral's window",
        "lfm2's convolutions",
    ],
)
def test_models_with_other_than_full_attention_are_not_packed_wrongly(
    tiny_model: MakeModel, reference: MakeReference, architecture: str, config: dict[str, Any]
) -> None:
    """A model with softcapping, a sliding window or convolutions gives the states of each row alone at every layer,
    packed or not."""
    model, plain = tiny_model(architecture, **config), reference(architecture, **config)
    rows = random_rows([12, 30, 2], shared=6)
    batch = model.batch(rows)
    for layer, alone in enumerate(states_alone(plain, rows, batch.shared)[:-1]):
        assert_close(states_by_row(model, batch, rows, layer, batch.shared), alone)


def test_rows_stay_where_one_does_not_change_another(tiny_model: MakeModel, reference: MakeReference) -> None:
    """LongRoPE rotates every row of a batch by other angles once one of them is longer than in pretraining, so the
    longest row that Phi is given is not."""
    model, plain = tiny_model("phi3"), reference("phi3")
    assert plain.config.max_position_embeddings > 600
    assert model.window == 512
    short, edge, longer = random_rows([20, 512, 600])
    (alone,) = states_alone(plain, [short], 0)[2]
    for other, same in ((edge, True), (longer, False)):
        beside = states_by_row(model, model.batch([short, other], 0), [short, other], 2, 0)[0]
        (assert_close if same else assert_far)(beside, alone)


@pytest.mark.parametrize("rows", [[], [[]], [[1, 2], []]])
def test_rows_without_tokens_are_refused(rows: Rows) -> None:
    """No row, or an empty one, raises ValueError instead of reading another row's state."""
    with pytest.raises(ValueError, match="at least one token"):
        pack(rows)


some_rows = st.tuples(
    st.lists(st.integers(0, 3), max_size=4), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1)
).map(lambda drawn: [drawn[0] + row for row in drawn[1]])


@given(rows=some_rows)
def test_the_shared_prefix_is_the_longest_one(rows: Rows) -> None:
    """All rows share the prefix and keep a token behind it; one token more and either would fail."""
    n = shared_prefix(rows)
    assert all(row[:n] == rows[0][:n] and len(row) > n for row in rows)
    assert any(row[: n + 1] != rows[0][: n + 1] or len(row) == n + 1 for row in rows)


@given(rows=some_rows, data=st.data())
def test_packing_places_every_token_exactly_once(rows: Rows, data: st.DataObject) -> None:
    """Prefix and index together cover the sequence once, up to what fills it; each row's places hold its tokens at its
    positions."""
    prefix = data.draw(st.integers(0, shared_prefix(rows)))
    batch = pack(rows, prefix)
    tokens, positions = batch.inputs["input_ids"][0], batch.inputs["position_ids"][0]
    covered = [*range(prefix), *(int(p) for places in batch.index for p in places)]
    assert sorted(covered) == list(range(len(covered)))
    assert len(tokens) == len(positions) == rounded(len(covered))
    assert tokens[:prefix].tolist() == rows[0][:prefix]
    assert positions[:prefix].tolist() == list(range(prefix))
    for row, places in zip(rows, batch.index, strict=True):
        assert tokens[places].tolist() == row[prefix:]
        assert positions[places].tolist() == list(range(prefix, len(row)))
    assert batch.shared == prefix
    assert batch.last.tolist() == [int(places[-1]) for places in batch.index]


def test_few_lengths() -> None:
    """A sequence is filled up by less than 8 tokens or an eighth of it, to one of 16 lengths before it doubles."""
    lengths = [rounded(n) for n in range(1, 4097)]
    assert all(n <= length < n + max(8, n / 8) for n, length in enumerate(lengths, 1))
    assert all(rounded(length) == length and length % 8 == 0 for length in lengths)
    for low in (64, 256, 1024):
        assert len({length for length in lengths if low < length <= 2 * low}) <= 16


@given(st.lists(st.integers(0, 99), max_size=300))
def test_filling_repeats_the_last_place(places: list[int]) -> None:
    """On a CPU; a card's shapes cost nothing, and its places stay as they are."""
    found = filled(torch.tensor(places, dtype=torch.long))
    assert found[: len(places)].tolist() == places
    assert len(found) == (rounded(len(places)) if places else 0)
    assert all(place == places[-1] for place in found[len(places) :].tolist())
    assert len(filled(torch.empty(13, dtype=torch.long, device="meta"))) == 13


def test_what_fills_the_sequence_collects_no_gradient(tiny_model: MakeModel) -> None:
    """The token that fills it, which no row has, is read by no state and by no other token."""
    model = tiny_model()
    embeddings = model.network.get_input_embeddings()
    embeddings.weight.requires_grad_(True)
    batch = pack([[5, 6, 7], [8, 9]], 0)
    batch.inputs["input_ids"][0, 5:] = 11
    assert (batch.inputs["input_ids"][0] == 11).sum() == 3
    torch.cat([states_at_layer(model.network, batch, 2)[own] for own in batch.index]).tanh().sum().backward()
    touched = embeddings.weight.grad.abs().sum(1)
    assert touched[11] == 0
    assert (touched[5:10] > 0).all()


@given(rows=some_rows)
def test_padding_places_every_token_exactly_once(rows: Rows) -> None:
    """In a padded batch each row's places hold its tokens, the mask is 1 there and 0 elsewhere."""
    batch = pad(rows, 9)
    tokens, mask = batch.inputs["input_ids"].flatten(), batch.inputs["attention_mask"].flatten()
    for row, places in zip(rows, batch.index, strict=True):
        assert tokens[places].tolist() == row
    covered = torch.cat(batch.index)
    assert len(covered.unique()) == len(covered) == int(mask.sum())
    assert (mask[covered] == 1).all()
    assert (tokens[mask == 0] == 9).all()
