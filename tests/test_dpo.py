"""Claims about DPO on tiny models: its loss and gradients are those of the plain formula, and what is kept is what the
development prompts choose among weights under which no preferred answer is lost."""

import contextlib
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recipe_runs import same, small_settings
from tiny_models import ADAPTER, LAYERS, add_random_adapter, losses_of, random_kinds
from torch import Tensor

from dcr_lite.compare import dpo
from dcr_lite.compare.directions import apart, refusal_log_odds
from dcr_lite.compare.dpo import DPO, batches, margins, preference_loss, shares
from dcr_lite.compare.preferences import Preference, Said
from dcr_lite.files import load_jsonl
from dcr_lite.method.loop import Loop
from dcr_lite.model import answer_tokens
from dcr_lite.model.adapters import adapter_weights, set_adapter_weights
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.loading import Model
from dcr_lite.names import BASELINE
from dcr_lite.run import steps
from dcr_lite.run.run_folder import RunFolder

MakeModel = Callable[..., Model]
THINGS = ("lamp", "bird", "clock", "letter", "horse", "bridge", "cake", "road")


def preferences(n: int = len(THINGS)) -> list[Preference]:
    """Of ``n`` pairs of prompts, with answers of different lengths, some of which were cut off."""
    found = []
    for pair, thing in enumerate(THINGS[:n]):
        short, long = Said(f"no {thing}", True), Said(f"a {thing} is a thing " + "and so on " * pair, pair % 2 == 0)
        found.append(Preference(f"what is a {thing}?", True, pair, short, long))
        found.append(Preference(f"why {thing}?", False, pair, long, short))
    return found


def stage_of(model: Model, rows: list[Preference] | None = None, **changes: Any) -> DPO:
    """DPO of a random adapter, which stands for safety SFT's."""
    if ADAPTER not in getattr(model.network, "peft_config", {}):
        add_random_adapter(model)
    values = {"share": 0.5, "learning_rate": 1e-2, "seed": 0, "evaluate": lambda: 0.0}
    return DPO("dpo", model, ADAPTER, rows or preferences(), **(values | changes))


def move(model: Model, seed: int = 5) -> None:
    """Set the adapter to other weights than those it had as the reference."""
    generator = torch.Generator().manual_seed(seed)
    weights = adapter_weights(model, ADAPTER)
    drawn = {name: value + 0.05 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    set_adapter_weights(model, ADAPTER, drawn)


def gradients(model: Model) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.network.named_parameters() if p.grad is not None}


# --- the formula ------------------------------------------------------------------------------------------------------


def plain_loss(sums: list[list[Any]], reference: list[list[float]], lengths: list[int], weights: list[float]) -> Any:
    """The mean loss of preferences in plain loops, from [log p(y+), log p(y-)] of each."""
    total: Any = 0.0
    for (chosen, rejected), (chosen_before, rejected_before), n, weight in zip(
        sums, reference, lengths, weights, strict=True
    ):
        m = (chosen - rejected) - (chosen_before - rejected_before)
        likelihood = 1 / (1 + (math.exp if isinstance(m, float) else torch.exp)(-dpo.BETA * m))
        of_preference = -(math.log if isinstance(m, float) else torch.log)(likelihood)
        total = total + weight * (of_preference + dpo.GAMMA * (-chosen / n))
    return total / len(sums)


LOG_P = st.floats(-80, 0, width=32)
ROWS = st.lists(st.tuples(LOG_P, LOG_P, LOG_P, LOG_P, st.integers(1, 40)), min_size=1, max_size=6)


@given(rows=ROWS)
def test_the_loss_is_the_plain_formula(rows: list[tuple[float, float, float, float, int]]) -> None:
    """For all log-probabilities; swapping the answers negates m."""
    sums, reference = torch.tensor([row[:2] for row in rows]), torch.tensor([row[2:4] for row in rows])
    lengths = [row[4] for row in rows]
    found = preference_loss(sums, reference, torch.tensor(lengths), dpo.BETA, dpo.GAMMA).mean()
    expected = plain_loss([list(r[:2]) for r in rows], [list(r[2:4]) for r in rows], lengths, [1.0] * len(rows))
    assert float(found) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.equal(margins(sums.flip(1), reference.flip(1)), -margins(sums, reference))


