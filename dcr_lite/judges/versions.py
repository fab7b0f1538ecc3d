"""What pins a judge that comes with the kit: a digest that changes with what it decides by."""

import hashlib
import json
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import sha256_of
from dcr_lite.judges.opening import CueJudge
from dcr_lite.measure import judge

HEAD = Path(__file__).with_name("learned.safetensors")


def judge_version(name: str) -> str:
    """SHA-256 of the cue judge's cues, weights and limits (not of its source text, whose comments decide nothing), or
    of the learned judge's weights. Raises UserError for a judge that is not the kit's own: nothing pins that."""
    if name == CueJudge.name:
        return _rules()
    if name == "learned":
        return sha256_of(HEAD)
    raise UserError(
        f"--judge {name}: nothing pins that judge. A contract takes the kit's own: {CueJudge.name}, learned."
    )


def _rules() -> str:
    limits = [judge.THRESHOLD, judge.MAX_CHARACTERS, judge.OPENING_SENTENCES, judge.OPENING_CHARACTERS]
    table = [[cue.name, cue.points, cue.pattern.pattern] for cue in (*judge.CUES, judge.STEPS)]
    return hashlib.sha256(json.dumps([limits, sorted(judge.SOFTENERS), table]).encode()).hexdigest()
