"""Claims about the training loop's parts: the learning rate, and checkpoints that are whole or absent."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import ADAPTER, LAYERS, GivenStage, add_random_adapter

from dcr_lite.errors import UserError
from dcr_lite.method import checkpoint, loop
from dcr_lite.method.checkpoint import Progress
from dcr_lite.method.loop import Loop, learning_rate_at
from dcr_lite.model.adapters import adapter_weights, train_only
from dcr_lite.model.loading import Model

FULL = Path("/dev/full")


@given(steps=st.integers(1, 400), peak=st.floats(1e-6, 1.0))
def test_the_learning_rate_rises_to_its_peak_and_falls_after(steps: int, peak: float) -> None:
    """Rising over the first tenth, peak reached, falling after, never above the peak nor below a tenth of it."""
    rates = [learning_rate_at(step, steps, peak) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(peak)
    assert top <= max(1, round(steps / 10))
    assert all(rate > 0 for rate in rates)
    assert min(rates[top:]) >= 0.1 * peak * (1 - 1e-9)


def test_an_interrupt_while_better_weights_are_copied_keeps_the_old_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is written then has a value and the weights that gave it."""
    stage, progress = Mock(observe=lambda step: {"best": 0.9}), Progress(best=0.5, best_step=2, best_weights={})
    monkeypatch.setattr(loop, "adapter_weights", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        Loop(stage)._observe(3, progress)
    assert (progress.best, progress.best_step, progress.best_weights) == (0.5, 2, {})


@pytest.mark.parametrize("steps", [5, 20, 60, 200])
def test_the_last_step_has_a_tenth_of_the_peak(steps: int) -> None:
    """The cosine ends at a tenth of the peak in the last step that is taken."""
    assert learning_rate_at(steps - 1, steps, 1.0) == pytest.approx(0.1, abs=1e-3)


def test_the_learning_rate_scales_with_its_peak() -> None:
    """Twice the peak is twice the rate at every step."""
    for step in range(30):
        assert learning_rate_at(step, 30, 2e-3) == pytest.approx(2 * learning_rate_at(step, 30, 1e-3))


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    """What is saved is loaded again, folders are made, and nothing else is left beside it."""
    path = tmp_path / "run" / "stage1.pt"
    checkpoint.write({"step": 1, "weights": torch.arange(3)}, path)
    checkpoint.write({"step": 2, "weights": torch.arange(3)}, path)
    saved = torch.load(path, weights_only=True)
    assert saved["step"] == 2
    assert saved["weights"].tolist() == [0, 1, 2]
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_has_the_words_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has some, which torch's own writer drops."""
    monkeypatch.setattr(torch, "save", Mock(side_effect=OSError(28, "No space left on device")))
    with pytest.raises(UserError, match=r"stage1\.pt: cannot be written \(No space left on device\); free some disk"):
        checkpoint.write({"step": 2}, tmp_path / "stage1.pt")


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files may grow to 100 kB only, as if the disk were full then."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("value", [torch.zeros(1_000_000), [torch.zeros(1_000)] + [torch.ones(i) for i in range(999)]])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_fills_up_is_a_user_error(tmp_path: Path, value: Any) -> None:
    """When the disk fills up half-way, torch's own writer included, the old file is whole and the half one gone."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)
    with pytest.raises(UserError, match=r"stage1\.pt: cannot be written"):
        checkpoint.write(value, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not FULL.exists(), reason="no /dev/full here")
@pytest.mark.parametrize("size", [10, 1_000_000])
def test_a_full_disk_is_a_user_error(tmp_path: Path, size: int) -> None:
    """On a disk that is really full (/dev/full) the message is the same, and the old file is whole."""
    path = tmp_path / "stage1.pt"
    checkpoint.write({"step": 1}, path)
    path.with_name("stage1.pt.partial").symlink_to(FULL)
    with pytest.raises(UserError, match=r"stage1\.pt: cannot be written \(the disk took only a part\); free some disk"):
        checkpoint.write({"step": 2, "weights": torch.zeros(size)}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


# --- patience ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stopped_at", [None, 3, 6, 7])
def test_training_ends_when_nothing_better_is_found(
    stopped_at: int | None, tiny_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After as many evaluations without a better one as ``patience`` says, with the best weights; also where the run
    was interrupted and goes on."""
    values = {0: 0.5, 2: 0.7, 4: 0.9, 6: 0.8, 8: 0.9, 10: 0.99}
    observed: list[int] = []

    def train(stop_at: int | None) -> Progress | None:
        model = tiny_model()
        add_random_adapter(model)
        weights = train_only(model, ADAPTER, range(LAYERS))

        def step(number: int) -> float:
            if number == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            weights[0].sum().backward()
            return 1.0

        def observe(at: int) -> dict[str, Any]:
            observed.append(at)
            return {"best": values[at]}

        stage = GivenStage(model, weights, step, steps=10, observe_every=2)
        stage.observe = observe  # type: ignore[method-assign]
        with contextlib.suppress(KeyboardInterrupt):
            return Loop(stage, tmp_path / "stage1.pt", patience=2).run()
        return None

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)  # whatever started the tests
    progress = train(stopped_at)
    if stopped_at is not None:
        assert progress is None
        progress = train(None)
    assert progress is not None
    assert (progress.step, progress.best_step, progress.best) == (8, 4, 0.9)
    assert sorted(set(observed)) == [0, 2, 4, 6, 8]


