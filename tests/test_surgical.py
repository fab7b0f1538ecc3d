"""Claims about Surgical ablation: where its directions come from, what it changes, which candidate is chosen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import (
    LAYERS,
    PROMPTS,
    add_random_adapter,
    assert_close,
    assert_far,
    full_states,
    random_kinds,
    random_rows,
)
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.compare import surgical
from dcr_lite.compare.directions import LEAST, refusal_log_odds, refused, shared_ending
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.model.hidden_states import decoder_of, states_at_layer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
NEW = 12
PADDED_AND_PACKED = ["llama", "gemma2", "gemma3"]


# --- states and directions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", PADDED_AND_PACKED)
def test_last_states_are_those_of_a_full_forward_pass(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """Every layer, the last three tokens, rows in the order given; also where rows share all but their ending. The
    first layers alone have the same states."""
    model, plain = tiny_model(architecture), reference(architecture)
    for rows in (random_rows([9, 4, 21, 5], shared=7), [[5, 6, 7, 8, 9], [5, 6, 7, 8, 10]]):
        states = last_states(model, rows, 3)
        assert torch.equal(last_states(model, rows, 3, layers=2), states[:2])
        assert states.shape == (LAYERS, len(rows), 3, 64)
        for layer in range(LAYERS - 1):  # of the last one transformers only gives the state behind the final norm
            for i, row in enumerate(rows):
                assert_close(states[layer, i], full_states(plain, row, layer)[-3:], 1e-4)


def test_rows_that_end_alike_share_their_ending(tiny_model: MakeModel) -> None:
    """The ending is what the chat template writes behind every prompt, and no more."""
    tokenizer = tiny_model().tokenizer
    rows = encode_prompts(tokenizer, PROMPTS, 512)
    behind = tokenizer("<|im_end|>\n<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    assert all(row[-len(behind) :] == behind for row in rows)
    assert shared_ending(encode_prompts(tokenizer, ["Name three cats.", "Hi"], 512)) == len(behind)


def test_refused_rows_are_those_with_log_odds_above_zero_or_the_most_refused() -> None:
    """Too few refused rows are filled up with the next ones; the order stays."""
    rows = [[i] for i in range(20)]
    odds = torch.tensor([float(i % 5) - 1.5 for i in range(20)])
    assert refused(rows, odds) == [[i] for i in range(20) if i % 5 > 1]
    assert refused(rows, odds, refuses=False) == [[i] for i in range(20) if i % 5 < 2]
    few = torch.arange(20.0).flip(0) - 17.0
    assert refused(rows, few) == rows[:LEAST]
    assert refused(rows[:3], few[:3] - 9) == rows[:3]


# --- Surgical --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", PADDED_AND_PACKED)
def test_ablated_stream_has_nothing_along_the_direction(tiny_model: MakeModel, architecture: str) -> None:
    """At no layer's input, nor in what attention and MLP add, behind the norms that some architectures have there;
    nor in what the last layer puts out. Behind the block the model is as before."""
    model = tiny_model(architecture)
    add_random_adapter(model)
    direction = normalize(torch.randn(64, generator=torch.Generator().manual_seed(3)), dim=0)
    batch = model.batch(random_rows([5, 9, 3], shared=4))
    seen: list[Tensor] = []
    layers = decoder_of(model.network).layers

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    before = states_at_layer(model.network, batch, LAYERS - 1)
    with torch.no_grad(), surgical.ablated(model, direction):
        handles = [m.register_forward_hook(keep) for layer in layers for m in (layer.self_attn, layer.mlp)]
        ablated = states_at_layer(model.network, batch, LAYERS - 1)
        for handle in handles:
            handle.remove()
    assert len(seen) == 2 * LAYERS
    assert max((states @ direction).abs().max().item() for states in (*seen, ablated)) < 1e-5
    assert_far(ablated, before)
    assert torch.equal(states_at_layer(model.network, batch, LAYERS - 1), before)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_ablation_equals_orthogonal_weights(tiny_model: MakeModel, reference: MakeReference, architecture: str) -> None:
    """Answers and scores are those of a model whose matrices cannot write the direction, as the paper shows."""
    direction = normalize(torch.randn(64, generator=torch.Generator().manual_seed(4)), dim=0)
    model, plain, rows = tiny_model(architecture), tiny_model(architecture), random_rows([5, 9, 3, 14], shared=4)
    weights = plain.network.model
    without = torch.eye(64) - torch.outer(direction, direction)
    weights.embed_tokens.weight.data = weights.embed_tokens.weight.data @ without
    for layer in weights.layers:
        for matrix in (layer.self_attn.o_proj, layer.mlp.down_proj):
            matrix.weight.data = without @ matrix.weight.data
    expected = answer(plain, rows, NEW)
    with surgical.ablated(model, direction):
        got = answer(model, rows, NEW)
    assert [a.text for a in got] == [a.text for a in expected]
    assert [a.refusal_log_odds for a in got] == pytest.approx([a.refusal_log_odds for a in expected], abs=1e-3)
    unablated = answer(model, rows, NEW)
    assert [a.text for a in unablated] != [a.text for a in expected]


def test_candidates_spare_the_true_refusal_direction() -> None:
    """Differences of means by plain loops; orthogonal to true refusal in full, in part, or not at all."""
    generator = torch.Generator().manual_seed(0)
    toxic, sounding, plain = (torch.randn(3, n, 2, 16, generator=generator) + n for n in (5, 7, 4))
    for share in (1.0, 0.5, 0.0):
        found = surgical.candidates(toxic, sounding, plain, share)
        for layer in range(3):
            for position in range(2):
                r = toxic[layer, :, position].mean(0) - plain[layer, :, position].mean(0)
                w = sounding[layer, :, position].mean(0) - plain[layer, :, position].mean(0)
                expected = w - share * (w @ r) / (r @ r) * r
                assert_close(found[layer, position], expected / expected.norm())
                if share == 1.0:
                    assert abs(float(found[layer, position] @ r)) < 1e-4
                else:
                    assert abs(float(found[layer, position] @ r)) > 1e-2


def test_surgical_takes_the_candidate_that_lowers_false_refusal_most(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of those that spare plain prompts; the last layers are left out. Where none spares them, the least harmful."""
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(1)
    usual = refusal_log_odds(model, validation.seemingly_toxic)
    # By what its log-odds mean ten of twelve of these are refused, and of the others some.
    validation = replace(validation, meaning=(-2 * float(usual.sort().values[:3].mean()), 2.0))
    positions = shared_ending([*training.toxic, *training.plain])
    layers = surgical.layers_tried(model)
    done: list[int] = []
    monkeypatch.setattr(surgical, "KL_LIMIT", 1e9)
    free = surgical.fit(model, training, validation, progress=done.append)
    assert done == [1] * layers
    assert free.layer < layers == 3

    above = usual > -validation.meaning[0] / 2
    sounding = [row for row, is_above in zip(validation.seemingly_toxic, above, strict=True) if is_above]
    assert 8 < len(sounding) < 12
    parts = [
        last_states(model, refused(rows, validation.meaning[0] + 2 * refusal_log_odds(model, rows), refuses), positions)
        for rows, refuses in ((training.toxic, True), (training.seemingly_toxic, True), (training.plain, False))
    ]
    odds = {}
    for layer in range(layers):
        for position in range(positions):
            with surgical.ablated(model, surgical.candidates(*parts)[layer, position]):
                odds[layer, position - positions] = float(refusal_log_odds(model, sounding).mean())
    assert (free.layer, free.position) == min(odds, key=lambda place: odds[place])
    assert free.refusal_log_odds == pytest.approx(min(odds.values()), abs=1e-5)
    assert free.refusal_log_odds < free.before

    monkeypatch.setattr(surgical, "KL_LIMIT", -1.0)
    strict = surgical.fit(model, training, validation)
    assert strict.kl <= free.kl
    assert strict.refusal_log_odds > free.refusal_log_odds
