"""``dcr-lite dial``: shows how much a finished run's model refuses along its dial, and turns it."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.markdown import Markdown

from dcr_lite.errors import UserError
from dcr_lite.files import OnlyOne, damaged, load_json, load_tensors, remove_partials, write_json, write_text
from dcr_lite.measure.trade_off import Goal
from dcr_lite.method.dial import Dial, set_strength
from dcr_lite.model import adapters
from dcr_lite.model.loading import Model
from dcr_lite.names import DCR
from dcr_lite.run import dial, inputs, opening
from dcr_lite.run.caution import caution_of, set_caution
from dcr_lite.run.dial_bench import DIAL
from dcr_lite.run.dial_report import (
    asked_sentence,
    caution_since,
    chosen_sentence,
    dial_table,
    note_since,
    stated,
    with_note,
)
from dcr_lite.run.dial_setting import FOLDER, DialSetting
from dcr_lite.run.discernment import FILE
from dcr_lite.run.inputs import Data
from dcr_lite.run.joined import with_joined_counted
from dcr_lite.run.long_rows import rows_of_run
from dcr_lite.run.model_card import model_card
from dcr_lite.run.report import DIAL_HEAD, DIAL_HEADING, dial_section, markdown_table
from dcr_lite.run.run_folder import read_settings
from dcr_lite.run.terminal import console
from dcr_lite.settings import Device, Settings

CURE = "Restore the run folder, or choose another run."
WANT = (
    "--refuse-toxic, --answer-seemingly-toxic, --like-stock, --safe-as-stock, --above-stock, --discerning, --balanced "
    "or --strength"
)


def asked_for(flags: dict[str, Any]) -> Goal | float | None:
    """What the flags ask for, by their names; None where nothing is. Raises UserError for more than one of them, and
    for shares that are none."""
    given = {name: value for name, value in flags.items() if value is not None and value is not False}
    if len(given) > 1:
        raise UserError(f"the dial has one setting: choose one of {WANT}")
    for name, value in given.items():
        if name == "strength":
            return float(value) + 0.0  # -0.0 is 0.0
        if value is not True and not 0 <= value <= 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: a share of prompts, from 0 to 1")
        return Goal(name, None if value is True else value)  # type: ignore[arg-type]  # the flags bear the goals' names
    return None


def turn(run: Path, asked: Goal | float | None, put: bool, device: Device) -> None:
    """Show the dial of a finished run and, if ``asked`` for, what another setting of it would do; ``put`` writes that
    to the run. A dial that a run does not have yet is fitted and measured.

    Raises UserError for a run that is not finished, and for a setting that cannot be reached.
    """
    settings = replace(read_settings(run), device=device)
    if put and asked is None:
        raise UserError(f"--set: say how much the model is to refuse, with {WANT}")
    report = _report(run)
    with OnlyOne(run / FOLDER / "dial.lock", "turn the dial of another run"):
        remove_partials(run / FOLDER)
        opened = None
        if not dial.is_there(run):
            opened = open_as_trained(settings)
            dial.record(run, as_it_stands(dial.find_setting(run, *opened, settings, None), report))
        setting = DialSetting.load(run / FOLDER)
        wanted = None if asked is None else setting.turned_to(asked)  # raises for what cannot be reached
        if put:
            setting = _set(run, *(opened or open_as_trained(settings)), settings, asked, report)
        if put or setting.was_asked(asked):
            wanted = None
    said = chosen_sentence(setting) if wanted is None else asked_sentence(wanted, setting)
    console.print(Markdown(f"{markdown_table(DIAL_HEAD, dial_table(setting, wanted))}\n\n{said}"))
    if wanted is not None:
        console.print("\n--set writes this to the run's adapter, after a check by judged answers.")


def _report(run: Path) -> dict[str, Any]:
    opening.require_finished(run)
    try:
        report = with_joined_counted(dict(load_json(run / "report.json")), run)
        stated(report)
    except (OSError, LookupError, TypeError, ValueError):
        raise damaged(run / "report.json", CURE) from None
    return report


def as_it_stands(measured: DialSetting, report: dict[str, Any]) -> DialSetting:
    """A dial that was measured again, at the setting that the run's adapter has; not set where the run had none."""
    if (found := stated(report)) is None:
        return measured
    before, _ = found
    kept = {name: getattr(before, name) for name in ("strength", "goal", "value", "reached", "plain")}
    return replace(measured, **kept)


def open_as_trained(settings: Settings) -> tuple[Model, Data]:
    """The model of a run with its DCR adapter as trained, and the run's data."""
    data = inputs.load_data(settings)
    model, _ = opening.load_model(settings)
    dial.prepare(model, settings)
    stages = [settings.run / name / adapters.WEIGHTS for name in ("stage2", "stage1")]
    trained = next((file for file in stages if file.exists()), stages[-1])
    adapters.set_adapter_weights(model, DCR, load_tensors(trained, CURE))
    return model, rows_of_run(model, data, settings)


def _set(
    run: Path, model: Model, data: Data, settings: Settings, asked: Goal | float | None, report: dict[str, Any]
) -> DialSetting:
    """Turn the dial of a run, opened as trained, and say so wherever the run speaks of it; returns the setting, checked
    by answers."""
    setting = dial.find_setting(run, model, data, settings, asked)
    before = stated(report)
    report["dial"] = setting.for_json() | {"evaluated_at": before[1] if before else None}
    report["note"], caution = note_since(report), caution_since(caution_of(run), report)

    def beside(folder: Path) -> None:
        if (run / "adapter" / FILE).exists():
            shutil.copyfile(run / "adapter" / FILE, folder / FILE)
        write_text(folder / "README.md", model_card(report, "adapter", caution))

    set_strength(model, DCR, Dial.load(run / FOLDER / DIAL), setting.strength)
    adapters.save_adapter(model, DCR, run / "adapter", beside)
    dial.record(run, setting)
    set_caution(run, caution)
    write_json(report, run / "report.json")
    for page in (run / "report.md", run / "mend.md"):  # the note stands first in both
        if page.exists():
            text = page.read_text(encoding="utf-8")
            text = with_note(text, report["note"])
            write_text(page, with_section(text, dial_section(report, run)) if page.name == "report.md" else text)
    return setting


def with_section(page: str, section: str) -> str:
    """report.md with another section on the dial, in the place of the one it has, or before the states."""
    old = re.search(rf"^{DIAL_HEADING}\n.*?(?=^## )", page, re.MULTILINE | re.DOTALL)
    start, end = old.span() if old else (page.find("## States of layer"),) * 2
    return page[:start] + section + page[end:]