def test_extreme_margins_stay_finite() -> None:
    """A preference that is settled costs nothing, one that is hopeless costs beta times its margin."""
    sums = torch.tensor([[0.0, -1e4], [-1e4, 0.0]], requires_grad=True)
    loss = preference_loss(sums, torch.zeros(2, 2), torch.ones(2), dpo.BETA, 0.0)
    assert loss.tolist() == pytest.approx([0.0, 1e3])
    loss.sum().backward()
    assert sums.grad is not None
    assert sums.grad[1].tolist() == pytest.approx([-dpo.BETA, dpo.BETA])


@given(
    toxic=st.lists(st.booleans(), min_size=1, max_size=30).map(torch.tensor), share=st.sampled_from((0.25, 0.5, 0.75))
)
def test_toxic_preferences_have_their_share(toxic: Tensor, share: float) -> None:
    """Whatever their number; each of a kind counts alike, 1 on average; a kind that stands alone has all of it."""
    weights = shares(toxic, share)
    assert float(weights.mean()) == pytest.approx(1, abs=1e-5)
    if 0 < int(toxic.sum()) < len(toxic):
        assert float(weights[toxic].sum() / weights.sum()) == pytest.approx(share, abs=1e-5)
        assert len(set(weights[toxic].tolist())) == len(set(weights[~toxic].tolist())) == 1
    else:
        assert weights.tolist() == pytest.approx([1.0] * len(toxic))


@given(sides=st.lists(st.sampled_from(("both", "toxic", "other")), min_size=4, max_size=20), seed=st.integers(0, 99))
def test_both_sides_of_a_pair_share_a_batch(sides: list[str], seed: int) -> None:
    """In one pass every preference comes once, but that the last batch is filled up; a pair is never parted."""
    rows = []
    for pair, side in enumerate(sides):
        for toxic in {"both": (True, False), "toxic": (True,), "other": (False,)}[side]:
            rows.append(Preference("", toxic, pair, Said("", True), Said("", True)))
    found = batches(rows, seed)
    assert len(found) == -(-len(sides) // (dpo.BATCH // 2))
    assert {i for batch in found for i in batch} == set(range(len(rows)))
    for batch in found:
        pairs = {rows[i].pair for i in batch}
        assert sorted(batch) == [i for i, row in enumerate(rows) if row.pair in pairs]
    for batch in found[:-1]:
        assert not set(batch) & {i for other in found if other is not batch and other is not found[-1] for i in other}


# --- the gradient -----------------------------------------------------------------------------------------------------


def plain_sums(model: Model, stage: DPO, chosen: list[int]) -> list[list[Tensor]]:
    """[log p(y+), log p(y-)] of preferences, one row at a time through transformers' own full forward pass."""
    found = []
    for i in chosen:
        both = []
        for row in (stage.rows[2 * i], stage.rows[2 * i + 1]):
            logits = model.network(input_ids=torch.tensor([row.ids]), use_cache=False).logits[0].float()
            log_p = logits.log_softmax(-1)
            places = range(len(row.prompt) - 1, len(row.ids) - 1)
            both.append(sum(log_p[place, row.ids[place + 1]] for place in places))
        found.append(both)
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2"])
@pytest.mark.parametrize("small_passes", [False, True])
def test_a_step_is_the_plain_formula(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch, architecture: str, small_passes: bool
) -> None:
    """Loss and adapter gradients are autograd's of the formula on whole rows one by one, against a reference that was
    read before the adapter moved; in one pass or several, with shares that differ."""
    model = tiny_model(architecture)
    stage = stage_of(model, share=0.25)
    batch = stage.batches[0]
    with torch.no_grad():
        reference = [[float(x) for x in both] for both in plain_sums(model, stage, batch)]
    move(model)
    if small_passes:
        model.tokens_per_pass = 150
        monkeypatch.setattr(answer_tokens, "LOGITS_PER_PASS", 7)
    loss, ours = stage.step(0), gradients(model)
    model.network.zero_grad()
    sums = plain_sums(model, stage, batch)
    assert max(abs(float(s - r)) for a, b in zip(sums, reference, strict=True) for s, r in zip(a, b, strict=True)) > 0.5
    lengths = [len(stage.rows[2 * i].answer) for i in batch]
    weights = [1.5 if i % 2 else 0.5 for i in batch]  # toxic ones are even, and have a quarter of the loss
    plain = plain_loss(sums, reference, lengths, weights)
    plain.backward()
    assert loss == pytest.approx(float(plain), rel=1e-4)
    theirs = gradients(model)
    assert ours.keys() == theirs.keys()
    assert len(ours) == 2 * 7 * LAYERS
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=2e-5, msg=name)


