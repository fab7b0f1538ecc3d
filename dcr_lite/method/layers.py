"""At which layer toxic and seemingly toxic prompts can be told apart, and which of them are worth training."""

from torch import Tensor

from dcr_lite.measure.metrics import auroc
from dcr_lite.method.geometry import Centre, Geometry
from dcr_lite.method.read_out import reads_as_toxic, separation
from dcr_lite.model.loading import Model
from dcr_lite.model.states import last_states


def layer_geometries(stock_states: Tensor, centre: Centre, whiten: bool) -> list[Geometry]:
    """The stock model's geometry at every layer, from its states of training pairs (layers, prompts, d_model)."""
    return [Geometry.fit(states, centre, whiten) for states in stock_states]


def layer_separations(
    model: Model, geometries: list[Geometry], reference: list[list[int]], unseen: list[list[int]]
) -> list[float]:
    """AUROC of unseen pairs at every layer of the model as it stands, as stage 1 evaluates its development pairs."""
    seen, new = (last_states(model, rows)[:, :, 0] for rows in (reference, unseen))
    return [separation(geometry, *states) for geometry, *states in zip(geometries, seen, new, strict=True)]


def crossed_separation(states: Tensor, folds: Tensor, centre: Centre, whiten: bool) -> float:
    """AUROC of toxic against seemingly toxic states of pairs (2 * pairs, d_model; toxic sides first), each read by the
    geometry and the means of the pairs outside its fold (pairs,): every pair is unseen, and every one counts."""
    toxicity = states.new_empty(len(states))
    of_states = folds.to(states.device).repeat(2)
    for fold in folds.unique():
        within = of_states == fold
        others = states[~within]
        toxicity[within] = reads_as_toxic(Geometry.fit(others, centre, whiten), others, states[within])
    scores = toxicity.tolist()
    return auroc(scores[: len(folds)], scores[len(folds) :])


def auroc_error(area: float, n: int) -> float:
    """Standard error of an AUROC, the area, from n prompts of each kind (Hanley and McNeil, 1982)."""
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = (area * (1 - area) + (n - 1) * (q1 + q2 - 2 * area**2)) / n**2
    return float(max(variance, 0.0) ** 0.5)


def suggested_layer(separations: dict[int, float], n: int) -> int:
    """The lowest layer within one standard error of the best one, from the AUROC of the stock model's ``n`` unseen
    pairs by layer: a lower one trains faster and leaves more of the model to act on what is separated."""
    best = max(separations.values())
    return min(layer for layer, value in separations.items() if value >= best - auroc_error(best, n))
