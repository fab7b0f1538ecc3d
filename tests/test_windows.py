"""What Windows lacks is not needed: simulated here by taking it away, since no Windows machine has run the tests."""

import ast
import builtins
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

import pytest
from warm import Warm

ROOT = Path(__file__).parent.parent
POSIX_ONLY = ("resource", "fcntl", "termios", "pwd", "grp", "tty", "pty", "syslog")
SOURCES = sorted((ROOT / "dcr_lite").rglob("*.py")) + sorted((ROOT / "recipes").glob("*.py")) + [ROOT / "app.py"]


def import_all() -> None:
    """Import every module of the kit anew, where the modules of POSIX_ONLY are missing."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "dcr_lite"]:
        del sys.modules[name]
    real = builtins.__import__

    def without_posix(name: str, globals: Any = None, *rest: Any) -> Any:
        if name in POSIX_ONLY and str((globals or {}).get("__name__")).startswith("dcr_lite"):
            raise ImportError(f"no module {name} here")
        return real(name, globals, *rest)

    builtins.__import__ = without_posix
    import dcr_lite

    for module in pkgutil.walk_packages(dcr_lite.__path__, "dcr_lite."):
        if not module.name.startswith("dcr_lite.recipes"):
            importlib.import_module(module.name)
            print(module.name)
    from dcr_lite.model.free_memory import free_memory
    from dcr_lite.run import machine

    sys.platform = "win32"
    machine.psutil.Process().memory_info()
    print(free_memory("cpu") > 0)


def test_every_module_imports_without_what_posix_alone_has(tmp_path: Path) -> None:
    """Nothing of the kit asks for these modules when it is imported, nor for the free memory."""
    code, out, err = Warm(import_all, tmp_path).wait()
    assert code == 0, err[-1500:]
    *imported, plausible = out.split()
    assert plausible == "True"
    assert len(imported) >= len([path for path in SOURCES if path.is_relative_to(ROOT / "dcr_lite")]) - 1


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_are_read_and_written_as_utf8(path: Path) -> None:
    """Windows takes another encoding where none is named: every call that reads or writes text names it. None forks."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        named = {keyword.arg for keyword in node.keywords}
        if name in ("read_text", "write_text") and isinstance(node.func, ast.Attribute):
            owner = ast.unparse(node.func.value)
            assert "encoding" in named or owner.startswith("Path('/proc"), f"{path.name}:{node.lineno}"
        if (name == "open" and isinstance(node.func, ast.Name)) or (name == "open" and "mode" in named):
            mode = [ast.unparse(argument) for argument in node.args[1:2]]
            assert "encoding" in named or any("b" in word for word in mode), f"{path.name}:{node.lineno}"
        assert ast.unparse(node.func) != "os.fork", f"{path.name}:{node.lineno}"


def test_a_whole_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """By os.replace, which overwrites on Windows too, and after the file is closed, which Windows insists on."""
    from dcr_lite.files import write_text

    write_text(tmp_path / "a.txt", "one")
    before = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    write_text(tmp_path / "a.txt", "two")
    after = set(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else set()
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "two"
    assert len(after) <= len(before)
