"""Claims about a model's own voice: the two distances are those of transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_models import ADAPTER, add_random_adapter, random_rows

from dcr_lite.measure.voice import nearness
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model

ROWS = list(zip(random_rows([5, 1, 9], shared=7), random_rows([4, 30, 1], seed=1), strict=True))


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_distances_are_those_of_whole_logits(
    architecture: str, tiny_model: Callable[..., Model], reference: Callable[..., Any]
) -> None:
    """Log-probabilities and the divergence per token equal those from transformers' logits of each row alone, over all
    tokens of all answers alike; the adapter that was active still is."""
    model, plain = tiny_model(architecture), reference(architecture)
    add_random_adapter(model)
    found = nearness(model, [*ROWS, (ROWS[0][0], [])])
    sums, n = torch.zeros(3), sum(len(answer) for _, answer in ROWS)
    for prompt, answer in ROWS:
        ids = torch.tensor([prompt + answer])
        with torch.no_grad():
            q, p = (
                network(input_ids=ids, use_cache=False).logits[0].float().log_softmax(-1)[len(prompt) - 1 : -1]
                for network in (model.network, plain)
            )
        said = [log_p.gather(1, torch.tensor(answer)[:, None]).sum() for log_p in (q, p)]
        sums += torch.stack([*said, (p.exp() * (p - q)).sum()])
    expected = (sums / n).tolist()
    assert list(vars(found).values()) == pytest.approx(expected, rel=1e-4)
    assert found.divergence > 0.01  # a guard: the adapter does something
    assert model.network.active_adapters == [ADAPTER]
    with adapters.stock(model):
        own = nearness(model, ROWS)
    assert own.divergence == pytest.approx(0, abs=1e-5)
    assert own.log_probability == own.stock_log_probability


def test_no_answer_is_an_error(tiny_model: Callable[..., Model]) -> None:
    with pytest.raises(ValueError, match="no answer"):
        nearness(tiny_model(), [([3, 4], [])])
