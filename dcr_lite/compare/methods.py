"""The compared methods: each trains or fits its model for one seed of a recipe, as a context in which the seed's model
is that method's.

To add one: its maths in a file of its own, as surgical.py and scans.py, a context below, and an entry in METHODS.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace

from torch import Tensor

from dcr_lite.compare import (
    actor,
    adacd,
    directions,
    dpo,
    operations,
    preferences,
    prosafeprune,
    scans,
    steered,
    surgical,
)
from dcr_lite.compare.actor import Actor, ActorConfig, Choice, Layer
from dcr_lite.compare.adacd import AdaCD
from dcr_lite.compare.anchors import Anchors
from dcr_lite.compare.prosafeprune import Pruning
from dcr_lite.compare.scans import Scans
from dcr_lite.compare.seed_run import Cost, SeedRun
from dcr_lite.compare.steered import SteeredStock
from dcr_lite.compare.surgical import Ablation
from dcr_lite.data.rows import read_conversations
from dcr_lite.errors import UserError
from dcr_lite.measure.trade_off import Goal
from dcr_lite.model import adapters
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run import steps
from dcr_lite.run.dial_setting import DialSetting
from dcr_lite.run.terminal import console, progress_bar
from dcr_lite.settings import Settings

FACTORS = (0.5, 2.0)  # of a recipe's refusals: further points of a trained method's trade-off curve
AS_SET = 0.0  # the dial as the recipe sets it; else the share of seemingly toxic development prompts to answer
ANSWERED = (0.6, 0.8, 0.95)  # such shares: further points of DCR's curve
ANSWERED_WORDS = "of seemingly toxic development prompts answered; 0: as set"
SHARES = (0.5, 0.25, 0.75)  # of toxic preferences in the loss of DPO


@contextmanager
def _stock(seed: SeedRun, strength: float) -> Iterator[Cost]:
    with adapters.stock(seed.model):
        yield Cost(0.0, 0)


def fitted_steering(seed: SeedRun) -> tuple[SteeredStock, Cost]:
    """The steering of the stock model, which is the active one, and its cost."""

    def fit() -> SteeredStock:
        console.print("Steered stock: vector, strength")
        return steered.fit(seed.model, *anchors, seed.settings.layer)

    cost, anchors = seed.judged_anchors(STOCK)
    return seed.fit_once("steered", SteeredStock, fit), cost + seed.cost("steered")


@contextmanager
def _steered(seed: SeedRun, factor: float) -> Iterator[Cost]:
    with adapters.stock(seed.model):
        found, cost = fitted_steering(seed)
        with directions.steered(seed.model, {seed.settings.layer: factor * found.strength * found.vector}):
            yield cost + seed.cost_of_finding


@contextmanager
def _safety_sft(seed: SeedRun, refusals: float) -> Iterator[Cost]:
    n = int(refusals)
    title = f"Safety SFT, {n}"
    yield seed.train(f"safety_sft_{n}", title, BASELINE, seed.mixture(n), steps.ALL_LAYERS, seed.first_weights)


@contextmanager
def _base(seed: SeedRun) -> Iterator[tuple[Cost, Anchors]]:
    """What the methods behind this begin with, and the prompts that they are fitted to: safety SFT alone, or the model
    itself where that refuses and DCR has no stage 2."""
    if seed.settings.stage2 == "no":
        adapters.set_adapter_weights(seed.model, BASELINE, seed.first_weights)
        adapters.activate(seed.model, BASELINE)
        yield seed.judged_anchors(STOCK)
    else:
        with _safety_sft(seed, seed.settings.sizes["baseline_refusals"]) as trained:
            cost, anchors = seed.judged_anchors(BASELINE)
            yield trained + cost, anchors


@contextmanager
def _augmented(seed: SeedRun, refusals: float) -> Iterator[Cost]:
    n, extra = int(refusals), seed.settings.augmentations
    name, rows = f"augmented_{n}_{extra}", seed.mixture(n, extra)
    yield seed.train(name, f"Augmented, {n}", BASELINE, rows, steps.ALL_LAYERS, seed.first_weights)


@contextmanager
def _surgical(seed: SeedRun, orthogonality: float) -> Iterator[Cost]:
    name = f"surgical_{orthogonality:g}"

    def fit() -> Ablation:
        with progress_bar("Surgical: directions", surgical.layers_tried(seed.model)) as shown:
            return surgical.fit(seed.model, *anchors, orthogonality, shown.advance)

    with _base(seed) as (trained, anchors):
        ablation = seed.fit_once(name, Ablation, fit)
        with surgical.ablated(seed.model, ablation.direction):
            yield trained + seed.cost(name)


@contextmanager
def _scans(seed: SeedRun, factor: float) -> Iterator[Cost]:
    def fit() -> Scans:
        console.print("SCANS: vectors, threshold, strength")
        return scans.fit(seed.model, *anchors)

    with _base(seed) as (trained, anchors):
        found = seed.fit_once("scans", Scans, fit)
        with replace(found, strength=found.strength * factor).steering(seed.model):
            yield trained + seed.cost("scans")


@contextmanager
def _adacd(seed: SeedRun, factor: float) -> Iterator[Cost]:
    def fit() -> AdaCD:
        console.print("AdaCD: whether the model obeys, strength")
        return adacd.fit(seed.model, anchors[1])

    with _base(seed) as (trained, anchors):
        found = seed.fit_once("adacd", AdaCD, fit)
        with replace(found, alpha=found.alpha * factor).contrasting(seed.model):
            yield trained + seed.cost("adacd") + Cost(0.0, 0, found.note)


@contextmanager
def _prosafeprune(seed: SeedRun, factor: float) -> Iterator[Cost]:
    def fit() -> Pruning:
        with progress_bar("ProSafePrune: settings", prosafeprune.SETTINGS) as shown:
            return prosafeprune.fit(seed.model, BASELINE, *anchors, shown.advance)

    with _base(seed) as (trained, anchors):
        found = seed.fit_once("prosafeprune", Pruning, fit)
        with prosafeprune.pruned(seed.model, BASELINE, found, factor):
            yield trained + seed.cost("prosafeprune")


def _train_actor(seed: SeedRun, anchors: Anchors, layer: int, alpha: float, start: dict[str, Tensor]) -> str:
    """ACTOR with one alpha, from the weights ``start``, trained once; the name of that part."""
    # The rate of stage 1, which moves states in the middle of the model too.
    name, config = f"actor_{alpha:g}", ActorConfig(layer, alpha, seed.settings.contrastive_learning_rate)

    def stage() -> Actor:
        folder = seed.run.path / name  # of the adapter, which takes the place of what the training keeps there
        return Actor(name, seed.model, BASELINE, *anchors, config, seed.settings.seed, folder)

    seed.train_stage(name, f"ACTOR, alpha {alpha:g}", start, stage)
    return name


@contextmanager
def _actor(seed: SeedRun, factor: float) -> Iterator[Cost]:
    with _base(seed) as (trained, anchors):
        start = adapters.adapter_weights(seed.model, BASELINE)
        found = seed.fit_once("actor_layer", Layer, lambda: actor.best_layer(seed.model, anchors[0]))

        def choose() -> Choice:
            parts = {alpha: _train_actor(seed, anchors, found.number, alpha, start) for alpha in actor.ALPHAS}
            notes = {alpha: seed.run.finished(part) or {} for alpha, part in parts.items()}
            alpha = max(notes, key=lambda alpha: notes[alpha]["best"])
            epochs = notes[alpha]["best_step"] // len(actor.batches(anchors[0], seed.settings.seed))
            return Choice(found.number, alpha, epochs, notes[alpha]["best"], len(parts) * actor.EPOCHS)

        chosen = seed.fit_once("actor", Choice, choose)
        own = _train_actor(seed, anchors, chosen.layer, factor * chosen.alpha, start)
        parts = {own, *(f"actor_{alpha:g}" for alpha in actor.ALPHAS)}
        yield sum((seed.cost(part) for part in parts), trained + seed.cost("actor_layer"))


@contextmanager
def _dpo(seed: SeedRun, share: float) -> Iterator[Cost]:
    with _base(seed) as (trained, anchors):
        name = f"{preferences.PART}_{share:g}"
        rows = preferences.of_run(seed.run, seed.model, seed.data.training, seed.data.refusals, seed.settings.seed)
        seed.timed(name, lambda: dpo.train(seed.run, seed.model, name, rows, share, anchors[1], seed.settings))
        yield trained + seed.cost(preferences.PART) + seed.cost(name)


def _strength(setting: DialSetting, answered: float) -> float:
    """The dial's strength as it was set, or that which answers such a share of seemingly toxic development prompts."""
    if answered == AS_SET:
        return setting.strength
    return Goal("answer_seemingly_toxic", answered).strength(setting.curve, setting.stock)[0]


