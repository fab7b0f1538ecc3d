"""Claims about probes of the weights: merging adds up, rounding is what it says and is undone bit for bit, fine-tuning
leaves nothing behind, abliteration is the paper's choice."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ADAPTER, add_random_adapter, assert_close, assert_far, random_kinds, random_rows
from torch import Tensor, nn

from dcr_lite.compare import directions, surgical
from dcr_lite.compare.directions import refusal_log_odds, shared_ending, steered
from dcr_lite.data.rows import Conversation
from dcr_lite.model import adapters
from dcr_lite.model.chat import encode_conversations
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states
from dcr_lite.probe import abliteration
from dcr_lite.probe.fine_tuning import Tuning, fine_tuned
from dcr_lite.probe.merging import active_adapter, linear_maps, merged
from dcr_lite.probe.rounding import GROUP, absmax_int4, nf4

MakeModel = Callable[..., Model]
ROWS = random_rows([5, 9, 3], shared=4)


def scores(model: Model) -> Tensor:
    """Refusal log-odds of a few prompts: they change with every weight."""
    return refusal_log_odds(model, ROWS)


def state(model: Model) -> dict[str, Tensor]:
    """Every weight of the network, adapters included."""
    return {name: parameter.detach().clone() for name, parameter in model.network.state_dict().items()}


def assert_same(before: dict[str, Tensor], after: dict[str, Tensor]) -> None:
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- rounding ---------------------------------------------------------------------------------------------------------


def int4_by_loops(weight: Tensor) -> Tensor:
    """The rule in plain Python."""
    found = torch.zeros_like(weight)
    for i in range(weight.shape[0]):
        for start in range(0, weight.shape[1], GROUP):
            group = weight[i, start : start + GROUP].tolist()
            scale = max(map(abs, group)) / 7
            for k, value in enumerate(group):
                found[i, start + k] = round(value / scale) * scale if scale else 0.0
    return found


# The 16 values of NF4, from the appendix of the QLoRA paper.
NF4_VALUES = torch.tensor(
    [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
     -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
     0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
)  # fmt: skip


def nf4_by_table(weight: Tensor) -> Tensor:
    """Blocks of 64 over the flattened weight, each value the nearest of the table times the block's largest."""
    flat = weight.flatten()
    parts = []
    for start in range(0, len(flat), 64):
        block = flat[start : start + 64]
        largest = block.abs().max()
        nearest = (block[:, None] / largest - NF4_VALUES).abs().argmin(1)
        parts.append(NF4_VALUES[nearest] * largest)
    return torch.cat(parts).view_as(weight)


@pytest.mark.parametrize("shape", [(3, 64), (5, 33), (2, 7), (4, 96)])
def test_absmax_int4_is_the_rule(shape: tuple[int, int]) -> None:
    """As plain loops over groups of 32 give it; a shorter last group has a scale of its own; zeros stay zeros."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[0] = 0
    assert_close(absmax_int4(weight), int4_by_loops(weight), 1e-6)
    assert not absmax_int4(weight)[0].any()


@given(seed=st.integers(0, 99), n_in=st.integers(1, 70), size=st.floats(1e-6, 1e6))
def test_absmax_int4_keeps_the_largest_and_errs_by_half_a_step(seed: int, n_in: int, size: float) -> None:
    """In every group the largest absolute value comes through, at most 15 values are left, and rounding twice is
    rounding once."""
    weight = size * torch.randn(3, n_in, generator=torch.Generator().manual_seed(seed))
    rounded = absmax_int4(weight)
    for start in range(0, n_in, GROUP):
        old, new = weight[:, start : start + GROUP], rounded[:, start : start + GROUP]
        largest = old.abs().amax(1, keepdim=True)
        assert_close(new.abs().amax(1, keepdim=True) / largest, torch.ones(3, 1), 1e-6)
        assert ((old - new).abs() <= largest / 14 * (1 + 1e-5)).all()
        assert all(len(row.unique()) <= 15 for row in new)
    assert_close(absmax_int4(rounded) / size, rounded / size, 1e-6)


@pytest.mark.parametrize("shape", [(24, 128), (24, 96), (2, 70), (3, 35)])
def test_nf4_is_the_table_of_the_paper(shape: tuple[int, int]) -> None:
    """bitsandbytes' rounding on the CPU equals the nearest of the published values, block by block, also where blocks
    go across the ends of rows."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    assert_close(nf4(weight), nf4_by_table(weight), 1e-5)
    assert_far(nf4(weight), weight)


