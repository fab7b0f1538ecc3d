"""Claims about SCANS: what it reads, how it steers answers, and how its settings are chosen."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import LAYERS, OPENINGS, assert_close, full_states, random_kinds, random_rows
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.compare import scans
from dcr_lite.compare.directions import refusal_log_odds
from dcr_lite.model.generation import answer
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states
from dcr_lite.model.streaming import Growing, GrowingTogether

MakeModel = Callable[..., Model]
MakeReference = Callable[..., Any]
Rows = list[list[int]]
NEW = 12


def steered_alone(plain: Any, row: list[int], vectors: dict[int, Tensor], new: int, ends: set[int]) -> list[int]:
    """Greedy tokens of one prompt by whole forward passes, with the vectors added from its last token on."""
    tokens: list[int] = []

    def adds(vector: Tensor) -> Any:
        def hook(_module: Any, _inputs: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output).clone()
            states[:, len(row) - 1 :] += vector
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    handles = [plain.model.layers[i].register_forward_hook(adds(vector)) for i, vector in vectors.items()]
    for _ in range(new):
        logits = plain(input_ids=torch.tensor([row + tokens]), use_cache=False).logits[0, -1]
        if int(logits.argmax()) in ends:
            break
        tokens.append(int(logits.argmax()))
    for handle in handles:
        handle.remove()
    return tokens


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3"])
def test_steered_answers_are_those_of_prompts_alone(
    tiny_model: MakeModel, reference: MakeReference, architecture: str
) -> None:
    """In a batch each prompt is steered its own way, from its last token on, also where others end before it."""
    model, plain = tiny_model(architecture), reference(architecture)
    model.openings = OPENINGS
    rows = random_rows([5, 1, 9, 5, 30, 2], shared=11)
    generator = torch.Generator().manual_seed(1)
    vectors = {1: torch.randn(64, generator=generator), 2: torch.randn(64, generator=generator)}
    signs = {tuple(row): 1.0 if i % 2 else -1.0 for i, row in enumerate(rows)}

    def steering(batch: Rows) -> dict[int, Tensor]:
        sign = torch.tensor([signs[tuple(row)] for row in batch])
        return {i: sign[:, None] * vector for i, vector in vectors.items()}

    def expected(steered: bool) -> list[str]:
        texts = []
        for row in rows:
            own = {i: signs[tuple(row)] * vector for i, vector in vectors.items()} if steered else {}
            tokens = steered_alone(plain, row, own, NEW, {model.tokenizer.eos_token_id})
            texts.append(model.tokenizer.decode(tokens, skip_special_tokens=True).strip())
        return texts

    model.steering = steering
    steered, unsteered = expected(steered=True), expected(steered=False)
    assert [a.text for a in answer(model, rows, NEW)] == steered != unsteered
    growing = [Growing(rows[2], NEW), Growing(rows[1], NEW)]
    together = GrowingTogether(model, growing[:1])
    together.step()
    together.join(GrowingTogether(model, growing[1:]))
    for _ in range(NEW):
        together.step()
    for one, row in zip(growing, (rows[2], rows[1]), strict=True):
        (alone,) = answer(model, [row], NEW)
        assert one.refusal_log_odds == pytest.approx(alone.refusal_log_odds, abs=1e-3)
        assert tuple(one.ids) == alone.ids
    model.steering = None
    assert [a.text for a in answer(model, rows, NEW)] == unsteered


def test_scans_reads_transitions_and_steers_by_them(tiny_model: MakeModel, reference: MakeReference) -> None:
    """Vectors, reference and cosines by plain loops over single prompts; the sign of steering follows the threshold."""
    model, plain = tiny_model(), reference()
    training, validation = random_kinds(0), random_kinds(1)
    found = replace(scans.fit(model, training, validation), strength=0.5)
    first, stop = 1, 2  # 10/32 and 20/32 of four layers
    assert found.steered == list(range(first, stop))

    def mean_state(rows: Rows) -> Tensor:
        return torch.stack([full_states(plain, row, first)[-1] for row in rows]).mean(0)

    direction = normalize(mean_state(training.toxic) - mean_state(training.plain), dim=0)
    assert_close(normalize(found.vectors[first], dim=0), direction, 1e-4)
    states = torch.stack([full_states(plain, row, first)[-1] for row in [*training.toxic, *training.plain]])
    spread = (states - states.mean(0)).square().sum(-1).mean().sqrt()
    assert float(found.vectors[first].norm()) == pytest.approx(float(spread), rel=1e-4)

    sure = model.tokenizer("Sure", add_special_tokens=False)["input_ids"]

    def transition(row: list[int], layer: int) -> Tensor:
        whole = full_states(plain, row + sure, layer)
        return whole[len(row) - 1] - whole[-1]

    for layer in range(first, LAYERS - 1):
        expected = torch.stack([transition(row, layer) for row in training.toxic]).mean(0)
        assert_close(found.reference[layer], expected, 1e-4)
    last = last_states(model, [row + sure for row in validation.toxic], len(sure) + 1)
    cosines = torch.stack(
        [
            torch.cosine_similarity(last[layer, :, 0] - last[layer, :, -1], found.reference[layer][None], dim=-1)
            for layer in range(first, LAYERS)
        ]
    ).mean(0)
    assert_close(found.cosines(model, validation.toxic), cosines)

    rows = [*validation.toxic, *validation.seemingly_toxic]
    with found.steering(model):
        assert model.steering is not None
        added = model.steering(rows)
    assert model.steering is None
    for sign, cosine in zip(added[first] @ found.vectors[first], found.cosines(model, rows), strict=True):
        assert (sign > 0) == (cosine >= found.threshold)
        assert abs(float(sign)) == pytest.approx(0.5 * float(found.vectors[first].square().sum()), rel=1e-4)


def test_scans_threshold_and_strength_are_the_best_on_validation_prompts(
    tiny_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other threshold tells the validation kinds apart better; no other strength of the list sets the refusal
    probabilities further apart."""
    # A random model hardly opens with a whole refusal: single letters give probabilities to tell apart.
    monkeypatch.setattr("dcr_lite.model.loading.REFUSING_OPENINGS", tuple("ISTWabcdefg"))
    model, training, validation = tiny_model(), random_kinds(0), random_kinds(2)
    found = scans.fit(model, training, validation)
    toxic, sounding = (found.cosines(model, rows) for rows in (validation.toxic, validation.seemingly_toxic))

    def hits_less_fallout(threshold: float) -> float:
        return float((toxic >= threshold).float().mean() - (sounding >= threshold).float().mean())

    everywhere = [hits_less_fallout(float(t)) for t in torch.cat([toxic, sounding])]
    assert hits_less_fallout(found.threshold) == pytest.approx(max(everywhere))
    assert max(everywhere) > 0

    def apart(strength: float) -> float:
        with replace(found, strength=strength).steering(model):
            of = [refusal_log_odds(model, rows).sigmoid() for rows in (validation.toxic, validation.seemingly_toxic)]
        return float(of[0].mean() - of[1].mean())

    assert found.strength == max(scans.STRENGTHS, key=apart)
    assert len({round(apart(s), 6) for s in scans.STRENGTHS}) > 1
