"""Everything that a run trains on, evaluates during training and measures, read and checked before any work."""

from dataclasses import dataclass

from dcr_lite.data.rows import Conversation, Pair, Prompt, read_conversations, read_pairs, read_prompts
from dcr_lite.data.splits import safety_mixture, split_by_focus
from dcr_lite.errors import UserError
from dcr_lite.model import distributed
from dcr_lite.settings import Settings

CURVE_PROMPTS = 16  # of each kind, watched along safety SFT: enough to see a curve, a second's work


LEAST = {
    "contrastive_steps": 1,
    "contrastive_batch": 4,  # two of each kind: below that no prompt has a positive
    "development_pairs": 1,
    "instructions": 1,
    "refusals": 0,
    "baseline_refusals": 0,
    "augmentations": 0,
    "sft_epochs": 1,
    "sft_batch": 1,
    "keep": 0,
    "rank": 1,
    "answer_tokens": 1,
}


@dataclass(frozen=True)
class Data:
    """Everything that a run trains on, watches and measures. No held-out prompt is seen before the measurement."""

    training: list[Pair]
    development: list[Pair]
    instructions: list[Conversation]  # to draw from
    refusals: list[Conversation]
    baseline_mixture: list[Conversation]  # what safety SFT alone draws
    watched: list[Prompt]  # development prompts of the three kinds
    held_out: list[Prompt]


def load_data(settings: Settings) -> Data:
    """Read and check every file; raises UserError naming file and line, or the number that is too small."""
    for name, least in LEAST.items():
        if getattr(settings, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(settings, name)}: it takes at least {least}")
    if settings.contrastive_batch < distributed.world():
        raise UserError(f"--contrastive-batch {settings.contrastive_batch}: at least one prompt for each process")
    training, development = split_by_focus(read_pairs(settings.pairs), settings.development_pairs, settings.seed)
    if not development:
        raise UserError("--development-pairs: stage 1 needs some to pick its checkpoint; 1 or more")
    instructions = read_conversations(settings.instruction_rows)
    refusals = read_conversations(settings.refusal_rows)
    safety_mixture(instructions, refusals, settings.instructions, settings.refusals, settings.seed)  # enough of them?
    n = settings.baseline_refusals
    baseline_mixture = safety_mixture(instructions, refusals, settings.instructions, n, settings.seed)
    used = {row.prompt for row in baseline_mixture}
    plain = [row.prompt for row in instructions if row.prompt not in used][:CURVE_PROMPTS]
    watched = [Prompt(p.toxic, "toxic", "development") for p in development[:CURVE_PROMPTS]]
    watched += [Prompt(p.seemingly_toxic, "seemingly_toxic", "development") for p in development[:CURVE_PROMPTS]]
    watched += [Prompt(p, "plain", "development") for p in plain]
    held_out = [row for path in settings.evaluation for row in read_prompts(path)]
    if not held_out:
        raise UserError("nothing to measure on: give at least one file with --evaluation")
    return Data(training, development, instructions, refusals, baseline_mixture, watched, held_out)
