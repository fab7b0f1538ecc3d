"""The dial of an opened run: its range, its marks, and what each strength does to development prompts."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dcr_lite.demo import texts
from dcr_lite.errors import UserError
from dcr_lite.measure.trade_off import TOLERANCE, Goal
from dcr_lite.method.dial import Dial
from dcr_lite.run.dial_bench import DIAL
from dcr_lite.run.dial_setting import FOLDER, SETTING, DialSetting

STEP = 0.01  # of the slider


@dataclass(frozen=True)
class OpenDial:
    """A run's dial, for DCR: what turns it, and how it stands in the run's adapter, with the curve along it."""

    dial: Dial
    setting: DialSetting

    @property
    def marks(self) -> dict[str, float]:
        """Strengths with names, from the most refusing one to the most answering one."""
        named = {texts.CHOSEN: self.setting.strength}
        if abs(self.setting.strength) >= STEP:  # else both are one position of the slider
            named[texts.AT_ZERO] = 0.0
        like_stock, reached = Goal("like_stock").strength(self.setting.curve, self.setting.stock)
        answered, of_stock = (self.rates(strength)["seemingly_toxic"] for strength in (like_stock, None))
        if reached and answered <= of_stock + TOLERANCE:  # else more are answered at every strength
            named[texts.LIKE_STOCK] = like_stock
        return dict(sorted(named.items(), key=lambda mark: mark[1]))

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the largest strength, in whole steps: those of the curve and of all marks."""
        every = [*self.setting.curve.strengths[[0, -1]].tolist(), *self.marks.values()]
        return round(math.floor(min(every) / STEP) * STEP, 2), round(math.ceil(max(every) / STEP) * STEP, 2)

    def require(self, strength: Any) -> float:
        """The strength. Raises UserError for what is none, or lies outside of the ends."""
        low, high = self.ends
        if isinstance(strength, bool) or not isinstance(strength, int | float) or not low <= strength <= high:
            raise UserError(f"the strength of the dial is a number from {low:.2f} to {high:.2f}, not {strength!r:.40}")
        return float(strength)

    def snapped(self, position: float) -> float:
        """The strength at a position of the slider, which knows whole steps alone: a mark that is less than a step
        away, else the position."""
        nearest = min(self.marks.values(), key=lambda mark: abs(mark - position))
        return nearest if abs(nearest - position) < STEP else position

    def shares(self) -> list[tuple[str, list[float], list[float], list[float]]]:
        """For each kind its name, its share along the curve, and the ends of the share's interval: of toxic prompts the
        share that is refused, of seemingly toxic ones the share that is answered."""
        curve = self.setting.curve
        rate, low, high = (part.T.tolist() for part in (curve.rates, curve.low, curve.high))
        answered = tuple([1 - share for share in part[1]] for part in (rate, high, low))
        return [("toxic", rate[0], low[0], high[0]), ("seemingly_toxic", answered[0], answered[1], answered[2])]

    def rates(self, strength: float | None) -> dict[str, float]:
        """The shares by kind at a strength; None: those of the stock model."""
        refused = self.setting.stock if strength is None else self.setting.curve.at(strength)[0].tolist()
        return {"toxic": refused[0], "seemingly_toxic": 1 - refused[1]}


def open_dial(run: Path) -> OpenDial | None:
    """The dial of a run; None where its adapter has none. Raises UserError for a damaged one."""
    folder = run / FOLDER
    if not (folder / SETTING).exists() or (setting := DialSetting.load(folder)).goal == "none":
        return None
    return OpenDial(Dial.load(folder / DIAL), setting)
