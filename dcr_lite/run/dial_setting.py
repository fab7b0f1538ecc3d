"""How the dial of a run stands, and what is known along it: RUN/dial/dial.json."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from dcr_lite.errors import UserError
from dcr_lite.files import damaged, read_state, write_state
from dcr_lite.measure.trade_off import Goal, TradeOff

FOLDER, SETTING = "dial", "dial.json"  # in a run
CURE = "Delete that folder to have the dial fitted and measured again, by dcr-lite dial or by --resume."


@dataclass(frozen=True)
class DialSetting:
    """How the dial of a run stands, and what is known along it.

    strength: in RUN/adapter. goal, value: what it was chosen by: a Goal's, or "strength", or "none" where the dial is
    measured and not in the adapter.
    reached: whether the goal can be reached.
    plain: share of the plain development prompts refused at this strength; None where there are none.
    stock: the stock model's refusal rates of toxic and of seemingly toxic development prompts.
    pairs: how many pairs all rates are of.
    gain: the dial's. gains: the AUROC of the pairs' log-odds of refusing, with the dial at 0, by each that was tried.
    measured: the strengths that the curve rests on, and whether answers were judged there.
    """

    strength: float
    goal: str
    value: float | None
    reached: bool
    plain: float | None
    stock: tuple[float, float]
    curve: TradeOff
    pairs: int
    gain: float
    gains: dict[str, float]
    measured: dict[str, bool]

    def for_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        curve = {of.name: getattr(self.curve, of.name).tolist() for of in fields(TradeOff)}
        return asdict(self) | {"stock": list(self.stock), "curve": curve}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DialSetting":
        """What ``for_json`` gave. Raises LookupError, TypeError or ValueError for anything else."""
        curve = TradeOff(*(np.array(values["curve"][of.name], float) for of in fields(TradeOff)))
        n = len(curve.strengths)
        if {curve.rates.shape, curve.low.shape, curve.high.shape} != {(n, 2)} or not math.isfinite(values["strength"]):
            raise ValueError("no curve")
        toxic, seemingly_toxic = map(float, values["stock"])
        dict(values["measured"])  # raises for what is none
        return cls(**values | {"stock": (toxic, seemingly_toxic), "curve": curve})

    @classmethod
    def load(cls, folder: Path) -> "DialSetting":
        """The setting in RUN/dial. Raises UserError where it is damaged."""
        try:
            return cls.from_json(read_state(folder / SETTING, CURE))
        except (LookupError, TypeError, ValueError):
            raise damaged(folder / SETTING, CURE) from None

    def save(self, folder: Path) -> None:
        """Write dial.json, whole or absent."""
        write_state(self.for_json(), folder / SETTING)

    def was_asked(self, asked: Goal | float | None) -> bool:
        """Whether this is the setting that was chosen for it."""
        if isinstance(asked, Goal):
            return (self.goal, self.value) == (asked.name, asked.value)
        return (self.goal, self.strength) == (("none", 0.0) if asked is None else ("strength", asked))

    def turned_to(self, asked: Goal | float) -> "DialSetting":
        """The same dial at another setting. Raises UserError, which says what it can do, for one beyond its curve."""
        if isinstance(asked, Goal):
            strength, reached = asked.strength(self.curve, self.stock)
            turned = replace(self, strength=round(strength, 2) + 0.0, goal=asked.name, value=asked.value, plain=None)
        else:
            reached = bool(self.curve.strengths[0] <= asked <= self.curve.strengths[-1])
            turned = replace(self, strength=asked, goal="strength", value=None, plain=None)
        if not reached:
            raise UserError(f"{self.within_reach} Choose a setting within that.")
        return replace(turned, reached=True)

    @property
    def within_reach(self) -> str:
        """A sentence on what the dial can do."""
        (most, most_seemingly), (least, least_seemingly) = self.curve.rates[[0, -1]].tolist()
        return (
            f"With its dial, at strengths from {self.curve.strengths[0]:+.2f} to {self.curve.strengths[-1]:+.2f}, this "
            f"model refuses {least:.2f} to {most:.2f} of toxic development prompts and answers "
            f"{1 - most_seemingly:.2f} to {1 - least_seemingly:.2f} of seemingly toxic ones (the stock model "
            f"{self.stock[0]:.2f} and {1 - self.stock[1]:.2f})."
        )
