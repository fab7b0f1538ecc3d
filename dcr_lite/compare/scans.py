"""SCANS: add a refusal vector to middle layers for prompts that read as toxic, subtract it for others. Training-free.

Cao, Yang, Zhao, "SCANS: Mitigating the Exaggerated Safety for LLMs via Safety-Conscious Activation Steering", AAAI
2025, arXiv 2408.11491; their code: github.com/zouyingcao/SCANS.

- The vector of a layer is the unit difference of the mean last-token states of toxic and plain prompts.
- A prompt is classified by a transition: its last state minus the state that follows once the answer begins with
  "Sure". It counts as toxic where the mean cosine with the mean transition of toxic prompts, over the steered layers
  and all above, reaches a threshold.
- The middle layers add (toxic) or subtract (otherwise) the vector from the prompt's last token on.

    scans = fit(model, training, validation)
    with scans.steering(model):
        answer(model, rows, max_new_tokens=40)

Their threshold (0.75) and strength (3.5) are those of Llama-2-7b; here both are chosen on validation prompts, and the
strength is counted in the spread of a layer's states, since models differ in the size of theirs.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from sklearn.metrics import roc_curve
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from dcr_lite.compare.directions import Kinds, apart, spread, steering
from dcr_lite.model.hidden_states import depth
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states

OPENING = "Sure"  # the complying word whose transition is taken
MIDDLE = (10 / 32, 20 / 32)  # of the depth: layers 10 to 19 of Llama-2-7b's 32
STRENGTHS = (0.125, 0.25, 0.5, 1.0)  # in units of the states' spread; fit takes the best of them


@dataclass(frozen=True)
class Scans:
    """A fitted steering.

    vectors: (layers, d_model), of one unit of strength; zero outside the middle layers.
    reference: (layers, d_model), the mean transition of toxic prompts.
    threshold: the mean cosine from which on a prompt counts as toxic.
    strength: in units of the spread of each layer's states.
    """

    vectors: Tensor
    reference: Tensor
    threshold: float
    strength: float

    @property
    def steered(self) -> list[int]:
        """The layers that add or subtract their vector."""
        return self.vectors.abs().sum(-1).nonzero()[:, 0].tolist()

    def cosines(self, model: Model, rows: list[list[int]]) -> Tensor:
        """The mean cosine of each prompt's transitions with the reference, (rows,), from -1 to 1."""
        first = self.steered[0]
        transitions = _transitions(model, rows)[first:]
        return cosine_similarity(transitions, self.reference[first:, None], dim=-1).mean(0)

    def steering(self, model: Model) -> AbstractContextManager[None]:
        """Within the block the model's answers are steered."""

        def added(rows: list[list[int]]) -> dict[int, Tensor]:
            sign = torch.where(self.cosines(model, rows) >= self.threshold, 1.0, -1.0) * self.strength
            return {i: (sign[:, None] * self.vectors[i]).to(model.device) for i in self.steered}

        return steering(model, added)


def _transitions(model: Model, rows: list[list[int]]) -> Tensor:
    """Last states of the prompts minus those behind OPENING: (layers, rows, d_model)."""
    opening = list(model.tokenizer(OPENING, add_special_tokens=False)["input_ids"])
    states = last_states(model, [row + opening for row in rows], len(opening) + 1)
    return states[:, :, 0] - states[:, :, -1]


def _between(cosines: Tensor, cut: float) -> float:
    """Half way between ``cut``, the lowest of the cosines that count as toxic, and the next one below, so that rounding
    cannot decide."""
    below = cosines[cosines < cut]
    return (cut + float(below.max())) / 2 if len(below) else cut


def fit(model: Model, training: Kinds, validation: Kinds) -> Scans:
    """For the model as it stands: vectors and reference from training prompts; the threshold that tells toxic from
    seemingly toxic validation prompts best, and the strength that sets their refusal probabilities furthest apart."""
    toxic, plain = (last_states(model, rows)[:, :, 0] for rows in (training.toxic, training.plain))
    both = torch.cat([toxic, plain], 1)
    vectors = normalize(toxic.mean(1) - plain.mean(1), dim=-1) * spread(both)[:, None]
    first, stop = (round(share * depth(model.network)) for share in MIDDLE)
    vectors[:first] = 0
    vectors[max(stop, first + 1) :] = 0
    scans = Scans(vectors, _transitions(model, training.toxic).mean(1), 0.0, 0.0)

    n = len(validation.toxic)
    rows = [*validation.toxic, *validation.seemingly_toxic]
    cosines = scans.cosines(model, rows)
    fallout, hits, thresholds = roc_curve([1] * n + [0] * (len(rows) - n), cosines.numpy())
    scans = replace(scans, threshold=_between(cosines, float(thresholds[(hits - fallout).argmax()])))

    def of(candidate: Scans) -> float:
        with candidate.steering(model):
            return apart(model, validation)

    return max((replace(scans, strength=strength) for strength in STRENGTHS), key=of)
