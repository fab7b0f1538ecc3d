"""Stage 1, contrastive refinement: pull states of one kind together at layer L and push the two kinds apart.

Lu et al., "Discern Truth from Falsehood: Reducing Over-Refusal via Contrastive Refinement", arXiv 2603.03323.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

from dcr_lite.data.rows import Pair, prompts_of
from dcr_lite.data.splits import pair_batches, places_read
from dcr_lite.method import losses
from dcr_lite.method.geometry import Centre, Geometry, kinds_of_pairs
from dcr_lite.method.gradcache import GradCache
from dcr_lite.method.losses import Loss, cosine_similarity
from dcr_lite.method.read_out import separation
from dcr_lite.model import distributed
from dcr_lite.model.adapters import activate, stock, train_only
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.loading import Model
from dcr_lite.model.states import layer_states, prompt_passes
from dcr_lite.model.states_below import RefinedStates
from dcr_lite.settings import Settings

Row = TypeVar("Row")

REFERENCE_PAIRS = 64  # training pairs that give the read-out: enough for two means, and read in every observation
OBSERVATIONS = 8  # evaluations on development pairs, evenly over the steps
GEOMETRY_PAIRS = 420  # training pairs that give the stock model's geometry: 840 states for a shrunk covariance


@dataclass(frozen=True)
class ContrastiveConfig:
    """How stage 1 trains.

    layer: L, counted from 0. loss: see losses.py. centre, whiten: see Geometry.
    batch_size: prompts per step, half of each kind. observe_every: steps between evaluations on development pairs.
    first: the first layer that trains, from 0.
    """

    layer: int
    loss: Loss
    centre: Centre
    whiten: bool
    steps: int
    batch_size: int
    learning_rate: float
    observe_every: int = 10
    first: int = 0

    @classmethod
    def of(cls, settings: Settings) -> "ContrastiveConfig":
        """What the settings of a run say; with ``paper`` Circle loss on raw states and all layers up to L."""
        loss = {
            "supervised_contrastive": losses.supervised_contrastive(settings.temperature),
            "circle": losses.circle(settings.margin, settings.scale),
            "info_nce": losses.info_nce(settings.temperature),
        }["circle" if settings.paper else settings.contrastive_loss]
        return cls(
            layer=settings.layer,
            loss=loss,
            centre="none" if settings.paper else settings.centre,
            whiten=settings.whiten and not settings.paper,
            steps=settings.refining_steps,
            batch_size=settings.contrastive_batch,
            learning_rate=settings.contrastive_learning_rate,
            observe_every=max(1, -(-settings.refining_steps // OBSERVATIONS)),
            first=settings.first_refined,
        )


class ContrastiveRefinement:
    """Stage 1: trains the adapter's layers from ``config.first`` up to L. The loop keeps the weights that separate the
    development pairs best (see ``loop.Stage``).

    geometry: that of the stock model's states, from ``stock_geometry``. last: so many pairs, the last ones, are in
    ``states`` whether they are trained on or not, for what reads them afterwards.
    """

    name = "stage1"

    def __init__(
        self, model: Model, adapter: str, training: list[Pair], development: list[Pair], config: ContrastiveConfig,
        geometry: Geometry, seed: int, last: int = 0,
    ):  # fmt: skip
        self.model, self.adapter, self.config, self.geometry = model, adapter, config, geometry
        self.steps, self.learning_rate, self.observe_every = config.steps, config.learning_rate, config.observe_every
        self.pairs = len(training)
        self.rows = encode_pairs(model, training) + encode_pairs(model, development)
        self.reference = first_pairs(list(range(2 * self.pairs)), REFERENCE_PAIRS)
        self.unseen = list(range(2 * self.pairs, len(self.rows)))
        self.batches = pair_batches(self.pairs, config.batch_size, config.steps, seed)
        activate(model, adapter)
        self.parameters = train_only(model, adapter, range(config.first, config.layer + 1))
        places = places_read(self.pairs, len(self.unseen), self.batches, REFERENCE_PAIRS, last)
        self.states = RefinedStates(model, {i: self.rows[i] for i in places}, config.first, config.layer)

    def step(self, number: int) -> float:
        """One batch's gradients: states, geometry, similarity, loss, backward. Returns the loss."""
        pairs = self.batches[number]
        prompts = [*pairs, *(self.pairs + i for i in pairs)]  # toxic sides, seemingly toxic sides
        is_toxic = kinds_of_pairs(len(pairs), self.model.device)
        own = distributed.share(prompts)
        cache = GradCache(self.states.of, own, prompt_passes(self.model, [self.rows[i] for i in own]))
        states = distributed.gathered_rows(cache.states)  # prompts d_model; every process sees every negative
        similarity = cosine_similarity(self.geometry(states))  # prompts prompts
        loss = self.config.loss(similarity, is_toxic)
        (loss * self.model.gradient_scale).backward()  # into the states, and with a single pass into the adapter
        cache.backward()  # with several passes from the states into the adapter
        return loss.item()

    def observe(self, step: int) -> dict[str, Any]:
        """The AUROC of the development pairs."""
        states = self.states.read(self.reference + self.unseen)
        value = separation(self.geometry, states[: len(self.reference)], states[len(self.reference) :])
        return {"development_auroc": value, "best": value}


def encode_pairs(model: Model, pairs: list[Pair]) -> list[list[int]]:
    """Token ids of all toxic sides, then of all seemingly toxic ones."""
    return encode_asked(model.tokenizer, prompts_of(pairs), model.window)


def first_pairs(rows: list[Row], n: int) -> list[Row]:
    """The first ``n`` pairs of rows laid out as ``encode_pairs`` does."""
    half = len(rows) // 2
    return rows[: min(n, half)] + rows[half : half + min(n, half)]


def stock_geometry(model: Model, rows: list[list[int]], config: ContrastiveConfig) -> Geometry:
    """The geometry of the stock model's states, from rows laid out as ``encode_pairs`` does."""
    with stock(model):
        states = layer_states(model, first_pairs(rows, GEOMETRY_PAIRS), config.layer)
    return Geometry.fit(states, config.centre, config.whiten)
