"""Memory that runs out during training, simulated: for a moment, now and then, for good. A run ends in all but the last
case, and then says what to do."""

from collections.abc import Callable

import pytest
import torch
from small_runs import flags, run_here, save_rows
from tiny_models import ADAPTER, LAYERS, GivenStage, add_random_adapter, losses_of

from dcr_lite.errors import UserError, out_of_memory
from dcr_lite.method.loop import Loop
from dcr_lite.method.pass_size import CLEAN_STEPS
from dcr_lite.model.adapters import train_only
from dcr_lite.model.loading import Model, memory_may_run_out

MakeModel = Callable[..., Model]
Fails = Callable[[int, int], bool]  # (number of the attempt, tokens of its passes) -> whether memory runs out in it


def attempts(tiny_model: MakeModel, fails: Fails, steps: int, planned: int = 1024) -> tuple[list[int], list[float]]:
    """The tokens per pass of each attempt at a step, and the losses, of a stage planned for so many tokens at once."""
    model = tiny_model()
    add_random_adapter(model)
    model.tokens_per_pass = planned
    weights = train_only(model, ADAPTER, range(LAYERS))
    tried: list[int] = []

    def step(number: int) -> float:
        tried.append(model.tokens_per_pass)
        (weights[0].sum() * 0.1).backward()
        if fails(len(tried) - 1, model.tokens_per_pass):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return float(number)

    return tried, losses_of(Loop(GivenStage(model, weights, step, steps=steps)).run().metrics)


def test_a_moment_without_memory_costs_one_repeated_step(tiny_model: MakeModel) -> None:
    """Once emptied, the cache suffices: nothing is lowered, however many such moments there are."""
    tried, losses = attempts(tiny_model, lambda n, tokens: n % 4 == 1, steps=60)
    assert set(tried) == {1024}
    assert losses == [float(i) for i in range(60)]
    assert len(tried) > 75


@pytest.mark.parametrize("planned", [1024, 1025])
def test_passes_that_are_too_large_are_halved_and_grow_back(tiny_model: MakeModel, planned: int) -> None:
    """Another program takes the memory for a while: half as much goes through, and after clean steps all again, and no
    more than was planned, where twice the half is not the whole."""
    tried, losses = attempts(tiny_model, lambda n, tokens: 5 <= n < 20 and tokens > 512, 60, planned)
    assert tried[5:8] == [planned, planned, 512]
    assert tried[8 : 7 + CLEAN_STEPS] == [512] * (CLEAN_STEPS - 1)
    assert tried[-1] == max(tried) == planned
    assert len(losses) == 60


def test_growing_back_too_early_is_tried_ever_more_rarely(tiny_model: MakeModel) -> None:
    """Where memory never suffices for the planned passes, a run of 2,000 steps tries them a few times and ends."""
    tried, losses = attempts(tiny_model, lambda n, tokens: tokens > 256, steps=2000)
    assert len(losses) == 2000
    assert tried.count(1024) == 2
    assert 2 < tried.count(512) <= 2 * 8  # a step fails twice before its passes are halved
    assert len(tried) < 2030


def test_memory_that_never_suffices_ends_with_the_cure(tiny_model: MakeModel) -> None:
    """Not even one row at a time: the message says what to do."""
    with pytest.raises(UserError, match=r"stage1: memory runs out even with one row at a time.*--rank.*--plan"):
        attempts(tiny_model, lambda n, tokens: True, steps=3)


@pytest.mark.parametrize("seed", range(4))
def test_moments_at_random_do_not_end_a_run(tiny_model: MakeModel, seed: int) -> None:
    """One attempt in ten fails, at random: every step is taken, and full size comes back each time."""
    drawn = torch.rand(1000, generator=torch.Generator().manual_seed(seed)) < 0.1
    tried, losses = attempts(tiny_model, lambda n, tokens: bool(drawn[n]), steps=300)
    assert len(losses) == 300
    assert tried.count(1024) > 0.4 * len(tried)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("std::bad_alloc"),
        torch.AcceleratorError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GB, other allocations: 1.00 MB)"),
        MemoryError(),
    ],
)
def test_every_device_s_error_is_known(error: Exception) -> None:
    """Of a card, of a CPU and of Python; other errors stay what they are."""
    assert out_of_memory(error)
    with pytest.raises(torch.OutOfMemoryError), memory_may_run_out():
        raise error
    with pytest.raises(RuntimeError, match="other"), memory_may_run_out():
        raise RuntimeError("other")
    assert not out_of_memory(ValueError("bad_alloc"))


def test_memory_that_runs_out_elsewhere_is_one_sentence(
    tiny_folder: Callable[..., object], tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outside the passes too, in a decomposition for example, there is no traceback."""

    def fail(*args: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    from dcr_lite.method import geometry

    monkeypatch.setattr(geometry.Geometry, "fit", fail)
    done = run_here(flags(tiny_folder("llama"), save_rows(tmp_path / "rows"), tmp_path / "run"))  # type: ignore[operator,arg-type]
    assert done.code == 1
    assert "error: memory runs out. Close other programs" in done.err
    assert "Then go on with --resume." in done.err
