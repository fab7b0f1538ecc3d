"""About how many floating-point operations the training or the fitting of each compared method takes at a strength,
after those at the strengths before it: for the estimated time."""

from dcr_lite.compare import actor, adacd, directions, preferences, prosafeprune, surgical
from dcr_lite.compare.anchors import ANCHORS
from dcr_lite.compare.seed_run import SeedRun
from dcr_lite.names import BASELINE, DCR, STOCK
from dcr_lite.run.own_voice import PART as OWN_ANSWERS

# Methods that begin with its model, where DCR has a stage 2.
ON_SAFETY_SFT = ("surgical", "scans", "adacd", "prosafeprune", "actor", "dpo")
CHAT_TOKENS = 5  # about as many tokens does a chat template write behind a prompt: the positions Surgical tries


def shared_parts(seed: SeedRun, method: str, strength: float) -> dict[str, float]:
    """What a method at a strength takes for granted and the first of a seed does for all, by the name of that part of
    the run: the model's own answers to the instructions of safety SFT, safety SFT alone, and the answers by which a
    search knows how the model that a method begins with refuses. Of safety SFT itself, 0: ``of_safety_sft`` counts
    it."""
    refusals = strength if method == BASELINE else seed.settings.sizes["baseline_refusals"]
    parts = {}
    behind = () if seed.settings.stage2 == "no" else (*ON_SAFETY_SFT, DCR)
    if method in (BASELINE, "augmented", *behind):
        parts[OWN_ANSWERS] = seed.operations.get("own answers", 0.0)
    if method == "steered" or method in ON_SAFETY_SFT:
        begun = STOCK if method == "steered" or not behind else BASELINE
        held_out, unseen = len(seed.data.held_out), 2 * len(seed.data.development)
        parts[f"judged_{begun}"] = seed.operations["answers"] * unseen / held_out
    if method in (BASELINE, *behind[:-1]):
        parts[f"safety_sft_{refusals:g}"] = 0.0 if method == BASELINE else seed.operations[BASELINE]
    return parts


def of_safety_sft(seed: SeedRun, refusals: float) -> float:
    """Of a whole training."""
    return seed.operations["safety_sft"]


def of_steering(seed: SeedRun, factor: float) -> float:
    """Of vectors and of a few strengths, for steered stock and SCANS."""
    return 8 * ANCHORS * seed.operations["prompt"]


def of_dial_alone(seed: SeedRun, answered: float) -> float:
    """Of measuring the dial, by about as many answers as ten times all development prompts."""
    return 20 * len(seed.data.development) * seed.operations["prompt"] * 3 if answered == 0 else 0


def of_dcr(seed: SeedRun, answered: float) -> float:
    """Of the training and the dial."""
    parts = seed.operations
    stage2 = parts["stage2"] if seed.settings.stage2 != "no" else 0
    return parts["stage1"] + stage2 + of_dial_alone(seed, answered) if answered == 0 else 0


def of_surgical(seed: SeedRun, orthogonality: float) -> float:
    """Two passes over the validation prompts for each candidate, of every layer and position."""
    return surgical.layers_tried(seed.model) * CHAT_TOKENS * 2 * directions.VALIDATION * seed.operations["prompt"]


def of_adacd(seed: SeedRun, factor: float) -> float:
    """Of choosing alpha: two passes over both prompts of the development pairs for each."""
    return 4 * len(adacd.ALPHAS) * len(seed.data.development) * seed.operations["prompt"] if factor == 1 else 0


def of_prosafeprune(seed: SeedRun, factor: float) -> float:
    """A pass over the training prompts, one over a few validation prompts for each setting, one over all pairs for each
    of the best settings and without one."""
    tried = prosafeprune.SETTINGS * 3 * directions.VALIDATION
    again = (prosafeprune.FINALISTS + 1) * 2 * len(seed.data.development)
    return (3 * ANCHORS + tried + again) * seed.operations["prompt"] if factor == 1 else 0


def of_actor(seed: SeedRun, factor: float) -> float:
    """Of each training the states that enter its layer, and after each epoch the development prompts with the tokens of
    refusing openings behind them; the layer itself is little beside those."""
    trainings = len(actor.ALPHAS) if factor == 1 else 1
    prompts = 3 * ANCHORS + actor.EPOCHS * (4 * len(seed.data.development) + directions.VALIDATION)
    return trainings * prompts * seed.operations["prompt"]


def of_dpo(seed: SeedRun, share: float) -> float:
    """Four passes over both answers to both prompts of a pair, forward and backward and once before; and once those
    answers themselves, of which some are given twice."""
    rows = 4 * min(preferences.PAIRS, len(seed.data.training))
    return (6 if share == 0.5 else 4) * rows * seed.operations["prompt"]
