"""Reading the state of one prompt at layer L: its similarity to the two kinds, and its place among other prompts.

Fitted at the end of a run and saved beside the adapter, so that reading a prompt needs none of the training data:
the whitening of the run's geometry, and for each model its own centre, the means of both kinds (from training pairs),
the calibration (from development pairs) and a map of the development prompts. No held-out prompt is used.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from dcr_lite.data.rows import Pair
from dcr_lite.files import damaged, load_tensors, save_tensors
from dcr_lite.measure.metrics import auroc
from dcr_lite.method.geometry import Geometry, kinds_of_pairs
from dcr_lite.method.read_out import difference_of_means

FILE = "discernment.safetensors"
CURE = "Delete it to go without similarity scores and map, or restore the run folder."
MAP_PAIRS = 80  # development pairs on the map: more would hide each other


@dataclass(frozen=True)
class Similarity:
    """How like the two kinds a prompt is.

    toxic, seemingly_toxic: calibrated, 0 to 1. Of as many development prompts of both kinds whose states lie as close
        to the mean of this kind as this one, the share that is of this kind; 0.5 says nothing.
    toxic_cosine, seemingly_toxic_cosine: the cosines with the two means that this was read from, -1 to 1.
    place: where the prompt lies on the map, (along, across); see Discernment.axes.
    """

    toxic: float
    seemingly_toxic: float
    toxic_cosine: float
    seemingly_toxic_cosine: float
    place: tuple[float, float]


@dataclass(frozen=True)
class Discernment:
    """How to read the layer-L state of a prompt for one model.

    mean: what is subtracted from a state, (d_model,). whitening: (d_model, d_model), or None.
    kinds: (2, d_model), unit vectors: the means of the toxic and of the seemingly toxic training prompts.
    calibration: (2, 2), for each kind slope and intercept of the log-odds over its cosine.
    axes: (2, d_model), the map: along the difference of the two means, and the largest variation across it.
    points: (2 * pairs, 2), the map's development prompts, all toxic sides first.
    auroc: how well the kinds of the development prompts are told apart, 0.5 is chance.
    """

    mean: Tensor
    whitening: Tensor | None
    kinds: Tensor
    calibration: Tensor
    axes: Tensor
    points: Tensor
    auroc: float

    @classmethod
    def fit(cls, geometry: Geometry, reference: Tensor, development: Tensor) -> "Discernment":
        """From a model's states (2 * pairs, d_model) of training and of development pairs, toxic sides first."""
        reading = geometry.around(reference)
        units, seen = reading(reference), reading(development)
        is_toxic = kinds_of_pairs(len(units) // 2, units.device)
        kinds = normalize(torch.stack([units[is_toxic].mean(0), units[~is_toxic].mean(0)]), dim=-1)
        direction = difference_of_means(units, is_toxic)
        across = units - (units @ direction)[:, None] * direction
        axes = torch.stack([direction, torch.linalg.svd(across - across.mean(0), full_matrices=False)[2][0]])
        n = len(seen) // 2
        shown = torch.cat([seen[: min(n, MAP_PAIRS)], seen[n : n + min(n, MAP_PAIRS)]])
        along = (seen @ direction).tolist()
        seen_toxic = kinds_of_pairs(n, seen.device)
        calibration = [_calibrate(seen @ kind, seen_toxic == toxic) for kind, toxic in zip(kinds, (1, 0), strict=True)]
        return cls(
            mean=reading.mean if reading.centre != "none" else torch.zeros_like(reading.mean),
            whitening=reading.whitening,
            kinds=kinds,
            calibration=torch.tensor(calibration),
            axes=axes,
            points=shown @ axes.T,
            auroc=auroc(along[:n], along[n:]),
        )

    def read(self, states: Tensor) -> list[Similarity]:
        """States (prompts, d_model) as they come from layer L of the model that this was fitted for."""
        units = Geometry("stock", self.mean, self.whitening)(states.to(self.mean.device))
        cosines = units @ self.kinds.T  # prompts 2
        scores = (cosines * self.calibration[:, 0] + self.calibration[:, 1]).sigmoid()
        places = units @ self.axes.T
        return [
            Similarity(score[0], score[1], cosine[0], cosine[1], (place[0], place[1]))
            for score, cosine, place in zip(scores.tolist(), cosines.tolist(), places.tolist(), strict=True)
        ]


def _calibrate(cosines: Tensor, is_kind: Tensor) -> tuple[float, float]:
    """Slope and intercept of the log-odds that a prompt with this cosine is of the kind (Platt, 1999). The slope is
    never negative: a cosine that tells nothing, or the wrong thing, gives 0.5."""
    spread = float(cosines.std().clamp_min(1e-6))
    x = (cosines[:, None] / spread).double().cpu().numpy()
    fitted = LogisticRegression().fit(x, is_kind.cpu().numpy())
    slope = float(fitted.coef_[0, 0])
    return (slope / spread, float(fitted.intercept_[0])) if slope > 0 else (0.0, 0.0)


@dataclass(frozen=True)
class Discernments:
    """The readings of one run: its layer L, the prompts on the map, and a Discernment for each model by name."""

    layer: int
    toxic: list[str]
    seemingly_toxic: list[str]
    models: dict[str, Discernment]

    @property
    def pairs(self) -> list[Pair]:
        """The development pairs on the map."""
        return [Pair(*sides) for sides in zip(self.toxic, self.seemingly_toxic, strict=True)]

    def save(self, folder: Path) -> None:
        """Write FILE: tensors named MODEL.FIELD, the whitening once, the rest in the metadata."""
        tensors = {}
        for name, reading in self.models.items():
            for field in ("mean", "kinds", "calibration", "axes", "points"):
                tensors[f"{name}.{field}"] = getattr(reading, field).cpu().float().contiguous().clone()  # never shared
            if reading.whitening is not None:
                tensors["whitening"] = reading.whitening.cpu().contiguous()
        facts = {"layer": self.layer, "toxic": self.toxic, "seemingly_toxic": self.seemingly_toxic}
        aurocs = {name: reading.auroc for name, reading in self.models.items()}
        metadata = {"discernment": json.dumps(facts | {"auroc": aurocs}, ensure_ascii=False)}
        save_tensors(tensors, folder / FILE, metadata)

    @classmethod
    def load(cls, folder: Path) -> "Discernments | None":
        """What ``save`` wrote; None where there is no such file: it holds texts, and may be deleted. Raises UserError
        for a damaged one."""
        path = folder / FILE
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["discernment"])
            tensors: dict[str, Any] = dict(load_tensors(path, CURE))
            whitening = tensors.pop("whitening", None)
            models: dict[str, Discernment] = {}
            for name, value in facts["auroc"].items():
                fields = {key.split(".", 1)[1]: t for key, t in tensors.items() if key.startswith(f"{name}.")}
                models[name] = Discernment(whitening=whitening, auroc=value, **fields)
            found = cls(facts["layer"], facts["toxic"], facts["seemingly_toxic"], models)
            whole = found._is_whole()
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError):
            whole = False
        if not whole:
            raise damaged(path, CURE)
        return found

    def fits(self, names: Sequence[str], layers: int, width: int) -> bool:
        """Whether this can read the models ``names`` on a network of so many layers, d_model ``width``."""
        return self.layer < layers and all(n in self.models and len(self.models[n].mean) == width for n in names)

    def _is_whole(self) -> bool:
        """Whether all parts have their types and shapes, and every number is one."""
        texts = (self.toxic, self.seemingly_toxic)
        if not all(isinstance(side, list) and all(isinstance(text, str) for text in side) for side in texts):
            return False
        if not isinstance(self.layer, int) or self.layer < 0 or not self.models or len(texts[0]) != len(texts[1]):
            return False
        for one in self.models.values():
            width = one.mean.shape[-1]
            shapes = [(width,), (2, width), (2, 2), (2, width), (2 * len(self.toxic), 2)]
            tensors = [one.mean, one.kinds, one.calibration, one.axes, one.points]
            if one.whitening is not None:
                shapes, tensors = [*shapes, (width, width)], [*tensors, one.whitening]
            if [tuple(tensor.shape) for tensor in tensors] != shapes or not 0 <= one.auroc <= 1:
                return False
            if not all(tensor.dtype == torch.float32 and bool(tensor.isfinite().all()) for tensor in tensors):
                return False
        return True
