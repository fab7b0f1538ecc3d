"""Claims about steered stock, the control of DCR's dial."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import cosine_similarity

from dcr_lite.compare import steered
from dcr_lite.compare.directions import Kinds, apart, spread
from dcr_lite.compare.directions import steered as shifted
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states

TOXIC, SEEMINGLY_TOXIC = ([[5, 6, n, last] for n in range(7, 15)] for last in (20, 30))
KINDS = Kinds(TOXIC, SEEMINGLY_TOXIC, [])


@pytest.fixture
def model(tiny_model: Callable[..., Model]) -> Model:
    """Single letters as openings: a random model hardly begins with a whole refusal."""
    found = tiny_model("llama")
    found.openings = tuple("ISTWabcdefg")
    return found


def test_the_vector_leads_from_toxic_to_seemingly_toxic(model: Model) -> None:
    """It points along the difference of the two means at the layer, and is as long as the states' spread."""
    toxic, seemingly_toxic = (layer_states(model, rows, 1) for rows in (TOXIC, SEEMINGLY_TOXIC))
    vector = steered.fit(model, KINDS, KINDS, 1).vector
    assert float(cosine_similarity(vector, seemingly_toxic.mean(0) - toxic.mean(0), dim=0)) == pytest.approx(1)
    both = torch.cat([toxic, seemingly_toxic])
    distances = (both - both.mean(0)).square().sum(-1)
    assert float(vector.norm()) == pytest.approx(float(distances.mean().sqrt())) == pytest.approx(float(spread(both)))


def test_the_strength_is_the_one_that_sets_the_kinds_furthest_apart(model: Model) -> None:
    """Of either sign; no other strength that was tried gives more."""
    found = steered.fit(model, KINDS, KINDS, 1)

    def at(strength: float) -> float:
        with shifted(model, {1: strength * found.vector}):
            return apart(model, KINDS)

    assert at(found.strength) == max(map(at, steered.STRENGTHS))
    assert len({round(at(strength), 6) for strength in steered.STRENGTHS}) == len(steered.STRENGTHS)
