"""The prompts that compared methods take directions from, and those that they choose their settings by."""

from dataclasses import dataclass

import numpy as np

from dcr_lite.compare.directions import Kinds
from dcr_lite.data.rows import Conversation, Pair, prompts_of
from dcr_lite.measure.answers import measure
from dcr_lite.measure.trade_off import PRIOR_MAP, fit_map
from dcr_lite.method.contrastive import encode_pairs
from dcr_lite.model.chat import encode_asked
from dcr_lite.model.loading import Model
from dcr_lite.run.inputs import Data
from dcr_lite.run.terminal import progress_bar

ANCHORS = 128  # prompts of each kind that give directions, as in the paper of Surgical

Anchors = tuple[Kinds, Kinds]  # to take directions from, and to choose by


@dataclass(frozen=True)
class Meaning:
    """``Kinds.meaning``."""

    intercept: float
    slope: float


def anchors_of(model: Model, data: Data) -> Anchors:
    """Training and development pairs, with instructions that safety SFT trains on and instructions that it does not."""
    # Their prompts alone are read: that the model has answered them itself first would take minutes.
    trained = [row for row in data.baseline_mixture if not row.refuses]
    used = {row.prompt for row in trained}
    unused = [row for row in data.instructions if row.prompt not in used]

    def kinds(pairs: list[Pair], plain: list[Conversation]) -> Kinds:
        both, n = encode_pairs(model, pairs), len(pairs)
        return Kinds(both[:n], both[n:], encode_asked(model.tokenizer, plain, model.window))

    return kinds(data.training[:ANCHORS], trained[:ANCHORS]), kinds(data.development, (unused or trained)[:ANCHORS])


def meaning_of(model: Model, data: Data, answer_tokens: int) -> Meaning:
    """What log-odds of opening with a refusal mean for the model as it stands, by its judged answers to development
    pairs."""
    prompts = prompts_of(data.development, "development")
    with progress_bar("What its refusals are like", len(prompts)) as shown:
        said = measure(model, prompts, answer_tokens, shown.advance)
    odds, refused = (np.array([row[key] for row in said]) for key in ("refusal_log_odds", "refused"))
    intercept, slope = fit_map(odds, refused)
    # Without a slope every candidate of a search would do as well as any: log-odds are then taken as they are.
    return Meaning(intercept, slope) if slope > 0 else Meaning(*PRIOR_MAP.tolist())
