"""Files: where shipped and cached ones lie, room on the disk, and writing that is whole or absent."""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from dcr_lite.errors import UserError

SHIPPED = Path(str(files("dcr_lite") / "data" / "shipped"))


def cache_folder() -> Path:
    """$DCR_LITE_CACHE, else dcr-lite in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("DCR_LITE_CACHE") or Path(base) / "dcr-lite")


def exists(path: str | Path) -> bool:
    """Whether there is such a file or folder; False too for a name that none can have, or that may not be looked up."""
    try:
        return Path(path).exists()
    except (OSError, ValueError):
        return False


def require_disk(folder: Path, needed: int) -> None:
    """Raises UserError where fewer than ``needed`` bytes are free in ``folder``, which may not exist yet."""
    existing = next(p for p in (folder, *folder.resolve().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{existing}: {free / 1e6:,.0f} MB free and {needed / 1e6:,.0f} MB needed. Free some disk.")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and put it in its place: a reader, or a run that goes on after the
    machine has stopped, finds the old file or the whole new one. What is half written is removed on an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 that is whole or absent; lone surrogates, which UTF-8 cannot hold, as their escapes."""
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(value: Any, path: Path) -> None:
    """Write JSON that is whole or absent."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Write JSON Lines that are whole or absent."""
    write_text(path, jsonl(rows))


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    """JSON Lines: one object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def load_json(path: Path) -> Any:
    """The value in a JSON file. Raises OSError where it cannot be read, and ValueError where it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None


def load_jsonl(path: Path) -> list[dict[str, Any]]:
    """The objects that ``write_jsonl`` wrote. An unfinished last line, which a killed process can leave, is dropped."""
    # Not splitlines(): it also cuts at the line separators of Unicode, which answers may hold.
    return [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