def test_small_passes_hold_whole_preferences(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both rows of a preference go through together, and no more than safety SFT has memory for where they fit."""
    model = tiny_model()
    stage = stage_of(model)
    model.tokens_per_pass = 150
    seen: list[int] = []
    batch_of = Model.batch

    def counting(self: Model, rows: list[list[int]], prefix: int | None = None) -> Any:
        seen.append(len(rows))
        batch = batch_of(self, rows, prefix)
        assert batch.inputs["input_ids"].numel() <= 160  # rounded up to one of few lengths
        return batch

    monkeypatch.setattr(Model, "batch", counting)
    stage.step(0)
    assert len(seen) > 1
    assert sum(seen) == 2 * len(stage.batches[0])
    assert all(n % 2 == 0 for n in seen)


def test_before_the_first_step_nothing_has_changed(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the cross-entropy the loss is ln 2 of every preference; prompts have the refusal log-odds of safety SFT,
    and neither the reference nor an observation has moved a weight."""
    monkeypatch.setattr(dpo, "GAMMA", 0.0)
    model = tiny_model()
    before = add_random_adapter(model)
    prompts = encode_prompts(model.tokenizer, [f"what is a {thing}?" for thing in THINGS], model.window)
    odds = refusal_log_odds(model, prompts)
    stage = stage_of(model)
    stage.observe(0)
    assert torch.equal(refusal_log_odds(model, prompts), odds)
    assert same(adapter_weights(model, ADAPTER), before)
    for number in range(stage.steps):
        assert stage.step(number) == pytest.approx(math.log(2), abs=1e-5)
    everything = torch.arange(len(stage.reference))
    losses = preference_loss(stage.sums(everything), stage.reference, stage.lengths[:, 0], dpo.BETA, 0.0)
    assert losses.tolist() == pytest.approx([math.log(2)] * len(losses), abs=1e-5)


def test_swapped_answers_negate_the_margin(tiny_model: MakeModel) -> None:
    """Of every preference, on the model."""
    model = tiny_model()
    stage = stage_of(model)
    swapped = stage_of(model, [replace(one, chosen=one.rejected, rejected=one.chosen) for one in preferences()])
    everything = torch.arange(len(stage.reference))
    move(model)
    m, back = (margins(some.sums(everything), some.reference) for some in (stage, swapped))
    assert m.abs().min() > 1e-3
    torch.testing.assert_close(back, -m, rtol=1e-4, atol=1e-4)


def test_without_beta_there_is_no_gradient(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """beta = 0 leaves the cross-entropy's gradient alone, and none without that."""
    monkeypatch.setattr(dpo, "BETA", 0.0)
    model = tiny_model()
    stage = stage_of(model)
    move(model)
    stage.step(0)
    assert max(float(g.abs().max()) for g in gradients(model).values()) > 1e-4
    model.network.zero_grad()
    monkeypatch.setattr(dpo, "GAMMA", 0.0)
    stage.step(0)
    assert all(not g.any() for g in gradients(model).values())


@pytest.mark.parametrize("four_bit", [False, True])
def test_one_preference_can_be_learnt(tiny_model: MakeModel, four_bit: bool) -> None:
    """Trained on alone its margin rises, and the preferred answer becomes likelier; in 4 bits too."""
    model = tiny_model(four_bit=four_bit)
    stage = stage_of(model, learning_rate=2e-3)
    stage.batches = [[3]] * 12
    stage.steps = len(stage.batches)
    Loop(stage).run()
    after = stage.sums(torch.tensor([3]))
    assert float(margins(after, stage.reference[[3]])) > 1
    assert float(after[0, 0]) > float(stage.reference[3, 0])


def test_float16_learns_as_float32_does(tiny_model: MakeModel) -> None:
    """Losses to 3 per cent, with gradients multiplied by the scale and divided again."""
    half, single = (
        losses_of(Loop(stage_of(tiny_model(precision=precision), learning_rate=2e-3)).run().metrics)
        for precision in (torch.float16, torch.float32)
    )
    assert half == pytest.approx(single, rel=0.03)


# --- the training -----------------------------------------------------------------------------------------------------


def test_observations_tell_both_answers_of_both_kinds(tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean log-probability of a token of y+ and of y-, by kind of prompt, of the preferences watched alone."""
    monkeypatch.setattr(dpo, "WATCHED", 3)
    model = tiny_model()
    stage = stage_of(model)
    move(model)
    seen = stage.observe(1)
    for label, chosen in (("toxic", [0, 2, 4]), ("seemingly_toxic", [1, 3, 5])):
        with torch.no_grad():
            sums = plain_sums(model, stage, chosen)
        for side, name in enumerate(("chosen", "rejected")):
            of_token = [
                float(both[side]) / len(stage.rows[2 * i + side].answer) for i, both in zip(chosen, sums, strict=True)
            ]
            assert seen[f"{name}_{label}"] == pytest.approx(sum(of_token) / 3, rel=1e-4)


@pytest.fixture
def trained(tiny_model: MakeModel) -> Callable[..., Any]:
    """trained(values, falls) -> of a training whose observations find development prompts so far apart, and a token of
    y+ of toxic prompts so much less probable: the weights at the observations, those that are kept, and the progress.
    """

    def train(values: list[float], falls: list[float] | None = None) -> Any:
        model = tiny_model()
        at: list[dict[str, Tensor]] = []

        def evaluate() -> float:
            at.append(adapter_weights(model, ADAPTER))
            return values[len(at) - 1]

        def sums(chosen: Tensor) -> Tensor:
            fallen = torch.zeros(len(chosen), 2)
            if falls and int(chosen[0]) % 2 == 0:  # preferences of toxic prompts
                fallen[:, 0] = falls[len(at) - 1]
            return stage.reference[chosen] - fallen * stage.lengths[chosen]

        stage = stage_of(model, learning_rate=2e-3, evaluate=evaluate)
        stage.sums = sums  # type: ignore[method-assign]
        stage.batches = stage.batches * 4  # eight steps
        stage.steps, stage.observe_every = len(stage.batches), len(stage.batches) // dpo.OBSERVATIONS
        progress = Loop(stage).run()
        assert len(at) == 1 + stage.tried == 1 + dpo.OBSERVATIONS
        return SimpleNamespace(at=at, kept=adapter_weights(model, ADAPTER), progress=progress)

    return train


def test_development_prompts_choose_how_long(trained: Callable[..., Any]) -> None:
    """The weights of the highest value along the pass are kept, and not the first ones, whatever their value."""
    found = trained([0.9, 0.1, 0.4, 0.3, 0.2])
    assert same(found.kept, found.at[2])
    assert not same(found.at[2], found.at[0])
    assert trained([0.9, -0.5, -0.6, -0.7, -0.8]).progress.best_step == 2


def test_weights_that_lose_preferred_answers_are_not_kept(trained: Callable[..., Any]) -> None:
    """Where those to either kind of prompt have lost more than a nat per token, whatever the value is; where all have,
    the weights of safety SFT stay."""
    found = trained([0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 0.99, 1.01, 3.0])
    assert same(found.kept, found.at[2])
    found = trained([0.0, 0.1, 0.2, 0.3, 0.4], [0.0, 1.1, 1.2, 1.3, 1.4])
    assert same(found.kept, found.at[0])
    assert found.progress.best_step == 0


@pytest.mark.parametrize("stopped_at", [1, 3])
def test_a_stopped_training_ends_as_an_undisturbed_one(
    tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped_at: int
) -> None:
    """Stopped and continued with a model loaded anew, with the same weights bit for bit, and the same metrics."""

    def train(path: Path | None, stop_at: int | None) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
        model = tiny_model()
        add_random_adapter(model)
        stage = stage_of(model, evaluate=lambda: apart(model, random_kinds(1, 4)))
        stage.batches = stage.batches * 2
        stage.steps = len(stage.batches)
        step = stage.step

        def interrupted(number: int) -> float:
            if number == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return step(number)

        stage.step = interrupted  # type: ignore[method-assign]
        metrics = []
        with contextlib.suppress(KeyboardInterrupt):
            metrics = Loop(stage, path).run().metrics
        return metrics, adapter_weights(model, ADAPTER)

    monkeypatch.setattr(signal, "getsignal", lambda number: signal.default_int_handler)  # whatever started the tests
    expected, weights = train(None, None)
    path = tmp_path / "dpo.pt"
    assert train(path, stopped_at)[0] == []
    metrics, resumed = train(path, None)
    assert metrics == expected
    assert same(resumed, weights)


def test_a_run_trains_it_once_and_notes_what_was_tried(
    tiny: Path, rows: Path, tmp_path: Path, tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the weights of safety SFT, at its share of the learning rate and in its memory, chosen by development
    prompts; the second time the weights come from the folder."""
    settings = small_settings(tiny, rows, tmp_path / "run", sft_learning_rate=1e-2)
    run, model = RunFolder(settings), tiny_model()
    model.tokens_in = {BASELINE: 321}
    before = add_random_adapter(model, BASELINE)
    kinds = random_kinds(1, 4)
    dpo.train(run, model, "dpo_0.5", preferences(), 0.5, kinds, settings)
    after = adapter_weights(model, BASELINE)
    assert not same(before, after)
    assert model.tokens_per_pass == 321
    note = run.finished("dpo_0.5") or {}
    tried = {row["step"]: row["apart"] for row in load_jsonl(run.metrics) if "apart" in row and row["step"]}
    assert note["numbers"] == {"tried": len(tried)}
    assert note["best"] == max(tried.values()) == apart(model, kinds)
    set_adapter_weights(model, BASELINE, before)
    monkeypatch.setattr(steps, "train", None)
    dpo.train(run, model, "dpo_0.5", preferences(), 0.5, kinds, settings)
    assert same(adapter_weights(model, BASELINE), after)
    assert not any(parameter.requires_grad for parameter in model.network.parameters())


# --- TRL --------------------------------------------------------------------------------------------------------------


def test_a_step_is_that_of_trl(tiny_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss and gradients of TRL's DPOTrainer on the same token ids, without the cross-entropy, which TRL takes over the
    tokens of a batch."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from trl.trainer.dpo_trainer import DataCollatorForPreference

    monkeypatch.setattr(dpo, "GAMMA", 0.0)
    model, reference = tiny_model(), tiny_model()
    stage = stage_of(model)
    add_random_adapter(reference)
    batch = stage.batches[0]
    move(model)
    loss, ours = stage.step(0), gradients(model)
    model.network.zero_grad()
    arguments = trl.DPOConfig(
        str(tmp_path), beta=dpo.BETA, use_cpu=True, bf16=False, report_to=[], gradient_checkpointing=False
    )
    unused = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}])
    trainer = trl.DPOTrainer(
        model.network, reference.network, arguments, train_dataset=unused, processing_class=model.tokenizer
    )
    examples = []
    for i in batch:
        chosen, rejected = stage.rows[2 * i], stage.rows[2 * i + 1]
        examples.append({"prompt_ids": chosen.prompt, "chosen_ids": chosen.answer, "rejected_ids": rejected.answer})
    inputs = DataCollatorForPreference(model.tokenizer.pad_token_id)(examples)
    theirs = trainer.compute_loss(model.network, inputs)
    theirs.backward()
    assert loss == pytest.approx(float(theirs), rel=1e-5)
    expected = gradients(model)
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