def test_a_run_stopped_in_its_last_evaluation_trains_no_step_again(
    tiny_model: Callable[..., Model], tmp_path: Path
) -> None:
    """All its steps are in the checkpoint, and what is left to do is to evaluate."""
    taken: list[int] = []

    def train(stops: bool) -> Progress:
        model = tiny_model()
        add_random_adapter(model)
        weights = train_only(model, ADAPTER, range(LAYERS))

        def step(number: int) -> float:
            taken.append(number)
            weights[0].sum().backward()
            return 1.0

        def observe(at: int) -> dict[str, Any]:
            if stops and at == 4:
                raise KeyboardInterrupt
            return {"best": float(at)}

        stage = GivenStage(model, weights, step, steps=4, observe_every=2)
        stage.observe = observe  # type: ignore[method-assign]
        return Loop(stage, tmp_path / "stage1.pt").run()

    with pytest.raises(KeyboardInterrupt):
        train(stops=True)
    assert train(stops=False).best_step == 4
    assert taken == [0, 1, 2, 3]


# --- when, and what ---------------------------------------------------------------------------------------------------


def steps_saved(
    tiny_model: Callable[..., Model], path: Path, monkeypatch: pytest.MonkeyPatch, seconds_a_step: float, steps: int
) -> list[int]:
    """After which steps a checkpoint is written, by a clock that each step moves on."""
    clock, saved = [0.0], []
    model = tiny_model()
    add_random_adapter(model)
    weights = train_only(model, ADAPTER, range(LAYERS))

    def step(number: int) -> float:
        clock[0] += seconds_a_step
        weights[0].sum().backward()
        return 1.0

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(loop, "save_checkpoint", lambda *args: saved.append(args[-1].step))
    Loop(GivenStage(model, weights, step, steps=steps), path).run()
    return saved


@pytest.mark.parametrize(
    ("seconds", "steps", "saved"),
    [(1.0, 400, [180, 360]), (60.0, 10, [3, 6, 9]), (500.0, 4, [1, 2, 3]), (0.01, 2500, [])],
)
def test_checkpoints_come_by_time(
    tiny_model: Callable[..., Model],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    steps: int,
    saved: list[int],
) -> None:
    """Every three minutes, however long a step takes: an hour of an 8B run writes 14 GB and not 200. None at the end,
    where the adapter itself is saved."""
    assert steps_saved(tiny_model, tmp_path / "stage1.pt", monkeypatch, seconds, steps) == saved


@pytest.mark.parametrize("precision", [torch.float16, torch.float32])
def test_a_checkpoint_holds_all_that_a_step_depends_on(
    tiny_model: Callable[..., Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: torch.dtype
) -> None:
    """Interrupted and continued with a model loaded anew, every step sees the gradient scale and the size of passes
    that an undisturbed run has, and the weights end bit for bit the same."""
    failing = {2: 2}  # step: how often memory runs out in it

    def train(path: Path | None, stop_at: int | None) -> tuple[list[tuple[int, float, int]], dict[str, torch.Tensor]]:
        model = tiny_model(precision=precision)
        add_random_adapter(model)
        model.tokens_per_pass = 512
        weights = train_only(model, ADAPTER, range(LAYERS))
        failures, seen = dict(failing), []

        def step(number: int) -> float:
            if number == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            if failures.get(number):
                failures[number] -= 1
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.append((number, model.gradient_scale, model.tokens_per_pass))
            size = 4.0 if number == 3 else 1e-3  # at the first scales more than float16 holds
            for i, weight in enumerate(weights):
                weight.grad = (torch.full_like(weight, size * (1 + i)) * model.gradient_scale).to(precision).float()
            return 1.0

        with contextlib.suppress(KeyboardInterrupt):
            Loop(GivenStage(model, weights, step, steps=8), path).run()
        return seen, adapter_weights(model, ADAPTER)

    expected, weights = train(None, None)
    path = tmp_path / "stage1.pt"
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)  # whatever started the tests
    before, _ = train(path, 4)
    after, continued = train(path, None)
    assert before + after == expected
    assert {tokens for _, _, tokens in after} == {256}
    assert (after[0][1] < expected[0][1]) == (precision == torch.float16)
    assert all(torch.equal(continued[key], weights[key]) for key in weights)
