"""What pyproject.toml, the constraints and the lock say of the dependencies."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DEPENDENCIES = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["dependencies"])}
DEMO = {canonicalize_name(r.name): r for r in map(Requirement, PROJECT["optional-dependencies"]["demo"])}
BY_TRANSFORMERS = {"accelerate", "bitsandbytes", "jinja2"}  # imported there: loading, 4 bits, chat templates


def imported() -> set[str]:
    """The distributions that the package, the recipes and app.py import."""
    modules = set()
    for path in [*(ROOT / "dcr_lite").rglob("*.py"), *(ROOT / "recipes").glob("*.py"), ROOT / "app.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(str(node.module).split(".")[0])
    distributions = packages_distributions()
    foreign = modules - sys.stdlib_module_names - {"dcr_lite"}
    return {canonicalize_name(distributions[module][0]) for module in foreign}


def pins(name: str) -> dict[str, Version]:
    """The versions that a file of constraints pins."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return {canonicalize_name(n): Version(v) for n, v in re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)}


def test_every_import_is_declared_and_every_dependency_is_imported() -> None:
    """Nothing is left to what other packages happen to bring; nothing is installed that nobody imports."""
    found = imported()
    assert found == (DEPENDENCIES.keys() | DEMO.keys()) - (BY_TRANSFORMERS - found)


@pytest.mark.parametrize("name", sorted(DEPENDENCIES | DEMO))
def test_a_range_has_two_ends_and_the_tested_versions_lie_in_it(name: str) -> None:
    """constraints-lowest.txt holds the lower end, constraints.txt a version within."""
    specifier = (DEPENDENCIES | DEMO)[name].specifier
    ends = {one.operator: Version(one.version) for one in specifier}
    assert ends.keys() == {">=", "<"}
    assert pins("constraints-lowest.txt")[name] == ends[">="]
    assert pins("constraints.txt")[name] in specifier


def test_the_lock_holds_the_constraints_and_no_address() -> None:
    """requirements.lock pins what constraints.txt pins, each with hashes, whatever index they come from."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    locked, constrained = pins("requirements.lock"), pins("constraints.txt")
    assert locked.keys() >= DEPENDENCIES.keys() | DEMO.keys()
    assert all(locked[name] == constrained[name] for name in locked.keys() & constrained.keys())
    assert all("--hash=sha256:" in entry for entry in re.split(r"\n(?=\S)", text.strip()))
