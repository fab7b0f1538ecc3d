"""What Windows lacks is not needed: simulated here by taking it away, since no Windows machine has run the tests."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
POSIX_ONLY = ("resource", "fcntl", "termios", "pwd", "grp", "tty", "pty", "syslog")
SOURCES = sorted((ROOT / "dcr_lite").rglob("*.py")) + sorted((ROOT / "recipes").glob("*.py")) + [ROOT / "app.py"]

IMPORT_ALL = """
import builtins, importlib, pkgutil, sys

real = builtins.__import__

def without_posix(name, globals=None, locals=None, fromlist=(), level=0):
    if name in {posix} and str((globals or {{}}).get("__name__")).startswith("dcr_lite"):
        raise ImportError(f"no module {{name}} here")
    return real(name, globals, locals, fromlist, level)

builtins.__import__ = without_posix
import dcr_lite
for module in pkgutil.walk_packages(dcr_lite.__path__, "dcr_lite."):
    if not module.name.startswith("dcr_lite.recipes"):
        importlib.import_module(module.name)
from dcr_lite.model.free_memory import free_memory
from dcr_lite.run import machine
sys.platform = "win32"
machine.psutil.Process().memory_info()
print(free_memory("cpu") > 0)
"""


def test_every_module_imports_without_what_posix_alone_has() -> None:
    """Nothing of the kit asks for these modules when it is imported, nor for the free memory."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL.format(posix=POSIX_ONLY)], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip().endswith("True"), done.stderr[-1500:]


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
