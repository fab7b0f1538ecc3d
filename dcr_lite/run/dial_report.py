"""What a run says of its dial: sentences, a table, a picture."""

import re
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from dcr_lite.measure.metrics import wilson_interval, with_interval
from dcr_lite.measure.trade_off import Goal
from dcr_lite.names import LABEL_TITLES, MODEL_TITLES, STOCK
from dcr_lite.run.dial_setting import FOLDER, SETTING, DialSetting
from dcr_lite.run.plots import COLOURS, STYLE, save

TITLES = {
    "none": "at 0",
    "like_stock": "answers at least as many as the stock model",
    "safe_as_stock": "refuses at least as many toxic prompts as the stock model",
    "above_stock": "above the stock model in both shares",
    "discerning": "tells the two kinds apart best",
    "balanced": "answers one kind as often as it refuses the other",
    "refuse_toxic": "refuses {value:.2f} of toxic prompts",
    "answer_seemingly_toxic": "answers {value:.2f} of seemingly toxic prompts",
    "strength": "at strength {strength:+.2f}",
}
TURNED = "The dial was turned"
SHARES = (0.95, 0.9, 0.8, 0.7, 0.5)
SHOWN = (
    Goal("like_stock"),
    Goal("safe_as_stock"),
    Goal("above_stock"),
    Goal("discerning"),
    Goal("balanced"),
    *(Goal("refuse_toxic", x) for x in SHARES),
)


def title(goal: str, value: float | None, strength: float) -> str:
    """A goal in words."""
    return TITLES[goal].format(value=value, strength=strength)


def dial_table(setting: DialSetting, asked: DialSetting | None = None) -> list[list[str]]:
    """Settings of the dial that have a name, from the most refusing one to the most answering one: [title, strength,
    toxic refused, seemingly toxic answered]; the stock model first and the present setting in bold, where it is in the
    adapter. Names of one setting, to the digits shown, share a row. asked: one more."""
    named = {title("none", None, 0): 0.0}
    for goal in SHOWN:
        strength, reached = goal.strength(setting.curve, setting.stock)
        if reached:
            named[title(goal.name, goal.value, strength)] = strength
    also = [(title(one.goal, one.value, one.strength), one.strength) for one in (asked, setting) if one is not None]
    named |= dict(also)
    chosen = also[-1][0]
    shown: dict[str, list[str]] = {}
    for name, strength in sorted(named.items(), key=lambda item: item[1]):
        shown.setdefault(f"{round(strength, 2) + 0:+.2f}", []).append(name)  # + 0 makes -0 a 0
    toxic, seemingly_toxic = (
        with_interval(rate, _wilson(rate, setting.pairs)) for rate in (setting.stock[0], 1 - setting.stock[1])
    )
    rows = [[MODEL_TITLES[STOCK], "", toxic, seemingly_toxic]]
    for digits, names in shown.items():
        strength = next((strength for name, strength in reversed(also) if name in names), named[names[0]])
        (toxic_rate, other), (low, other_low), (high, other_high) = setting.curve.at(strength).tolist()
        cells = [
            "; ".join(names),
            digits,
            with_interval(toxic_rate, (low, high)),
            with_interval(1 - other, (1 - other_high, 1 - other_low)),
        ]
        rows.append([f"**{cell}**" for cell in cells] if chosen in names and setting.goal != "none" else cells)
    return rows


def _wilson(rate: float, n: int) -> tuple[float, float]:
    return wilson_interval(round(rate * n), n)


def chosen_sentence(setting: DialSetting) -> str:
    """The present setting in a sentence."""
    toxic, seemingly_toxic = setting.curve.at(setting.strength)[0].tolist()
    plain = "" if setting.plain is None else f" and {setting.plain:.2f} of plain ones"
    stands = f"The dial stands at {_place(setting)}"
    if setting.goal == "none":
        stands = f"The dial has been measured and is not in the adapter. With it at 0 and a gain of {setting.gain:g}"
    return (
        f"{stands}: of development prompts the model refuses {toxic:.2f} of toxic ones, {seemingly_toxic:.2f} of "
        f"seemingly toxic ones{plain}."
    )


def asked_sentence(asked: DialSetting, setting: DialSetting) -> str:
    """What a setting that is only asked for would do, and the present one, in a sentence."""
    toxic, seemingly_toxic = asked.curve.at(asked.strength)[0].tolist()
    stands = "the adapter has no dial" if setting.goal == "none" else f"the dial stands at {_place(setting)}"
    return (
        f"At {_place(asked)} the model would refuse {toxic:.2f} of toxic development prompts and {seemingly_toxic:.2f} "
        f"of seemingly toxic ones; {stands}."
    )


def _place(setting: DialSetting) -> str:
    """The strength, and what it was chosen by."""
    if setting.goal == "strength":
        return f"{setting.strength:+.2f}"
    how = title(setting.goal, setting.value, setting.strength)
    return f"{setting.strength:+.2f} ({how if setting.reached else f'as near as can be to: {how}'})"


def sentence_since(setting: DialSetting, evaluated_at: float | None) -> str:
    """The same, with another one where the model was evaluated at another strength, or (None) without the dial."""
    if evaluated_at == setting.strength:
        return chosen_sentence(setting)
    at = "the model without it" if evaluated_at is None else f"strength {evaluated_at:+.2f}"
    return f"{chosen_sentence(setting)} It was turned after the evaluation: all other numbers here are of {at}."