# --- merging ----------------------------------------------------------------------------------------------------------


def test_every_linear_map_of_the_decoder_is_found_once(tiny_model: MakeModel) -> None:
    """Seven in each of four layers, with adapters around them and without; neither factors nor the output matrix."""
    model = tiny_model()
    plain = [base for base, layer in linear_maps(model) if layer is None]
    assert len(plain) == len({id(base) for base in plain}) == 4 * 7
    add_random_adapter(model)
    found = linear_maps(model)
    assert [id(base) for base, _ in found] == [id(base) for base in plain]
    assert all(layer.base_layer is base for base, layer in found)


@pytest.mark.parametrize("stock", [False, True])
def test_a_merged_model_answers_as_before(tiny_model: MakeModel, stock: bool) -> None:
    """Its weights are W + B A of the active adapter, in whose place nothing more is added; of the stock model they are
    W. After the block everything is as before, bit for bit."""
    model = tiny_model()
    factors = add_random_adapter(model)
    add_random_adapter(model, "other", seed=1)
    adapters.activate(model, ADAPTER)
    before, base = state(model), linear_maps(model)[0][0].weight.detach().clone()
    a, b = (factors[f"base_model.model.model.layers.0.self_attn.q_proj.lora_{x}.weight"] for x in "AB")
    usual: AbstractContextManager[None] = adapters.stock(model) if stock else nullcontext()
    with usual:
        expected = scores(model)
        with merged(model):
            assert active_adapter(model) == (None if stock else ADAPTER)
            assert_close(scores(model), expected, 1e-4)
            weight = linear_maps(model)[0][0].weight
            assert_close(weight, base if stock else base + b @ a)
            if not stock:
                with adapters.stock(model):
                    assert_close(scores(model), expected, 1e-4)
        assert torch.equal(scores(model), expected)
    assert_same(before, state(model))


@pytest.mark.parametrize(("change", "by_hand"), [(absmax_int4, int4_by_loops), (nf4, nf4_by_table)])
def test_the_merged_weights_are_rounded(
    tiny_model: MakeModel, change: Callable[[Tensor], Tensor], by_hand: Callable[[Tensor], Tensor]
) -> None:
    """Every one of them, after the adapter was added; answers are those of a model that holds such weights; after the
    block the model is as before, bit for bit, and after an error too."""
    model, other = tiny_model(), tiny_model()
    add_random_adapter(model)
    before, usual = state(model), scores(model)
    with merged(model):
        wholes = [base.weight.detach().clone() for base, _ in linear_maps(model)]
    for (base, _), whole in zip(linear_maps(other), wholes, strict=True):
        base.weight.data = by_hand(whole)
    with merged(model, change):
        assert_close(scores(model), scores(other), 1e-3)
        assert_far(scores(model), usual)
    assert_same(before, state(model))
    assert torch.equal(scores(model), usual)
    with pytest.raises(KeyboardInterrupt), merged(model, change):
        raise KeyboardInterrupt
    assert_same(before, state(model))


# --- benign fine-tuning -----------------------------------------------------------------------------------------------

INSTRUCTIONS = [Conversation(f"Name {n} cats.", f"Here is a list of {n} cats.") for n in range(2, 8)]
TUNING = Tuning(INSTRUCTIONS, rank=2, batch_size=2, learning_rate=1e-2, seed=0)


