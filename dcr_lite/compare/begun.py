"""How the run folder of a seed was begun: before settings were found, as a comparison's first seed, or with what that
had found, as the others."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.files import load_json
from dcr_lite.run.run_folder import FOUND_NAMES, RunFolder, read_found
from dcr_lite.settings import Settings

BASE = "base_of_methods"  # the note of what the methods beside DCR begin with
FITTED = ("surgical_*", "scans", "adacd", "prosafeprune", "actor*", "dpo_*")  # notes of those methods


def as_begun(settings: Settings) -> Settings:
    """The settings with which their run folder was begun, where they are other only in what has been found since; else
    the settings as they are, so that another value than the found one stays an error of ``RunFolder``."""
    found = read_found(settings.run)
    if found is None:
        return settings
    with suppress(ValueError, AttributeError, KeyError, TypeError):  # a damaged file, which RunFolder says
        begun = load_json(settings.run / "settings.json")["settings"]
        same = {name: {getattr(Settings, name), found[name]} for name in FOUND_NAMES}  # to be found, and found
        then = {name: begun[name] for name in FOUND_NAMES if {begun[name], getattr(settings, name)} <= same[name]}
        return replace(settings, **then)
    return settings


def require_same_base(run: RunFolder) -> None:
    """Raises UserError where the methods beside DCR have begun, in this folder of a model that refuses by itself, with
    safety SFT alone, as they did in earlier versions; else notes that they begin with the model."""
    if run.finished(BASE):
        return
    notes = run.note(BASE).parent
    if any(path for name in FITTED for path in notes.glob(f"{name}.json")):
        raise UserError(f"{run.path} was begun by an earlier version. Compare anew with another --out.")
    run.finish(BASE, {"model": "stock"})


def require_same(settings: Settings, found: dict[str, Any], folder: Path) -> None:
    """Raises UserError for settings that are given otherwise than the comparison in ``folder`` has found them."""
    for name in FOUND_NAMES:
        given = getattr(settings, name)
        if given not in (getattr(Settings, name), found[name]):
            raise UserError(
                f"{folder} was begun with other settings ({name}: {found[name]} then, {given} now). Restore them, or "
                "compare anew with another --out."
            )
