"""The dial of a run: how much DCR refuses, chosen on development pairs after training.

RUN/dial holds the dial, what was measured, and the setting with its curve (dial.json).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dcr_lite.measure.trade_off import Goal
from dcr_lite.method.dial import Dial, carrier, set_strength
from dcr_lite.method.dial_fitting import Readers
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR
from dcr_lite.run.dial_bench import DIAL, Bench
from dcr_lite.run.dial_report import draw_dial
from dcr_lite.run.dial_setting import FOLDER, SETTING, DialSetting
from dcr_lite.run.inputs import Data
from dcr_lite.run.terminal import progress_bar
from dcr_lite.settings import Settings

FIRST, LAST = 0.4, 3.2  # strengths at which the search for the useful range begins, doubling, and ends
NARROW = 0.05  # a strength that breaks the model is known as nearly as this, or to half of the last that does not
SETTLED = 0.05  # where both rates are this near to their end, turning further changes nothing
BROKEN = 0.5  # nats a token that plain answers may lose. Beyond it (docs/ablations.md) words are in disorder on the one
# side of the dial, and plain prompts are refused on the other.
JUDGED_AT = (1.6, 1.0, 0.5)  # answers are judged where the two rates have about this sum
NEAR = 0.25  # of such a sum: answers that were judged this near are enough
CHECKS = 2  # a choice is checked by judged answers, and made once again where they move it
MOVED = 0.02  # rates that differ by less are the same here
MEASUREMENTS = 12  # in a usual run, for its progress bar


def measure_curve(bench: Bench) -> None:
    """Measure the dial over its useful range, with answers judged at a few strengths of it."""
    bench.stock()
    bench.read(0.0, judged=True)
    for sign in (1, -1):
        _measure_towards(bench, sign)
    if len(bench.strengths) == 1:  # answers break at once: a curve needs two strengths all the same
        bench.read(FIRST / 40)
    for level in JUDGED_AT:
        curve = bench.curve()
        sums = curve.rates.sum(1)
        known = [abs(curve.at(strength)[0].sum() - level) for strength in bench.judged]
        if min(known) > NEAR:
            bench.read(round(float(np.interp(-level, -sums, curve.strengths)), 2), judged=True)


def _measure_towards(bench: Bench, sign: int) -> None:
    """Measure ever larger strengths of one sign until turning further changes nothing, or breaks the model."""
    good, broken, strength = 0.0, math.inf, FIRST
    while strength <= LAST and broken - good > max(good / 2, NARROW):
        if bench.loss(sign * strength) > BROKEN:
            broken = strength
        else:
            good = strength
            bench.read(round(sign * strength, 2))
            rates = bench.curve().at(sign * strength)[0]
            if (rates.max() if sign > 0 else 1 - rates.min()) < SETTLED:
                return
        strength = 2 * strength if broken == math.inf else (good + broken) / 2


def choose(bench: Bench, asked: Goal | float | None) -> DialSetting:
    """The setting that meets a goal, or has a strength, or (None) leaves the model as trained; checked by answers that
    are judged at it. Where a goal cannot be reached, it is what comes nearest."""
    stock, reached = bench.stock(), True
    strength = asked if isinstance(asked, float) else 0.0
    for _ in range(CHECKS):
        before = bench.curve()
        if isinstance(asked, Goal):
            found, reached = asked.strength(before, stock)
            strength = _judged_near(bench, round(found, 2) + 0.0)  # -0.0 is 0.0
        bench.read(strength, judged=True)
        if np.abs(bench.curve().at(strength)[0] - before.at(strength)[0]).max() < MOVED:
            break
    plain = bench.plain(strength)
    return DialSetting(
        strength, asked.name if isinstance(asked, Goal) else "none" if asked is None else "strength",
        asked.value if isinstance(asked, Goal) else None, reached, float(np.mean(plain)) if plain else None,
        stock, bench.curve(intervals=True), bench.pairs, bench.dial.gain, bench.gains, bench.counted,
    )  # fmt: skip


def _judged_near(bench: Bench, strength: float) -> float:
    """A strength with nearly the same rates whose answers were judged, if there is one, else the strength itself. Where
    the curve is flat, so that several have the same, it is the nearest."""
    curve = bench.curve()

    def away(other: float) -> float:
        return float(abs(curve.at(strength) - curve.at(other))[0].max())

    nearest = min(bench.judged, key=lambda other: (away(other), abs(other - strength)))
    return nearest if away(nearest) < MOVED else strength


def find_setting(
    run: Path, model: Model, data: Data, settings: Settings, asked: Goal | float | None, readers: Readers | None = None
) -> DialSetting:
    """Fit the dial of a run's DCR adapter, which is as trained, measure its curve and choose its strength; not yet
    recorded or set. What was measured before is not measured again, nor is a choice made twice. readers: the dial's, if
    they are fitted already."""
    measured = is_there(run)
    if not measured:  # a setting is of the dial that it was chosen for, and here one is fitted again
        (run / FOLDER / SETTING).unlink(missing_ok=True)
    bench = Bench(run / FOLDER, model, data, settings, readers)
    with progress_bar("The dial", MEASUREMENTS) as shown:
        bench.progress = shown.advance
        known = DialSetting.load(run / FOLDER) if measured else None
        if known:
            bench.recall(known.measured)
        else:
            measure_curve(bench)
        setting = known if known and known.was_asked(asked) else choose(bench, asked)
        shown.advance(max(0, MEASUREMENTS - shown.done))
    return setting


def is_there(run: Path) -> bool:
    """Whether the dial of a run is fitted and measured."""
    return all((run / FOLDER / name).exists() for name in (DIAL, SETTING))


def prepare(model: Model, settings: Settings) -> None:
    """Leave the DCR adapter of a run that trains nothing on the one map that carries the dial. Raises UserError, before
    hours of training, where a dial is to be set and layer L has no such map."""
    if settings.dial != "none" or settings.only_turned:
        module = carrier(model, settings.layer)[1]
        if settings.only_turned:
            adapters.keep_on(model, DCR, module)


def record(run: Path, setting: DialSetting) -> None:
    """Write dial.json and its picture."""
    setting.save(run / FOLDER)
    draw_dial(setting, run / FOLDER / "dial.png")


def restore(model: Model, run: Path) -> None:
    """Turn the dial of the DCR adapter, as trained, to the setting of a run."""
    set_strength(model, DCR, Dial.load(run / FOLDER / DIAL), DialSetting.load(run / FOLDER).strength)


@contextmanager
def as_trained(model: Model, run: Path) -> Iterator[None]:
    """Within the block the DCR adapter is as trained, after it as before."""
    if not is_there(run):
        yield
        return
    set_strength(model, DCR, Dial.load(run / FOLDER / DIAL), None)
    yield
    restore(model, run)
