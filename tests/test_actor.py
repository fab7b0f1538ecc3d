"""Claims about ACTOR: where each state is to go, which layer trains and with which gradient, and what is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import silhouette_samples
from tiny_models import (
    ADAPTER,
    LAYERS,
    add_random_adapter,
    assert_close,
    full_states,
    losses_of,
    random_kinds,
    take_gradients,
)
from torch import Tensor
from torch.nn.functional import cosine_similarity

from dcr_lite.compare import actor
from dcr_lite.compare.actor import Actor, ActorConfig, batches, best_layer, cosine_distances, targets
from dcr_lite.compare.directions import KL_LIMIT, VALIDATION, Kinds, apart, first_token, first_token_kl
from dcr_lite.method import loop
from dcr_lite.method.loop import Loop
from dcr_lite.model import states_below
from dcr_lite.model.adapters import adapter_weights, save_adapter, set_adapter_weights
from dcr_lite.model.loading import Model

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
LAYER = LAYERS - 2  # there are layers below it, and one above
TRAINING, DEVELOPMENT = random_kinds(0), random_kinds(1)


def made(model: Model, folder: Path, alpha: float = 0.5, rate: float = 1e-2, training: Kinds = TRAINING) -> Actor:
    """ACTOR of a model with an adapter that changes it, as safety SFT would."""
    if not hasattr(model.network, "peft_config"):
        add_random_adapter(model)
    return Actor("actor", model, ADAPTER, training, DEVELOPMENT, ActorConfig(LAYER, alpha, rate), 0, folder)


# --- targets and loss -------------------------------------------------------------------------------------------------


def test_a_harmless_state_is_turned_down_by_its_projection() -> None:
    """a = (1, 1), R = (1, 0), alpha 0.5: the target is (0.5, 1) and the loss 0.0513; toxic ones go up."""
    plain, toxic = torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 1.0]])
    up, down, also_down = targets(toxic, torch.tensor([[4.0, 3.0]]), plain, 0.5)
    assert_close(also_down, torch.tensor([[0.5, 1.0]]))
    assert_close(up, torch.tensor([[3.0, 1.0]]))
    assert_close(down, torch.tensor([[2.0, 3.0]]))
    assert float(cosine_distances(plain, also_down)) == pytest.approx(0.0513, abs=5e-5)


def test_targets_are_those_of_plain_loops() -> None:
    """Each state along R by alpha times its own projection, of three kinds whose mean projections are positive."""
    generator = torch.Generator().manual_seed(0)
    kinds = [0.3 * torch.randn(n, 8, generator=generator) + mean for n, mean in ((5, 3.0), (4, 2.5), (6, 2.0))]
    direction = kinds[0].mean(0) - kinds[2].mean(0)
    for states, found, sign in zip(kinds, targets(*kinds, 0.25), (1, -1, -1), strict=True):
        for a, target in zip(states, found, strict=True):
            projection = (a @ direction) / direction.norm() ** 2 * direction
            assert_close(target, a + sign * 0.25 * projection)


@given(seed=st.integers(0, 2**16), offset=st.floats(-20, 20), alpha=st.floats(0.01, 2))
def test_down_is_down_whatever_the_sign_of_the_projections(seed: int, offset: float, alpha: float) -> None:
    """Along R toxic prompts on average go up, the other two kinds down; nothing else of a state changes."""
    generator = torch.Generator().manual_seed(seed)
    away = torch.zeros(8)
    away[0] = 1
    kinds = [torch.randn(9, 8, generator=generator) + (offset + shift) * away for shift in (4, 2, 0)]
    direction = kinds[0].mean(0) - kinds[2].mean(0)
    for states, found, sign in zip(kinds, targets(*kinds, alpha), (1, -1, -1), strict=True):
        moved = found - states
        along = moved @ direction / direction.norm() ** 2
        assert sign * float(along.mean()) > 0
        assert_close(moved, along[:, None] * direction, 1e-4)


def test_the_projection_is_counted_from_the_midpoint_where_a_kind_is_on_the_other_side() -> None:
    """Toxic at 1 and plain at -3 along R: both move by alpha times 2, which is their distance from the middle."""
    toxic, plain = torch.tensor([[1.0, 5.0]]), torch.tensor([[-3.0, 5.0]])
    up, middle, down = targets(toxic, torch.tensor([[-1.0, 5.0]]), plain, 0.5)
    assert_close(up, torch.tensor([[2.0, 5.0]]))
    assert_close(middle, torch.tensor([[-1.0, 5.0]]))
    assert_close(down, torch.tensor([[-4.0, 5.0]]))


@given(seed=st.integers(0, 2**16), size=st.floats(0.01, 100))
def test_the_loss_is_one_minus_the_cosine(seed: int, size: float) -> None:
    """Whatever the length of the states; its gradient is that of the cosine."""
    generator = torch.Generator().manual_seed(seed)
    a, wanted = (size * torch.randn(3, 6, generator=generator, dtype=torch.double) for _ in range(2))
    ours, theirs = (a.clone().requires_grad_() for _ in range(2))
    loss, expected = cosine_distances(ours, wanted), 1 - cosine_similarity(theirs, wanted)
    assert_close(loss.detach(), expected.detach(), 1e-9)
    loss.sum().backward()
    expected.sum().backward()
    assert_close(ours.grad, theirs.grad, 1e-7)


@given(few=st.integers(1, 40), more=st.integers(0, 9), seed=st.integers(0, 9))
def test_a_batch_has_as_many_prompts_of_each_kind(few: int, more: int, seed: int) -> None:
    """Of unequal kinds as many as there are of the fewest, each once an epoch."""
    training = Kinds([[1]] * (few + more), [[2]] * few, [[3]] * (few + 2 * more))
    found = batches(training, seed)
    assert sorted(i for batch in found for i in batch) == list(range(3 * few))
    for batch in found:
        of_kind = [sorted(i % few for i in batch if i // few == k) for k in range(3)]
        assert of_kind[0] == of_kind[1] == of_kind[2]
        assert len(batch) <= 3 * actor.PER_KIND


# --- the layer --------------------------------------------------------------------------------------------------------


def test_the_layer_is_the_middle_one_with_the_best_silhouette(tiny_model: MakeModel, reference: MakeReference) -> None:
    """Of toxic against harmless last-token states in full forward passes, by the mean over prompts."""
    model, plain = tiny_model(num_hidden_layers=8), reference(num_hidden_layers=8)
    found = best_layer(model, TRAINING)
    rows = TRAINING.toxic + TRAINING.plain
    is_toxic = [True] * len(TRAINING.toxic) + [False] * len(TRAINING.plain)
    expected = {}
    for layer in range(2, 6):  # 0.3 and 0.7 of 8
        states = torch.stack([full_states(plain, row, layer)[-1] for row in rows])
        expected[layer] = float(silhouette_samples(states.numpy(), is_toxic).mean())
    assert found.number == max(expected, key=lambda layer: expected[layer])
    assert found.silhouette == pytest.approx(expected[found.number], abs=1e-4)


def by_full_passes(model: Model, stage: Actor, batch: list[int], wanted: list[Tensor]) -> Tensor:
    """The loss of a batch by whole forward passes of single rows, nothing stored, and its gradients in the network."""
    losses = []
    for i, target in zip(batch, wanted, strict=True):
        out = model.network(input_ids=torch.tensor([stage.rows[i]]), output_hidden_states=True, use_cache=False)
        state = out.hidden_states[LAYER + 1][0, -1]
        losses.append(1 - cosine_similarity(state, target, dim=0))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
@pytest.mark.parametrize("small", [False, True], ids=["stored, one pass", "fresh, several passes"])
def test_a_step_is_that_of_a_full_forward_pass(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, small: bool
) -> None:
    """Targets, loss and gradients, packed and padded, from stored states or fresh ones, in one pass or several; no
    other layer has a gradient."""
    model = tiny_model(architecture)
    if small:
        model.tokens_per_pass = 60
        monkeypatch.setattr(states_below, "STORED_SHARE", 0.0)
    stage = made(model, tmp_path)
    model.network.train()
    loss = stage.step(0)
    ours = take_gradients(stage.parameters)
    assert all(parameter.grad is None for parameter in model.network.parameters())

    states = torch.stack([stage.leaving([i])[0].detach() for i in range(len(stage.rows))])
    with torch.no_grad():
        for i in (0, 20, 35):
            out = model.network(input_ids=torch.tensor([stage.rows[i]]), output_hidden_states=True, use_cache=False)
            assert_close(states[i], out.hidden_states[LAYER + 1][0, -1], 1e-4)
    wanted = torch.cat(targets(*states.chunk(3), 0.5))
    assert_close(stage.targets_of(0), wanted, 1e-4)
    batch = stage.batches[0]
    expected = by_full_passes(model, stage, batch, list(wanted[batch]))
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-3)
    theirs = take_gradients(stage.parameters)
    assert max(float(g.abs().max()) for g in theirs) > 1e-4
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


# --- a training -------------------------------------------------------------------------------------------------------


def test_with_alpha_0_nothing_moves(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Loss and gradient are zero, and after three epochs the adapter is bit for bit what it was."""
    model = tiny_model()
    stage = made(model, tmp_path, alpha=0.0)
    before = adapter_weights(model, ADAPTER)
    model.network.train()
    assert stage.step(0) == 0
    assert all(not bool(gradient.any()) for gradient in take_gradients(stage.parameters))
    assert losses_of(Loop(stage).run().metrics) == [0.0] * stage.steps
    after = adapter_weights(model, ADAPTER)
    assert all(torch.equal(after[name], weights) for name, weights in before.items())


