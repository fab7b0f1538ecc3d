"""The packages import each other one way only, as each package's docstring says."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "dcr_lite"
PACKAGES = sorted(folder.name for folder in ROOT.iterdir() if (folder / "__init__.py").exists())
LEAVES = {"errors", "names", "files", "settings", "interrupts"}  # that every package may import


def allowed_for(package: str) -> set[str]:
    """The packages that a package's docstring allows it to import."""
    docstring = ast.get_docstring(ast.parse((ROOT / package / "__init__.py").read_text(encoding="utf-8"))) or ""
    found = re.search(r"May import: ([a-z, ]+)\.", docstring)
    assert found, f"{package}/__init__.py does not say what it may import"
    return set(found[1].split(", ")) - {"nothing"}


def imported_by(path: Path) -> set[str]:
    """The modules of ours that a file imports, as dotted names below dcr_lite, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "dcr_lite":
            base = ".".join(str(node.module).split(".")[1:])
            for alias in node.names:
                whole = f"{base}.{alias.name}".strip(".")
                found.add(whole if (ROOT / (whole.replace(".", "/") + ".py")).exists() else base)
    return found - {""}


def circles(graph: dict[str, set[str]]) -> list[str]:
    """Nodes that can be reached from themselves."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph.get(todo.pop(), set()) - seen
            seen |= new
            todo += new
        return seen

    return [node for node in graph if node in reached(node)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_what_its_docstring_allows(package: str) -> None:
    """Every module of a package imports from itself, from the leaves, and from the packages that are named there."""
    allowed = allowed_for(package) | {package} | LEAVES
    for path in (ROOT / package).glob("*.py"):
        others = {module.split(".")[0] for module in imported_by(path)} - allowed
        assert not others, f"{path.name} imports {others}"


def test_packages_import_each_other_one_way() -> None:
    """What the docstrings allow holds no circle, and no package may import the command line."""
    graph = {package: allowed_for(package) for package in PACKAGES}
    assert not circles(graph)
    assert "cli" not in {name for names in graph.values() for name in names}


def test_leaves_import_only_leaves() -> None:
    """errors, names, files, settings and interrupts import nothing but each other."""
    for leaf in LEAVES:
        assert imported_by(ROOT / f"{leaf}.py") <= LEAVES


def test_modules_import_each_other_one_way() -> None:
    """No module imports itself by way of others."""
    paths = [path for path in ROOT.rglob("*.py") if path.name != "__init__.py"]
    graph = {".".join(path.relative_to(ROOT).with_suffix("").parts): imported_by(path) for path in paths}
    assert not circles(graph)
