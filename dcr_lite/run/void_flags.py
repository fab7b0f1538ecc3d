"""Flags that would do nothing, given what else is set: errors, since a user who gives one means something by it."""

from collections.abc import Iterable, Sequence

from dcr_lite.errors import UserError
from dcr_lite.names import BASELINE
from dcr_lite.settings import Settings

OF_PAPER = ("contrastive_layers", "contrastive_loss", "centre", "whiten", "temperature")
OF_CIRCLE = ("margin", "scale")
OF_STAGE_1 = (
    "paper", "temperature", *OF_CIRCLE, "patience",
    *(f"contrastive_{name}" for name in ("layers", "loss", "steps", "batch", "learning_rate", "share")),
)  # fmt: skip
OF_STAGE_2 = ("refusals", "discerned_refusals", "begun_refusals", "second_turns", "sft_layers")
OF_SAFETY_SFT = (
    "instructions",
    "answers",
    "sft_epochs",
    "sft_batch",
    "sft_learning_rate",
)  # also where it is the baseline


def given_flags(words: Sequence[str]) -> set[str]:
    """The flags among the words of a command, without their values, each in the form of --help."""
    return {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}


def require_effect(settings: Settings, words: Sequence[str]) -> None:
    """Raises UserError for a flag among ``words`` that another setting makes void."""
    given = given_flags(words)
    for names, said in void(settings):
        if without_effect := given & flags_of(names):
            raise UserError(said.format(", ".join(sorted(without_effect))))


def flags_of(names: Iterable[str]) -> set[str]:
    """The flags of settings by their names."""
    return {f"--{prefix}{name.replace('_', '-')}" for name in names for prefix in ("", "no-")}


def void(settings: Settings) -> list[tuple[tuple[str, ...], str]]:
    """Names of settings that have no effect beside the others, each time with a sentence that has a place for flags."""
    replaces, needs = "{} replaces {{}}: give one or the other", "without {} nothing uses {{}}: give both or neither"
    is_circle, of_base = settings.contrastive_loss == "circle", ("base_model", "base_format")
    rules = (
        (True, settings.not_taken, "leave out {}, for which this command has no use"),
        (settings.paper, OF_PAPER, replaces.format("--paper")),
        (settings.from_base_model, ("model", "chat_format"), replaces.format("--from-base-model")),
        (not settings.from_base_model, of_base, needs.format("--from-base-model")),
        (settings.stage1 == "no", OF_STAGE_1, replaces.format("--stage1 no")),
        (is_circle, ("temperature",), replaces.format("--contrastive-loss circle")),
        (not is_circle and not settings.paper, OF_CIRCLE, needs.format("--contrastive-loss circle or --paper")),
        (settings.stage2 == "no", of_stage2(settings), replaces.format("--stage2 no")),
        (
            BASELINE not in settings.compare_with,
            ("baseline_refusals",),
            needs.format(f"--compare-with {BASELINE}"),
        ),
    )
    return [(names, said) for holds, names, said in rules if holds]


def of_stage2(settings: Settings) -> tuple[str, ...]:
    """Names of the settings that have no effect without a stage 2."""
    if BASELINE in settings.compare_with:
        return OF_STAGE_2
    return OF_STAGE_2 + OF_SAFETY_SFT + (() if settings.draws_refusals else ("refusal_rows",))
