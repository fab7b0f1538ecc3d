"""The cue judge behind the interface of all judges."""

from collections.abc import Sequence

from dcr_lite.judges.interface import Exchange
from dcr_lite.measure.judge import refusal_score

NAME = "cues"


class CueJudge:
    """The weighted regular expressions of measure/judge.py. They read the answer alone."""

    name = NAME

    def scores(self, rows: Sequence[Exchange]) -> list[float]:
        """A score for each answer; never NaN."""
        return [refusal_score(row.response) for row in rows]
