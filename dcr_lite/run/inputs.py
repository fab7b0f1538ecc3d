"""Everything that a run trains on, evaluates during training and measures, read and checked before any work."""

from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from dcr_lite.data.paper_data import full_data
from dcr_lite.data.rows import Conversation, Pair, Prompt, prompts_of, read_conversations, read_pairs, read_prompts
from dcr_lite.data.splits import safety_mixture, split_by_focus
from dcr_lite.errors import UserError
from dcr_lite.names import with_name
from dcr_lite.settings import SHIPPED_FILES, Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

WATCHED_PROMPTS = 16  # of each kind, evaluated along safety SFT: enough to see a curve, a second's work
LEAST = {
    "contrastive_steps": 1,
    "patience": 1,
    "contrastive_layers": 0,
    "contrastive_batch": 4,  # two of each kind: below that no prompt has a positive
    "development_pairs": 1,
    "instructions": 1,
    "refusals": 0,
    "baseline_refusals": 0,
    "augmentations": 0,
    "begun_refusals": 0,
    "sft_epochs": 1,
    "sft_batch": 1,
    "rank": 1,
    "answer_tokens": 1,
}
MOST_SEED = 2**63 - 1  # what generators take, torch's among them


def resolved(settings: AnySettings) -> AnySettings:
    """The settings with everything that a run goes by: the model to begin with, every file, every size. What was given
    stays as it is. Full data are fetched the first time.

    Raises UserError where a base model is asked for and the recipe has none beside its model, or where the full data
    cannot be fetched.
    """
    data = settings.data or ("full" if settings.from_base_model else "shipped")
    changes: dict[str, Any] = {"data": data}
    if settings.from_base_model:
        if not settings.base_model:
            raise UserError("--from-base-model: this recipe names no base model; give one with --base-model")
        changes |= {"model": settings.base_model, "chat_format": settings.base_format}
    settings = replace(settings, **changes)
    changes |= {"model": with_name(settings.model)}  # reports, cards and exports go by it
    if data == "full" and None in (settings.pairs, settings.instruction_rows, settings.refusal_rows):
        changes |= {name: getattr(settings, name) or file for name, file in vars(full_data()).items()}
    return replace(settings, **(settings.files | _sizes(settings) | changes))


def _sizes(settings: Settings) -> dict[str, int | None]:
    """The sizes, where none was given and the rows are the user's own at most as many as there are. How many of the
    shipped refusals stage 2 learns stays to be found; those of a user's own are there to be learnt."""
    sizes: dict[str, int | None] = {**settings.sizes}
    for name, rows in (("instructions", "instruction_rows"), ("refusals", "refusal_rows")):
        own = getattr(settings, rows)
        if own is not None:
            there = len(read_conversations(own))
            for size in (name, f"baseline_{name}"):
                if size in sizes and getattr(settings, size) is None:
                    sizes[size] = min(settings.sizes[size], there)
    if settings.data == "shipped" and settings.files["refusal_rows"] == SHIPPED_FILES["refusal_rows"]:
        sizes["refusals"] = settings.refusals
    return sizes


@dataclass(frozen=True)
class Data:
    """Everything that a run trains on, evaluates during training and measures. No held-out prompt is seen before the
    measurement.

    instructions, refusals: rows to draw from. baseline_mixture: what safety SFT alone trains on.
    watched: development prompts of the three kinds, for the curves along safety SFT.
    longest, left_out: tokens of the longest row, and how many rows were longer than fits, by the names of the settings
        that hold them; empty until long_rows.py has looked.
    joined: how many of the training pairs, the last ones, have joined those of the run (joined.py).
    joined_refusals: what has joined the rows that DCR's stage 2 draws.
    """

    training: list[Pair]
    development: list[Pair]
    instructions: list[Conversation]
    refusals: list[Conversation]
    baseline_mixture: list[Conversation]
    watched: list[Prompt]
    held_out: list[Prompt]
    longest: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    joined: int = 0
    joined_refusals: list[Conversation] = field(default_factory=list)


