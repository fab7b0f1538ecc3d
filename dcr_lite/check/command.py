"""dcr-lite check: what a run of a recipe will meet on this machine, as a page or as JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tyro

from dcr_lite import __version__
from dcr_lite.check import worker
from dcr_lite.check.worker import Findings
from dcr_lite.files import exists
from dcr_lite.names import short_name
from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import DEFAULT_RECIPE, find_recipe, load_recipe, model_in
from dcr_lite.run.void_flags import require_effect
from dcr_lite.settings import Settings

DESCRIPTION = """What a run of the recipe will meet on this machine, found in about two minutes: card, driver and torch,
4-bit products, the Hub and its gated models, disk, the longest rows, and three steps of each stage on the model's shape
with random weights. Nothing is trained or fetched. Exits with 1 where something stands in the way."""
# Absolute ones, and those that begin with dots, behind no letter of a name or an address.
PATHS = re.compile(r"(?<![\w:/.~-])(?:\.{0,2}/|\.{1,2}\\|~/|[A-Za-z]:\\)[^\s,:;'\"()]+")


@dataclass(kw_only=True)
class Check(Settings):
    """The settings of the run that is checked."""

    json: bool = False
    """Print one JSON object instead of the page: what a bug report needs. It holds no token and no path."""


def check(words: tuple[str, ...]) -> bool:
    """Check the recipe that is named first, or the model behind --model, with the flags, and print what was found. True
    where nothing stands in the way."""
    from dcr_lite.check.page import Progress, show

    named = bool(words) and not words[0].startswith("-")
    recipe, flags = (words[0], words[1:]) if named else (DEFAULT_RECIPE, words)
    if not named and (model := model_in(words)) is not None:
        name, defaults = "a folder" if exists(model) else short_name(model), Settings.of_model(model)
    else:
        name, defaults = Path(recipe).stem, load_recipe(find_recipe(recipe)).SETTINGS
    asked = tyro.cli(
        Check,
        default=Check(**_values(defaults)),
        args=flags,
        prog=f"dcr-lite check {recipe if named else ''}".rstrip(),
        description=DESCRIPTION,
    )
    require_effect(asked, flags)
    settings = _begun_with(Settings(**{k: v for k, v in _values(asked).items() if k != "json"}))
    with Progress() as progress:
        findings = worker.look(settings, progress.begin)
    report = report_of(name, settings, findings)
    if asked.json:
        import json

        print(json.dumps(without_names(report, _folders(settings)), indent=2, ensure_ascii=False))
    else:
        show(report, findings)
    return bool(report["ready"])


def _values(settings: Settings) -> dict[str, Any]:
    return {field.name: getattr(settings, field.name) for field in fields(settings)}


def _begun_with(settings: Settings) -> Settings:
    """The settings with the model to begin with and the data of that; nothing is fetched for it."""
    begun = resolved(replace(settings, data="shipped"))
    data = settings.data or ("full" if settings.from_base_model else "shipped")
    return replace(settings, model=begun.model, chat_format=begun.chat_format, data=data)


def report_of(name: str, settings: Settings, findings: Findings) -> dict[str, Any]:
    """Everything that was found as plain JSON values. docs/running.md lists the keys."""
    problems = [problem for finding in findings.values() for problem in finding.problems]
    parts = {
        name: {
            **finding.values,
            "problems": finding.problems,
            "notes": finding.notes,
            "seconds": round(finding.seconds, 2),
            "cut_short": finding.cut_short,
        }
        for name, finding in findings.items()
    }
    return {
        "dcr_lite": __version__,
        "recipe": name,
        "ready": not problems,
        "problems": problems,
        "seconds": round(sum(finding.seconds for finding in findings.values()), 1),
        "settings": {name: value for name, value in settings.for_json().items() if name not in _paths(settings)},
        **parts,
    }


def _paths(settings: Settings) -> set[str]:
    return {name for name, value in (_values(settings) | settings.files).items() if isinstance(value, Path | tuple)}


def _folders(settings: Settings) -> list[str]:
    """The models that are folders, as they were given: "models/alice" looks like a name on the Hub."""
    return [name for name in (settings.model, settings.base_model) if name and re.search(r"\w", name) and exists(name)]


def without_names(value: Any, folders: Sequence[str] = ()) -> Any:
    """The same without what names a person: tokens of the Hub, folders of users, the folder of a local model, which
    ``folders`` names where it may not look like one."""
    if isinstance(value, dict):
        return {without_names(k, folders): without_names(v, folders) for k, v in value.items()}
    if isinstance(value, list):
        return [without_names(item, folders) for item in value]
    if not isinstance(value, str):
        return value
    text = re.sub(r"\bhf_\w{8,}", "hf_...", value)
    for folder in folders:
        text = re.sub(rf"(?<![\w./~-]){re.escape(folder)}(?![\w-])", "(folder)", text)
    return PATHS.sub(lambda path: _name(path[0]), text)


def _name(path: str) -> str:
    """The name of a file; of a folder, which may be a person's, nothing."""
    name = re.split(r"[/\\]", path)[-1]
    return name if "." in name.strip(".") else "(folder)"
