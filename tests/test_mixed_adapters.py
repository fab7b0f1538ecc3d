"""Claims about several adapters in one pass: each row is what the library computes with its adapter alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import CONFIGS, LAYERS, OPENINGS, add_random_adapter, random_rows
from torch import Tensor

from dcr_lite.method import dial as dials
from dcr_lite.method.dial import Dial, set_strength
from dcr_lite.model import adapters
from dcr_lite.model.adapters import adapter_weights, set_adapter_weights
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.mixed_adapters import MixedAdapters, factors
from dcr_lite.model.states import layer_states
from dcr_lite.model.streaming import Growing, GrowingTogether

MakeModel = Callable[..., Model]
NEW = 8
ROWS = [*random_rows([5, 1, 12], shared=6), *random_rows([3], seed=1)]
STRENGTHS = (None, -1.5, 0.0, 2.0)
Which = tuple[str | None, float | None]  # an adapter and the strength of the first one's dial
WHICH: list[Which] = [(None, None), ("second", None), *(("first", strength) for strength in STRENGTHS)]


def logits_of(model: Model, rows: Tensor) -> Tensor:
    model.set_training(False)
    with torch.no_grad(), model.compute():
        return model.network(input_ids=rows, attention_mask=torch.ones_like(rows)).logits.float()


class Several:
    """A tiny model with two adapters, the first of which has a dial; the second is on the upper layers alone, with a
    rank more at one map. As the library computes it until ``mix`` is called."""

    def __init__(self, model: Model):
        self.model = model
        for seed, name in enumerate(("first", "second")):
            add_random_adapter(model, name, seed)
        upper = {k: v for k, v in adapter_weights(model, "second").items() if f".layers.{LAYERS - 1}." in k}
        set_adapter_weights(model, "second", upper)
        draw = torch.Generator().manual_seed(0)
        layer, name = dials.carrier(model, 1)
        width, inner = layer.mlp.down_proj.out_features, layer.mlp.down_proj.in_features
        extra = torch.randn(1, inner, generator=draw), torch.randn(width, 1, generator=draw)
        adapters.set_extra_ranks(model, "second", name.replace(".1.", f".{LAYERS - 1}."), *extra)
        vectors = [torch.randn(size, generator=draw) for size in (width, inner, inner)]
        self.dial = Dial(1, *vectors, gain=0.5)

    def alone(self, which: Which, compute: Callable[[], Any]) -> Any:
        """What ``compute`` gives with one adapter active in peft and the dial in its weights."""
        name, strength = which
        set_strength(self.model, "first", self.dial, strength)
        adapters.switch(self.model, name)
        found = compute()
        set_strength(self.model, "first", self.dial, None)
        return found

    def mix(self) -> "Several":
        self.mixed = MixedAdapters(self.model)
        for name in ("first", "second"):
            self.mixed.add(name, factors(self.model, name))
        for part, of_part in dials.parts(self.model, self.dial).items():
            self.mixed.add(part, of_part)
        return self

    def set_rows(self, rows: list[Which]) -> None:
        def shares(name: str | None, strength: float | None) -> dict[str, float]:
            turned = dials.shares(self.dial, strength) if name == "first" else {}
            return ({name: 1.0} if name else {}) | turned

        self.mixed.set_rows([shares(*row) for row in rows])


@pytest.mark.parametrize(
    ("architecture", "four_bit"),
    [*((name, False) for name in CONFIGS if name != "lfm2"), ("llama", True), ("gemma3", True)],  # LFM2 has no dial
)
def test_each_row_has_the_logits_of_its_model(tiny_model: MakeModel, architecture: str, four_bit: bool) -> None:
    """In any architecture, dense and in 4 bits: as peft computes one adapter after the other. All models differ."""
    several = Several(tiny_model(architecture, four_bit=four_bit))
    rows = torch.tensor(random_rows([9] * len(WHICH)))
    alone = [several.alone(which, lambda: logits_of(several.model, rows)) for which in WHICH]
    expected = torch.stack([of_model[i] for i, of_model in enumerate(alone)])
    several.mix().set_rows(WHICH)
    found = logits_of(several.model, rows)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=2e-3)
    for which, of_model in zip(WHICH, alone, strict=True):
        several.set_rows([which])
        torch.testing.assert_close(logits_of(several.model, rows), of_model, rtol=1e-3, atol=2e-3)
    apart = torch.stack(alone).flatten(1)
    assert torch.cdist(apart, apart).add(torch.eye(len(WHICH)) * 9).min() > 0.1


@pytest.fixture(scope="module")
def several(tiny_model: MakeModel) -> tuple[Several, dict[tuple[Which, int], Any]]:
    """Mixed, and what each model says to each of ROWS alone, as the library computes it."""
    made = Several(tiny_model())
    made.model.openings = OPENINGS
    alone = {
        (which, i): made.alone(which, lambda row=row: answer(made.model, [row], NEW)[0])
        for which in WHICH
        for i, row in enumerate(ROWS)
    }
    assert len({(one.ids, round(one.refusal_log_odds, 2)) for one in alone.values()}) == len(alone)
    return made.mix(), alone


ASKED = st.lists(st.tuples(st.sampled_from(WHICH), st.integers(0, len(ROWS) - 1)), min_size=1, max_size=6)


@settings(max_examples=12)
@given(ASKED, ASKED, st.integers(0, NEW))
def test_answers_of_several_models_grow_together(several: Any, first: Any, later: Any, steps: int) -> None:
    """Tokens and refusal log-odds of each are those of its own model on its prompt alone, whoever is beside it."""
    made, alone = several
    growing = {asked: Growing(ROWS[asked[1]], NEW, which=asked[0]) for asked in [*first, *later]}
    begun = [growing[asked] for asked in dict.fromkeys(first)]
    together = GrowingTogether(made.model, begun, made.set_rows)
    for _ in range(steps):
        together.step()
    if others := [one for one in growing.values() if one not in begun]:
        together.join(GrowingTogether(made.model, others, made.set_rows))
    for _ in range(NEW + 1):
        together.step()
    for asked, one in growing.items():
        assert tuple(one.ids) == alone[asked].ids
        assert one.refusal_log_odds == pytest.approx(alone[asked].refusal_log_odds, abs=1e-3)


def test_one_model_stands_for_all_rows_of_a_packed_pass(tiny_model: MakeModel) -> None:
    """States of layer L are read from packed passes, whose rows are not apart; several models cannot share one."""
    several = Several(tiny_model())
    expected = {which: several.alone(which, lambda: layer_states(several.model, ROWS, 2)) for which in WHICH}
    several.mix()
    for which in WHICH:
        several.set_rows([which])
        torch.testing.assert_close(layer_states(several.model, ROWS, 2), expected[which], rtol=1e-3, atol=1e-3)
    several.set_rows(WHICH[: len(ROWS)])
    with pytest.raises(RuntimeError, match="broadcast"):
        layer_states(several.model, ROWS, 2)


def test_layers_that_peft_adds_later_are_taken_over(tiny_model: MakeModel) -> None:
    """A part that comes later changes no row that does not have it."""
    several = Several(tiny_model())
    rows = torch.tensor(random_rows([9]))
    expected = several.alone(("first", None), lambda: logits_of(several.model, rows))
    several.mix().set_rows([("first", None)])
    add_random_adapter(several.model, "third", seed=7)
    several.mixed.add("third", factors(several.model, "third"))
    several.set_rows([("first", None)])
    torch.testing.assert_close(logits_of(several.model, rows), expected, rtol=1e-4, atol=1e-4)
    several.set_rows([("third", None)])
    assert (logits_of(several.model, rows) - expected).abs().max() > 0.1


def test_what_does_not_fit_changes_nothing(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part for which memory does not suffice is not there, and all others answer as before."""
    several, rows = Several(tiny_model()).mix(), torch.tensor(random_rows([9]))
    several.set_rows([("first", 2.0)])
    expected = logits_of(several.model, rows)
    cat, calls = torch.cat, iter(range(10**6))

    def scarce(*given: Any) -> Tensor:
        if next(calls) > 20:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return cat(*given)

    with monkeypatch.context() as patched:
        patched.setattr(torch, "cat", scarce)
        with pytest.raises(torch.OutOfMemoryError):
            several.mixed.add("third", factors(several.model, "second"))
    with pytest.raises(KeyError, match="third"):
        several.set_rows([("third", None)])
    several.set_rows([("first", 2.0)])
    assert torch.equal(logits_of(several.model, rows), expected)


