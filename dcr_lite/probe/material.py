"""What probes fit and train on, of rows that are not measured."""

from dcr_lite.compare.anchors import ANCHORS
from dcr_lite.compare.directions import Kinds
from dcr_lite.data.rows import Conversation, Pair, read_conversations
from dcr_lite.data.splits import evenly_drawn
from dcr_lite.errors import UserError
from dcr_lite.files import load_jsonl
from dcr_lite.measure.general_ability import HELD_OUT_INSTRUCTIONS
from dcr_lite.measure.judge import is_refusal
from dcr_lite.method.contrastive import encode_pairs
from dcr_lite.model.chat import encode_asked
from dcr_lite.probe.abliteration import VALIDATION
from dcr_lite.probe.fine_tuning import Tuning
from dcr_lite.probe.probes import STEPS
from dcr_lite.probe.subjects import Source
from dcr_lite.run.own_voice import PART as OWN_ANSWERS
from dcr_lite.settings import SHIPPED_FILES


def unused_instructions(source: Source) -> list[Conversation]:
    """The shipped instructions, and the shipped held-out ones, that no training of the run has drawn; none of them
    refuses."""
    used = {row.prompt for row in source.data.baseline_mixture}
    own = source.folder / f"{OWN_ANSWERS}.jsonl"
    used |= {row["prompt"] for row in load_jsonl(own)} if own.exists() else set()
    shipped = read_conversations(SHIPPED_FILES["instruction_rows"]) + read_conversations(HELD_OUT_INSTRUCTIONS)
    return [row for row in shipped if row.prompt not in used and not is_refusal(row.response)]


def tuning_of(source: Source, seed: int) -> Tuning:
    """Benign fine-tuning with the adapter's rank, the batch and the learning rate of the run's own safety SFT, on as
    many unused instructions as there are steps for."""
    settings, rows = source.settings, unused_instructions(source)
    if not rows:
        raise UserError(f"{source.folder}: every shipped instruction was trained on, so none is left to fine-tune on")
    n = min(len(rows), STEPS[-1] * settings.sft_batch)
    chosen = evenly_drawn("instructions", rows, n, seed)
    return Tuning(chosen, settings.rank, settings.sft_batch, settings.sft_learning_rate, seed)


def kinds_of(source: Source) -> tuple[Kinds, Kinds]:
    """Toxic and plain prompts to take directions from, of training pairs and of instructions that safety SFT draws, and
    others to choose by, of development pairs and of unused instructions."""
    data, model = source.data, source.model

    def kinds(pairs: list[Pair], plain: list[Conversation]) -> Kinds:
        toxic = encode_pairs(model, pairs)[: len(pairs)]
        return Kinds(toxic, [], encode_asked(model.tokenizer, plain, model.window))

    drawn = [row for row in data.baseline_mixture if not row.refuses]
    return (
        kinds(data.training[:ANCHORS], drawn[:ANCHORS]),
        kinds(data.development, unused_instructions(source)[:VALIDATION]),
    )