@contextmanager
def _dial_alone(seed: SeedRun, answered: float) -> Iterator[Cost]:
    dial, setting = seed.set_dial_alone()
    with seed.turned(dial, _strength(setting, answered)):
        yield seed.cost_of_finding + seed.cost("dial_alone")


@contextmanager
def _dcr(seed: SeedRun, answered: float) -> Iterator[Cost]:
    trained = seed.train_dcr()
    if seed.settings.dial == "none":
        yield trained
        return
    dial, setting = seed.set_dial()
    with seed.turned(dial, _strength(setting, answered)):
        yield trained + seed.cost("dial")


def _refusals(settings: Settings) -> tuple[float, ...]:
    """Strengths of safety SFT: the recipe's refusals, then less and more of them, at most as many as there are."""
    usual, most = settings.sizes["baseline_refusals"], len(read_conversations(settings.files["refusal_rows"]))
    return (usual, *sorted({min(most, max(1, round(usual * factor))) for factor in FACTORS} - {usual}))


@dataclass(frozen=True)
class Method:
    """A compared method.

    title, colour: in tables and plots.
    model: a context in which the model of a seed is this method's at a strength; gives what that cost.
    strengths: of a recipe's settings, the first one for the table, the others for the trade-off curve.
    strength: what a strength is, in words.
    operations: about how many floating-point operations the training or the fitting at a strength takes, after those
        at the strengths before it; for the estimated time.
    once: measured once and not with every seed. seeds: those that it is measured with, where not all.
    in_weights: it ends in weights, which an adapter holds; else it works on while the model answers.
    versions: by seed the digest of its adapter, where each seed has one that was not trained here.
    """

    title: str
    colour: str
    model: Callable[[SeedRun, float], AbstractContextManager[Cost]]
    strengths: Callable[[Settings], tuple[float, ...]]
    strength: str
    operations: Callable[[SeedRun, float], float]
    once: bool = False
    in_weights: bool = True
    seeds: tuple[int, ...] | None = None
    versions: Mapping[int, str] = field(default_factory=dict)


