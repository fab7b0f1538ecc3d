"""Stage 1 on a tiny model: what it moves, what it leaves alone, which weights it keeps."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from dcr_lite.data.rows import Pair
from dcr_lite.method import contrastive, losses
from dcr_lite.method.contrastive import ContrastiveConfig, ContrastiveRefinement, encode_pairs, stock_geometry
from dcr_lite.method.loop import Loop, Progress
from dcr_lite.model import adapters, states, states_below
from dcr_lite.model.states import layer_states

WORDS = [
    "cat",
    "dog",
    "sun",
    "rain",
    "tree",
    "road",
    "lamp",
    "book",
    "fish",
    "bird",
    "door",
    "wall",
    "milk",
    "rice",
    "snow",
    "wind",
]
PAIRS = [Pair(f"harm the {w} now", f"draw the {w} now", focus=w) for w in WORDS]
CONFIG = ContrastiveConfig(
    layer=1, loss=losses.supervised_contrastive(0.5), centre="batch", whiten=True, steps=24, batch_size=16,
    learning_rate=5e-3, observe_every=8,
)  # fmt: skip


def trained(model: Any) -> Progress:
    adapters.add_adapter(model, "test", rank=4, seed=0)
    geometry = stock_geometry(model, encode_pairs(model, PAIRS[:12]), CONFIG)
    return Loop(ContrastiveRefinement(model, "test", PAIRS[:12], PAIRS[12:], CONFIG, geometry, seed=0)).run()


def test_both_sides_of_a_pair_stand_behind_the_same_messages(tiny_model: Any) -> None:
    """All toxic sides first, each as the chat template writes the conversation; other pairs as without."""
    model, messages = tiny_model(), [{"role": "system", "content": "Be brief."}]
    pairs = [PAIRS[0], replace(PAIRS[1], before=(("system", "Be brief."),))]
    expected = [
        model.tokenizer.apply_chat_template(
            [*earlier, {"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for side in ("toxic", "seemingly_toxic")
        for earlier, text in zip(([], messages), (getattr(pair, side) for pair in pairs), strict=True)
    ]
    assert encode_pairs(model, pairs) == expected


def test_stage_1_separates_pairs_that_it_has_not_seen(tiny_model: Any) -> None:
    """The kinds differ in one word here: unseen pairs with other words end apart, and the loss has fallen."""
    model = tiny_model()
    progress = trained(model)
    losses_seen = [row["loss"] for row in progress.metrics if "loss" in row]
    assert progress.best > 0.9
    assert losses_seen[-1] < losses_seen[0]


def test_stage_1_moves_only_adapter_weights_up_to_l(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers above L keep their fresh adapter: its second factor is still zero."""
    rising = itertools.count()
    monkeypatch.setattr(contrastive, "separation", lambda *_: next(rising))  # so that the last weights are kept
    model = tiny_model()
    trained(model)
    for name, weight in adapters.adapter_weights(model, "test").items():
        if "lora_B" in name:
            assert (".layers.0." in name or ".layers.1." in name) == bool(weight.abs().max() > 0), name


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
@pytest.mark.parametrize("stored", [True, False])
def test_states_below_the_first_layer_that_trains_are_as_good_as_the_whole_model(
    tiny_model: Any, architecture: str, stored: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients and evaluation of a stage 1 that begins at a later layer are those of a whole forward pass in
    which only these layers train; no other layer moves."""
    if not stored:
        monkeypatch.setattr(states_below, "STORED_SHARE", 0.0)
    model = tiny_model(architecture)
    adapters.add_adapter(model, "test", rank=4, seed=0)
    config = replace(CONFIG, layer=2, first=1)
    geometry = stock_geometry(model, encode_pairs(model, PAIRS[:12]), config)
    stage = ContrastiveRefinement(model, "test", PAIRS[:12], PAIRS[12:], config, geometry, seed=0)
    whole = ContrastiveRefinement(model, "test", PAIRS[:12], PAIRS[12:], replace(config, first=0), geometry, seed=0)
    adapters.train_only(model, "test", range(1, 3))
    seen = []
    for one in (stage, whole):
        model.network.zero_grad()
        model.network.train()
        loss = one.step(0)
        gradients = {n: p.grad.clone() for n, p in model.network.named_parameters() if p.grad is not None}
        seen.append((loss, gradients, one.observe(0)["best"]))
    (loss, gradients, best), (loss_of_whole, gradients_of_whole, best_of_whole) = seen
    assert loss == pytest.approx(loss_of_whole, rel=1e-5)
    assert best == best_of_whole
    assert gradients.keys() == gradients_of_whole.keys()
    assert {name.split(".layers.")[1].split(".")[0] for name in gradients} == {"1", "2"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, gradients_of_whole[name], rtol=1e-3, atol=1e-6)


def test_the_weights_kept_are_those_that_separate_best(tiny_model: Any) -> None:
    """After stage 1 the adapter holds the observation with the highest development AUROC, not the last one."""
    model = tiny_model()
    progress = trained(model)
    seen = {row["step"]: row["development_auroc"] for row in progress.metrics if "development_auroc" in row}
    assert progress.best == max(seen.values())
    assert seen[progress.best_step] == progress.best
    kept = adapters.adapter_weights(model, "test")
    assert progress.best_weights is not None
    assert all(torch.equal(kept[name], weight) for name, weight in progress.best_weights.items())


def test_layer_states_come_in_the_order_asked_for(tiny_model: Any) -> None:
    """Rows are batched by length inside; what comes out answers to what went in."""
    model = tiny_model()
    rows = encode_pairs(model, [Pair("a long prompt with many words in it", "short"), Pair("mid size", "tiny one")])
    together = layer_states(model, rows, 1)
    alone = torch.cat([layer_states(model, [row], 1) for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [0, 500])
def test_a_batch_is_cut_by_the_tokens_that_are_computed(tiny_model: Any, shared: int) -> None:
    """What fits goes through at once. Parts of more hold every row once; none computes more than it may, and a prefix
    that all rows share, computed once, makes no more parts of them."""
    model = tiny_model()
    rows = [[1] * shared + [2 + i % 7] + [3] * (10 + i % 5) for i in range(400)]
    parts = states.prompt_passes(model, rows)
    assert sorted(i for part in parts for i in part) == list(range(len(rows)))
    computed = [sum(len(rows[i]) - shared for i in part) for part in parts]
    assert max(computed) <= states.TOKENS_PER_PART
    assert len(parts) == -(-sum(computed) // states.TOKENS_PER_PART)
    few = rows[:128]
    assert states.TOKENS_PER_PART < sum(len(row) - shared for row in few) <= states.TOKENS_PER_PASS
    assert states.prompt_passes(model, few) == [list(range(128))]