def test_a_training_turns_the_states_and_leaves_other_layers(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of kinds that a token tells apart: within an epoch the loss falls, and toxic states part from the others along R.
    All layers but l* are bit for bit as before, and with them the states that enter it."""
    monkeypatch.setattr(actor, "EPOCHS", 1)
    monkeypatch.setattr(actor, "PER_KIND", 2)  # twelve steps
    model, drawn = tiny_model(), random_kinds(0, 24)
    some = (drawn.toxic, drawn.seemingly_toxic, drawn.plain)
    marked = Kinds(*([[*row[:-1], 20 + k] for row in rows] for k, rows in enumerate(some)))
    stage = made(model, tmp_path, 1.0, 3e-3, marked)
    before, everyone = adapter_weights(model, ADAPTER), list(range(72))
    entering = stage.entering.of(model.batch(stage.rows, stage.prefix), everyone)
    first = stage.leaving(everyone).detach()
    Loop(stage).run()
    last, wanted = stage.leaving(everyone).detach(), stage.targets_of(0)
    assert float(cosine_distances(last, wanted).mean()) < 0.85 * float(cosine_distances(first, wanted).mean())

    toxic, _, plain = first.chunk(3)
    direction = toxic.mean(0) - plain.mean(0)

    def ahead(states: Tensor) -> list[float]:
        """How far toxic prompts are ahead of the other kinds along R."""
        along = [float((kind @ direction).mean()) for kind in states.chunk(3)]
        return [along[0] - along[1], along[0] - along[2]]

    assert all(now > 1.05 * then for now, then in zip(ahead(last), ahead(first), strict=True))
    after = adapter_weights(model, ADAPTER)
    changed = {name for name, weights in before.items() if not torch.equal(after[name], weights)}
    assert changed
    assert all(f".layers.{LAYER}." in name for name in changed)
    again = made(model, tmp_path / "again", training=marked)
    assert torch.equal(entering, again.entering.of(model.batch(again.rows, again.prefix), everyone))


def test_each_epoch_has_targets_of_its_own(tiny_model: MakeModel, tmp_path: Path) -> None:
    """Of the states at its beginning: those of a fresh training from the weights that it began with. Within an epoch
    they stay."""
    model = tiny_model()
    stage = made(model, tmp_path / "whole")
    starts: list[dict[str, Tensor]] = []
    take = stage.step

    def step(number: int) -> float:
        if number % len(stage.batches) == 0:
            starts.append(adapter_weights(model, ADAPTER))
        return take(number)

    stage.step = step  # type: ignore[method-assign]
    Loop(stage).run()
    assert len(starts) == actor.EPOCHS
    for epoch, weights in enumerate(starts):
        set_adapter_weights(model, ADAPTER, weights)
        fresh = made(model, tmp_path / f"fresh{epoch}")
        assert_close(stage.targets_of(epoch), fresh.targets_of(0))
    assert not torch.allclose(stage.targets_of(0), stage.targets_of(1), atol=1e-3)


def test_the_epoch_is_chosen_by_development_prompts(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that sets the kinds furthest apart among those that leave the first token of plain prompts where safety
    SFT has it; beyond the limit the one that moves it least. Safety SFT itself is none."""
    model = tiny_model()
    stage = made(model, tmp_path)
    assert stage.observe(0) == {}
    plain = DEVELOPMENT.plain[:VALIDATION]
    stock = [model.network(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in plain]
    for _ in range(3):
        for parameter in stage.parameters:
            parameter.data += 0.1 * torch.randn_like(parameter)
        seen = stage.observe(len(stage.batches))
        now = [model.network(input_ids=torch.tensor([row])).logits[0, -1].log_softmax(-1) for row in plain]
        kl = sum(float((a.exp() * (a - b)).sum()) for a, b in zip(stock, now, strict=True)) / len(plain)
        assert seen["first_token_kl"] == pytest.approx(kl, abs=1e-4)
        assert seen["apart"] == pytest.approx(apart(model, DEVELOPMENT), abs=1e-5)
        assert seen["best"] == (seen["apart"] if kl <= KL_LIMIT else -1 - seen["first_token_kl"])

    given = iter([(0.3, 0.1), (0.5, 0.5), (0.4, 0.19)])  # apart, divergence of three epochs
    found: list[float] = []
    monkeypatch.setattr(actor, "first_token_kl", lambda *args: found.append(next(given)) or found[-1][1])
    monkeypatch.setattr(actor, "apart", lambda *args: found[-1][0])
    progress = Loop(stage).run()
    assert (progress.best, progress.best_step) == (0.4, 3 * len(stage.batches))


def test_a_stopped_training_goes_on_where_it_was(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped within an epoch, it ends bit for bit where an undisturbed one does, though the weights that gave the
    epoch's targets are gone; and its adapter takes the place of what was kept of them."""
    monkeypatch.setattr(actor, "PER_KIND", 4)  # three steps an epoch
    model = tiny_model()
    start = add_random_adapter(model)
    undisturbed = made(model, tmp_path / "undisturbed")
    Loop(undisturbed).run()
    expected = adapter_weights(model, ADAPTER)

    set_adapter_weights(model, ADAPTER, start)
    stage, path, folder = made(model, tmp_path / "stopped"), tmp_path / "actor.pt", tmp_path / "stopped"
    update = loop.Loop._update

    def stop_after(self: Loop, number: int, *rest: Any) -> None:
        update(self, number, *rest)
        if number == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop.Loop, "_update", stop_after)
        patched.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            Loop(stage, path).run()
    set_adapter_weights(model, ADAPTER, start)  # as a new process does
    again = made(model, folder)
    Loop(again, path).run()
    found = adapter_weights(model, ADAPTER)
    assert all(torch.equal(found[name], weights) for name, weights in expected.items())
    save_adapter(model, ADAPTER, folder)
    assert {file.name for file in folder.glob("*.safetensors")} == {"adapter_model.safetensors"}


def test_the_divergence_is_none_without_a_change(tiny_model: MakeModel) -> None:
    """Of a model from itself it is 0, of another more."""
    model = tiny_model()
    weights = add_random_adapter(model)
    before = first_token(model, DEVELOPMENT.plain)
    assert first_token_kl(model, DEVELOPMENT.plain, before) == pytest.approx(0, abs=1e-7)
    set_adapter_weights(model, ADAPTER, {name: 1.5 * tensor for name, tensor in weights.items()})
    assert first_token_kl(model, DEVELOPMENT.plain, before) > 0.01