METHODS = {
    STOCK: Method("stock model", "#bbbbbb", _stock, lambda settings: (0,), "", lambda seed, strength: 0, once=True),
    "steered": Method(
        "steered stock", "#c0392b", _steered, lambda settings: (1.0, -1.0, 0.5, 2.0), "times the strength chosen",
        operations.of_steering, in_weights=False,
    ),
    "dial_alone": Method(
        "dial alone", "#d4ac0d", _dial_alone, lambda settings: (AS_SET, *ANSWERED), ANSWERED_WORDS,
        operations.of_dial_alone,
    ),
    BASELINE: Method(
        "safety SFT alone", "#7f8c8d", _safety_sft, _refusals, "refusals", operations.of_safety_sft,
    ),
    "augmented": Method(
        "data augmentation", "#b9770e", _augmented, _refusals, "refusals", operations.of_safety_sft,
    ),
    "surgical": Method(
        "Surgical", "#7d3c98", _surgical, lambda settings: (1.0, 0.5, 0.0), "orthogonality", operations.of_surgical,
        in_weights=False,
    ),
    "scans": Method(
        "SCANS", "#2471a3", _scans, lambda settings: (1.0, 0.5, 2.0), "times the strength chosen",
        operations.of_steering, in_weights=False,
    ),
    "adacd": Method(
        "AdaCD", "#148f9b", _adacd, lambda settings: (1.0, 0.5, 2.0), "times the strength chosen", operations.of_adacd,
        in_weights=False,
    ),
    "prosafeprune": Method(
        "ProSafePrune", "#e84393", _prosafeprune, lambda settings: (1.0, 0.5, 1.5), "times the strength chosen",
        operations.of_prosafeprune,
    ),
    "actor": Method(
        "ACTOR", "#1a237e", _actor, lambda settings: (1.0, 0.5, 2.0), "times the alpha chosen", operations.of_actor
    ),
    "dpo": Method("DPO", "#6d4c41", _dpo, lambda settings: SHARES, "share of toxic preferences", operations.of_dpo),
    DCR: Method(
        "DCR", "#1e8449", _dcr, lambda settings: (AS_SET, *(ANSWERED if settings.dial != "none" else ())),
        ANSWERED_WORDS, operations.of_dcr,
    ),
}  # fmt: skip


def chosen_methods(names: Sequence[str]) -> dict[str, Method]:
    """The methods of these names beside the stock model, in the order of METHODS; all of them for no name. Raises
    UserError for a name that is none."""
    if wrong := [name for name in names if name not in METHODS]:
        raise UserError(f"--methods {wrong[0]}: no such method. Choose from {', '.join(METHODS)}.")
    return {name: method for name, method in METHODS.items() if not names or name in (STOCK, *names)}
