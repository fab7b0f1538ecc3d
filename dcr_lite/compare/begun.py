"""How the run folder of a seed was begun: before settings were found, as a comparison's first seed, or with what that
had found, as the others."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError
from dcr_lite.files import load_json
from dcr_lite.run.run_folder import FOUND_NAMES, read_found
from dcr_lite.settings import Settings


def as_begun(settings: Settings) -> Settings:
    """The settings with which their run folder was begun, where they are other only in what has been found since; else
    the settings as they are, so that another value than the found one stays an error of ``RunFolder``."""
    found = read_found(settings.run)
    if found is None:
        return settings
    with suppress(ValueError, AttributeError, KeyError, TypeError):  # a damaged file, which RunFolder says
        begun = load_json(settings.run / "settings.json")["settings"]
        # To be found, and found; what an older comparison did not search for stays as it was begun.
        same = {name: {getattr(Settings, name), found.get(name, begun[name])} for name in FOUND_NAMES}
        then = {name: begun[name] for name in FOUND_NAMES if {begun[name], getattr(settings, name)} <= same[name]}
        return replace(settings, **then)
    return settings


def require_same(settings: Settings, found: dict[str, Any], folder: Path) -> None:
    """Raises UserError for settings that are given otherwise than the comparison in ``folder`` has found them."""
    for name in FOUND_NAMES:
        given = getattr(settings, name)
        if given not in (getattr(Settings, name), found.get(name, given)):
            raise UserError(
                f"{folder} was begun with other settings ({name}: {found[name]} then, {given} now). Restore them, or "
                "compare anew with another --out."
            )