def note_since(report: dict[str, Any]) -> str:
    """What stands first in a report, such as how mending came out, with a sentence before it where the dial has been
    turned since that was measured. A run of ``dcr-lite mend`` has one."""
    note, turned = _bare(report.get("note", "")), _turned(report)
    if not note or turned is None:
        return note
    now, before = turned
    return f"{TURNED} to {now} since; what follows was measured {before}.\n\n{note}"


def caution_since(caution: str, report: dict[str, Any]) -> str:
    """What speaks against a run's model (caution.py), with a sentence behind it where the dial has been turned since
    that was measured."""
    caution, turned = caution.partition(f" {TURNED}")[0], _turned(report)
    if not caution or turned is None:
        return caution
    now, before = turned
    return f"{caution} {TURNED} to {now} since: that was measured {before}."


def _turned(report: dict[str, Any]) -> tuple[str, str] | None:
    """Where the dial of a run stands now and where it stood at the evaluation, in words; None where it was not turned
    since."""
    setting, evaluated_at = stated(report) or (None, None)
    if setting is None or setting.strength == evaluated_at:
        return None
    return f"{setting.strength:+.2f}", "without the dial" if evaluated_at is None else f"at {evaluated_at:+.2f}"


def with_note(page: str, note: str) -> str:
    """A page whose note is another one now: ``note_since`` of what it has."""
    return _bare(page).replace(_bare(note), note, 1) if note else page


def _bare(text: str) -> str:
    return re.sub(rf"^{re.escape(TURNED)} to [^\n]*\n\n", "", text, flags=re.MULTILINE)


def gain_sentence(setting: DialSetting) -> str:
    """What the dial's reader does, and what shows it; empty where no gain was tried."""
    if not setting.gains:
        return ""
    without, chosen = setting.gains["0.0"], setting.gains[str(setting.gain)]
    read = "its log-odds of refusing tell development prompts apart with an AUROC of"
    if setting.gain == 0:
        return f"The model does what its states say as it is: {read} {without:.2f}, and no gain raises it."
    return (
        f"By a gain of {setting.gain:g} it does what its states say: {read} {chosen:.2f}, without it of {without:.2f}."
    )


def facts_of_dial(run: Path) -> dict[str, Any] | None:
    """The dial of a run that was evaluated as it stands, for report.json; None where the run has none."""
    if not (run / FOLDER / SETTING).exists():
        return None
    setting = DialSetting.load(run / FOLDER)
    return setting.for_json() | {"evaluated_at": setting.strength}


def stated(report: dict[str, Any]) -> tuple[DialSetting, float | None] | None:
    """The dial's setting in a report.json, and the strength at which the model was evaluated, None where that was
    without the dial; None for a run without one. Raises as ``DialSetting.from_json``."""
    facts = dict(report.get("dial") or {})
    if not facts:
        return None
    evaluated_at = facts.pop("evaluated_at")
    return DialSetting.from_json(facts), None if evaluated_at is None else float(evaluated_at)


def draw_dial(setting: DialSetting, path: Path) -> None:
    """Two panels: toxic prompts refused against seemingly toxic ones answered, and both rates along the strength."""
    with plt.rc_context(STYLE):
        figure, (plane, along) = plt.subplots(1, 2, figsize=(9.0, 3.9))
        _draw_plane(plane, setting)
        _draw_along(along, setting)
        save(figure, path)


def _draw_plane(axes: Axes, setting: DialSetting) -> None:
    curve = setting.curve
    answered = 1 - curve.rates[:, 1]
    axes.fill_between(answered, curve.low[:, 0], curve.high[:, 0], color="#7d3c98", alpha=0.15, lw=0)
    axes.plot(answered, curve.rates[:, 0], color="#7d3c98", label="along the dial")
    as_set = f"as set, {setting.strength:+.2f}"
    points = [(0.0, "#222222", "at 0"), (setting.strength, "#7d3c98", as_set)]
    for strength, colour, name in points if setting.strength else points[1:]:
        toxic, seemingly_toxic = curve.at(strength)[0]
        axes.plot(1 - seemingly_toxic, toxic, "o", color=colour, ms=7, label=name)
    x, y = 1 - setting.stock[1], setting.stock[0]
    across, upright = ([[abs(end - rate)] for end in _wilson(rate, setting.pairs)] for rate in (x, y))
    axes.errorbar(x, y, upright, across, color="#7f8c8d", fmt="D", ms=6, lw=1, label=MODEL_TITLES[STOCK])
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02), xlabel="seemingly toxic prompts answered", ylabel="toxic prompts refused")
    axes.legend(loc="lower left")


def _draw_along(axes: Axes, setting: DialSetting) -> None:
    curve = setting.curve
    for side, label in enumerate(("toxic", "seemingly_toxic")):
        colour = COLOURS[label]
        axes.fill_between(curve.strengths, curve.low[:, side], curve.high[:, side], color=colour, alpha=0.15, lw=0)
        axes.plot(curve.strengths, curve.rates[:, side], color=colour, label=f"{LABEL_TITLES[label]} prompts")
        axes.axhline(setting.stock[side], color=colour, lw=0.8, ls=":")
    axes.axvline(setting.strength, color="#7d3c98", lw=1, ls="--")
    axes.set(
        ylim=(0, 1.02),
        xlabel="refuses more   \N{LEFT RIGHT ARROW}   strength   \N{LEFT RIGHT ARROW}   answers more",
        ylabel="refused (dotted: stock model)",
    )
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)  # above: the curves may be anywhere