def test_factors_meet_on_the_models_device_in_its_precision(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dial is on the CPU in float32 and an adapter where the model is: each is moved before they are put together."""
    model = tiny_model(precision=torch.bfloat16)
    put_together: list[set[torch.dtype]] = []
    cat = torch.cat

    def noted(parts: list[Tensor], *more: Any) -> Tensor:
        put_together.append({part.dtype for part in parts})
        return cat(parts, *more)

    several = Several(model)
    monkeypatch.setattr(torch, "cat", noted)
    several.mix()
    assert len(put_together) > 20
    assert all(types == {torch.bfloat16} for types in put_together)


def test_without_parts_all_rows_are_the_base_model(tiny_model: MakeModel) -> None:
    """Whatever adapter is active in peft; and again once a part is removed."""
    several, rows = Several(tiny_model()), torch.tensor(random_rows([9]))
    expected = several.alone((None, None), lambda: logits_of(several.model, rows))
    adapters.switch(several.model, "second")
    mixed = MixedAdapters(several.model)
    torch.testing.assert_close(logits_of(several.model, rows), expected, rtol=1e-4, atol=1e-4)
    mixed.add("second", factors(several.model, "second"))
    mixed.set_rows([{"second": 1.0}])
    assert (logits_of(several.model, rows) - expected).abs().max() > 0.1
    mixed.remove("second")
    torch.testing.assert_close(logits_of(several.model, rows), expected, rtol=1e-4, atol=1e-4)
