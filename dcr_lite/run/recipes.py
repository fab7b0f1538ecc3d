"""Recipes by name or by file. They lie in recipes/ of a checkout, and in dcr_lite/recipes/ of an installed wheel."""

import ast
import contextlib
import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from dcr_lite.errors import UserError, first_line
from dcr_lite.settings import Settings

DEFAULT_RECIPE = "smollm2_135m"  # where none is named: it runs everywhere
PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folder() -> Path:
    """The folder of the recipes that come with dcr-lite."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_titles() -> dict[str, str]:
    """Each of these recipes by its name, with the first line of its docstring."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(recipe_folder().glob("*.py"))}
    return {name: (ast.get_docstring(tree) or "").partition("\n")[0] for name, tree in trees.items()}


def model_in(flags: Sequence[str]) -> str | None:
    """The model that flags name with --model, in either form; None where they name none."""
    for flag, value in zip(flags, [*flags[1:], ""], strict=True):
        if flag == "--model" and value:
            return value
        if flag.startswith("--model="):
            return flag.partition("=")[2] or None
    return None


def recipe_or_model(recipe: str | None, model: str | None) -> Path | Settings:
    """The file of a recipe by its name or path, by default SmolLM2's, or in its place the settings of a model without
    one. Raises UserError where both are given."""
    if recipe and model:
        raise UserError("--recipe and --model stand for each other: give one")
    return Settings.of_model(model) if model else find_recipe(recipe or DEFAULT_RECIPE)


def settings_of(recipe: Path | Settings) -> Settings:
    """The settings of a recipe's file, or those that stand for one."""
    settings: Settings = recipe if isinstance(recipe, Settings) else load_recipe(recipe).SETTINGS
    return settings


def find_recipe(name_or_path: str) -> Path:
    """The file of a recipe, given its name (``smollm2_135m``) or its path. Raises UserError where there is none."""
    named = recipe_folder() / f"{name_or_path}.py"
    for path in (named, Path(name_or_path)):
        with contextlib.suppress(OSError, ValueError):  # a name that cannot be a file's
            if path.is_file():
                return path
    raise UserError(
        f"{name_or_path}: no such recipe. Give the path of a recipe file, or one of {', '.join(recipe_titles())}."
    )


def load_recipe(path: Path) -> ModuleType:
    """The module of a recipe file, with SETTINGS and main. Raises UserError where it lacks one of them, or fails."""
    spec = importlib.util.spec_from_file_location(f"dcr_lite_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path}: not a recipe (its name does not end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:  # a recipe is a program: it can fail in any way
        raise UserError(f"{path}{_line_of(error, path)}: not a recipe that runs ({first_line(error)})") from None
    if not isinstance(getattr(module, "SETTINGS", None), Settings):
        raise UserError(f"{path}: not a recipe (it defines no SETTINGS)")
    if not callable(getattr(module, "main", None)):
        raise UserError(f"{path}: not a recipe (it defines no function main)")
    return module


def _line_of(error: Exception, path: Path) -> str:
    """Where in a recipe an error arose: ", line N", or nothing where that is not known."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f", line {line}" if line else ""