def load_data(settings: Settings) -> Data:
    """Read and check every file; raises UserError naming file and line, or the number that is too small."""
    _check_numbers(settings)
    files = settings.files
    training, development = split_by_focus(read_pairs(files["pairs"]), settings.development_pairs, settings.seed)
    if not development:
        raise UserError("--development-pairs: stage 1 needs some to pick its checkpoint; 1 or more")
    instructions = read_conversations(files["instruction_rows"])
    refusals = read_conversations(files["refusal_rows"])
    held_out = [row for path in settings.evaluation for row in read_prompts(path)]
    if not held_out:
        raise UserError("nothing to measure on: give at least one file with --evaluation")
    return drawn(settings, training, development, instructions, refusals, held_out)


def drawn(
    settings: Settings, training: list[Pair], development: list[Pair], instructions: list[Conversation],
    refusals: list[Conversation], held_out: list[Prompt],
) -> Data:  # fmt: skip
    """The data of a run, with what is drawn from these rows. Raises UserError where more are asked for."""
    sizes = settings.sizes
    # Stage 2 draws its own after stage 1: that there are enough has to be known now.
    safety_mixture(instructions, refusals, sizes["instructions"], sizes["refusals"], settings.seed)
    baseline_mixture = safety_mixture(
        instructions, refusals, sizes["instructions"], sizes["baseline_refusals"], settings.seed
    )
    # By the prompt alone: what is trained on behind some messages is not new behind others.
    used = {row.prompt for row in baseline_mixture}
    # Where all of the user's own are learnt, the shipped ones tell whether plain prompts are still answered.
    others = (instructions, read_conversations(SHIPPED_FILES["instruction_rows"]))
    unused = next(filter(None, ([row for row in rows if row.prompt not in used] for rows in others)), [])
    plain = [Prompt(row.prompt, "plain", "development", row.before) for row in unused[:WATCHED_PROMPTS]]
    watched = prompts_of(development[:WATCHED_PROMPTS], "development") + plain
    return Data(training, development, instructions, refusals, baseline_mixture, watched, held_out)


def require_seed(flag: str, seed: int) -> None:
    """Raises UserError, which names ``flag``, for a seed that some generator would not take."""
    if not 0 <= seed <= MOST_SEED:
        raise UserError(f"{flag} {seed}: it takes a number from 0 to {MOST_SEED}")


def require_work(settings: Settings) -> None:
    """Raises UserError where the settings, as given or found, leave nothing to do."""
    if settings.stage1 == settings.stage2 == "no" and settings.dial == "none":
        raise UserError("--stage1 no --dial none, and no stage 2: nothing is left to do. Leave one of them out.")


def _check_numbers(settings: Settings) -> None:
    from dcr_lite.model import distributed  # torch, which --plan answers without

    for name, least in LEAST.items():
        value = settings.sizes.get(name, getattr(settings, name))
        if value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: it takes at least {least}")
    require_seed("--seed", settings.seed)
    if settings.begun_refusals > settings.sizes["refusals"]:
        raise UserError(
            f"--begun-refusals {settings.begun_refusals}: there are {settings.sizes['refusals']} --refusals"
        )
    for name in ("contrastive_share", "second_turns"):
        if not 0 <= (share := getattr(settings, name)) <= 1:
            raise UserError(f"--{name.replace('_', '-')} {share:g}: it takes a number from 0 to 1")
    for name in ("contrastive_learning_rate", "sft_learning_rate"):
        if not 0 <= (rate := getattr(settings, name)) < float("inf"):
            raise UserError(f"--{name.replace('_', '-')} {rate:g}: it takes a number above 0, or 0 to have one found")
    for name in ("temperature", "scale"):
        if not 0 < (value := getattr(settings, name)) < float("inf"):
            raise UserError(f"--{name} {value:g}: it takes a number above 0")
    require_work(settings)
    if settings.contrastive_batch < distributed.world():
        raise UserError(f"--contrastive-batch {settings.contrastive_batch}: at least one prompt for each process")