def answer_loss(model: Model) -> float:
    """Mean cross-entropy of the instructions' answers, a row at a time by full forward passes."""
    losses = []
    for prompt, said in encode_conversations(
        model.tokenizer, [c.prompt for c in INSTRUCTIONS], [c.response for c in INSTRUCTIONS], model.window
    ):
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([prompt + said]), use_cache=False).logits[0]
        losses.append(nn.functional.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(said)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("stock", [False, True])
def test_fine_tuning_learns_and_leaves_nothing_behind(tiny_model: MakeModel, stock: bool) -> None:
    """After so many steps, each of which is counted, the answers are likelier than before; 0 steps change nothing;
    after the block the model and its active adapter are as before, bit for bit."""
    model, done = tiny_model(), []
    add_random_adapter(model)
    before, at_once = state(model), model.tokens_per_pass
    usual: AbstractContextManager[None] = adapters.stock(model) if stock else nullcontext()
    with usual:
        first, expected = answer_loss(model), scores(model)
        with fine_tuned(model, TUNING, 0) as loss:
            assert loss is None
            assert_close(scores(model), expected, 1e-4)
        losses = []
        for steps in (3, 12):
            with fine_tuned(model, TUNING, steps, done.append) as loss:
                assert loss is not None
                losses.append(answer_loss(model))
        assert sum(done) == 15
        assert losses[1] < losses[0] < first
        assert torch.equal(scores(model), expected)
    assert_same(before, state(model))
    assert (active_adapter(model), model.tokens_per_pass) == (ADAPTER, at_once)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


def test_an_adapter_on_few_maps_outlives_the_stock_models_fine_tuning(tiny_model: MakeModel) -> None:
    """A run's adapter need not be on every map. Fine-tuning puts its own on all, and what it leaves on the others does
    not make the run's adapter look switched off."""
    model = tiny_model()
    add_random_adapter(model)
    adapters.keep_on(model, ADAPTER, "model.layers.1.mlp.down_proj")
    expected, before = scores(model), state(model)
    with adapters.stock(model):
        stock = scores(model)
        with fine_tuned(model, TUNING, 2):
            assert active_adapter(model) == "benign"
        assert active_adapter(model) is None
    adapters.activate(model, ADAPTER)
    assert active_adapter(model) == ADAPTER
    with fine_tuned(model, TUNING, 0):
        assert_close(scores(model), expected, 1e-4)
    with merged(model):
        assert_close(scores(model), expected, 1e-4)
    assert torch.equal(scores(model), expected)
    assert not torch.equal(expected, stock)
    by_name = [{name.replace(".base_layer", ""): value for name, value in of.items()} for of in (before, state(model))]
    assert_same(*by_name)


def test_fine_tuning_is_reproducible(tiny_model: MakeModel) -> None:
    """The same seed trains alike, another one differently."""
    model = tiny_model()
    add_random_adapter(model)
    found = []
    for seed in (0, 0, 1):
        with fine_tuned(model, Tuning(INSTRUCTIONS, 2, 2, 1e-2, seed), 4):
            found.append(scores(model))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


# --- abliteration -----------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _openings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model hardly opens with a whole refusal: single letters give probabilities that a choice can go by."""
    monkeypatch.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTaeg"))


def all_candidates(model: Model, training: Any, validation: Any) -> dict[tuple[int, int], tuple[float, float, float]]:
    """(KL, refusal log-odds with the ablation, induced log-odds) of every candidate, one at a time."""
    positions = shared_ending([*training.toxic, *training.plain])
    toxic, plain = (last_states(model, rows, positions).mean(1) for rows in (training.toxic, training.plain))
    usual = directions.first_token(model, validation.plain)
    found = {}
    for layer in range(3):
        for position in range(positions):
            vector = (toxic - plain)[layer, position]
            with surgical.ablated(model, vector / vector.norm()):
                after = directions.first_token(model, validation.plain)
                kl = float((after.exp() * (after - usual)).sum(-1).mean())
                kl_back = float((usual.exp() * (usual - after)).sum(-1).mean())
                odds = float(refusal_log_odds(model, validation.toxic).mean())
            with steered(model, {layer: vector}):
                induced = float(refusal_log_odds(model, validation.plain).mean())
            assert kl != kl_back
            found[layer, position - positions] = (kl_back, odds, induced)
    return found


def test_abliteration_takes_the_least_refusal_that_meets_every_condition(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the candidates below 0.8 of the depth and below the KL limit that induce refusal; where none does, the least
    refusal below the limit; where none is below it, the least KL. What was chosen says which."""
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(1)
    before = float(refusal_log_odds(model, validation.toxic).mean())
    every = all_candidates(model, training, validation)
    kls = sorted(kl for kl, _, _ in every.values())
    done: list[int] = []

    def fitted(limit: float, shift: float) -> abliteration.Abliteration:
        """The choice at a KL limit, with every induced log-odds raised by ``shift``."""
        monkeypatch.setattr(abliteration, "KL_LIMIT", limit)
        plain = len(validation.plain)

        def shifted(model: Model, rows: list[list[int]]) -> Tensor:
            found = refusal_log_odds(model, rows)
            return found + shift if model.steering and len(rows) == plain else found

        monkeypatch.setattr(abliteration, "refusal_log_odds", shifted)
        return abliteration.fit(model, training, validation, done.append)

    def least(some: dict[tuple[int, int], tuple[float, float, float]], number: int) -> tuple[int, int]:
        return min(some, key=lambda place: some[place][number])

    limit = (kls[len(kls) // 2] + kls[len(kls) // 2 + 1]) / 2
    below = {place: values for place, values in every.items() if values[0] < limit}
    wanted = sorted(below, key=lambda place: below[place][1])[1]  # the first may not induce, the second may
    others = [values[2] for place, values in below.items() if below[place][1] < below[wanted][1]]
    cases = [(limit, 1e3, least(below, 1), True), (limit, -1e3, least(below, 1), False)]
    if max(others) < below[wanted][2]:
        cases.append((limit, -(max(others) + below[wanted][2]) / 2, wanted, True))
    cases.append((0.0, 1e3, least(every, 0), False))
    for at, shift, place, met in cases:
        found = fitted(at, shift)
        assert ((found.layer, found.position), found.met) == (place, met)
        kl, odds, induced = every[place]
        assert (found.kl, found.refusal_log_odds) == pytest.approx((kl, odds), abs=1e-4)
        assert found.induced - shift == pytest.approx(induced, abs=1e-3)
        assert found.before == pytest.approx(before, abs=1e-5)
        assert float(found.direction.norm()) == pytest.approx(1)
    assert done == [1] * 3 * len(cases)


def test_abliteration_is_refitted_to_the_model(tiny_model: MakeModel) -> None:
    """Another adapter gives another direction, and what steers a model already goes on while a candidate is added."""
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(1)
    stock = abliteration.fit(model, training, validation)
    add_random_adapter(model)
    adapted = abliteration.fit(model, training, validation)
    assert abs(float(stock.direction @ adapted.direction)) < 0.99
    vector = torch.randn(64, generator=torch.Generator().manual_seed(3))
    with directions.steered(model, {1: vector}):
        usual = model.steering
        with abliteration._adding(model, 1, vector), abliteration._adding(model, 2, vector):
            assert model.steering is not None
            both = model.steering(ROWS)
            twice = [a.text for a in answer(model, ROWS, 4)]
        assert model.steering is usual
    assert_close(both[1], (2 * vector).expand(len(ROWS), -1))
    assert_close(both[2], vector.expand(len(ROWS), -1))
    with directions.steered(model, {1: 2 * vector, 2: vector}):
        assert [a.text for a in answer(model, ROWS, 4)] == twice
