"""Files: where shipped and cached ones lie, room on the disk, and writing that is whole or absent."""

import errno
import hashlib
import json
import os
import re
import shutil
import weakref
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib.resources import files
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from dcr_lite.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PARTIAL = ".partial"  # ends the name of what is being written: never read, and removed by whoever goes on
LINE_CURE = "Restore the file from a copy, or remove that line."
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
    if (free := shutil.disk_usage(existing).free) < needed:
        raise UserError(f"{existing}: {free / 1e6:,.0f} MB free and {needed / 1e6:,.0f} MB needed. Free some disk.")


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none; of one that goes meanwhile none are counted."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def beside(path: Path, ending: str) -> Path:
    """Another file of a result: of its name only .json is left out, since the end of dial_0.1 is none."""
    return path.with_name(path.name.removesuffix(".json") + ending)


def set_aside(path: Path) -> None:
    """Keep a file that is in the way, unless it is empty, under its name with a number."""
    if path.exists() and path.stat().st_size:
        places = (path.with_name(f"{path.stem}.{number}{path.suffix}") for number in count(1))
        path.replace(next(place for place in places if not place.exists()))


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a file beside ``path`` and put it in its place: a reader, or a run that goes on after the
    machine has stopped, finds the old file or the whole new one. What is half written is removed on an error.

    Raises OSError, with ``path`` in it, for what the system does not allow.
    """
    partial = path.with_name(path.name + PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(partial)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException as error:
        _remove(partial)
        raise _as_os_error(error, path) or error from None


def write_whole_folder(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a folder beside ``path`` and put it in its place: a reader finds all of its files or none. An
    older one stays until then; where the process is killed between the two, whoever writes the folder next finds it in
    its place again."""
    partial, old = (path.with_name(path.name + end) for end in (PARTIAL, ".old" + PARTIAL))
    try:
        _put_back(old, path)
        _remove(partial)
        partial.mkdir(parents=True)
        write(partial)
        for file in filter(Path.is_file, partial.rglob("*")):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.replace(old)
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):
            _put_back(old, path)
        _remove(partial)
        raise _as_os_error(error, path) or error from None
    _remove(old)


def _put_back(old: Path, path: Path) -> None:
    if old.exists() and not path.exists():
        old.replace(path)
    _remove(old)


def _remove(path: Path) -> None:
    """Remove a file or a folder, where there is one and it can be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):  # a folder that cannot be written either: the first error says so
        path.unlink(missing_ok=True)


def remove_partials(folder: Path) -> None:
    """Remove what a killed process was writing in a folder. For whoever is alone there."""
    for path in folder.rglob("*" + PARTIAL):
        _remove(path)


def _as_os_error(error: BaseException, path: Path) -> OSError | None:
    """The error as an OSError that names ``path``; None for one of another kind. safetensors and tokenizers, whose
    writers are Rust, and shutil.copytree raise errors of their own with the system's number in the text."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, OSError) and error.filename and PARTIAL not in os.fsdecode(error.filename):
        return error  # it read another file
    words = r"\[Errno (\d+)\]" if isinstance(error, shutil.Error) else r"\(os error (\d+)\)"
    if isinstance(error, Exception) and (found := re.search(words, str(error))):
        number = int(found[1])
    if isinstance(error, OSError) and re.search(r"\d+ requested and \d+ written", str(error)):
        number = errno.ENOSPC  # numpy's words for a write that was cut short
    return None if number is None else OSError(number, os.strerror(number), str(path))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 that is whole or absent; lone surrogates, which UTF-8 cannot hold, as their escapes."""
    raw = text.encode("utf-8", "backslashreplace")  # as bytes: Windows would end its lines by two characters
    write_whole(path, lambda partial: partial.write_bytes(raw))


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


def load_jsonl(path: Path, cure: str = LINE_CURE) -> list[dict[str, Any]]:
    """The objects that ``write_jsonl`` wrote. An unfinished last line, which a killed process can leave, is dropped.
    Raises UserError, which ends with ``cure``, for any other line that is damaged."""
    rows = []
    # Not splitlines(): it also cuts at the line separators of Unicode, which answers may hold.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            rows.append(dict(json.loads(line)))
        except (ValueError, TypeError, RecursionError):
            raise damaged_line(path, number, cure) from None
    return rows


class OnlyOne:
    """A lock on the file ``path``, which this process holds until ``leave()`` or its end, however that comes."""

    def __init__(self, path: Path, elsewhere: str):
        """Raises UserError, with ``elsewhere`` as the cure, where another process holds it."""
        self.path = path
        self._lock = FileLock(path, is_singleton=True)  # a notebook may open the same folder twice
        made = not path.parent.exists()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(f"{self._holder()} works in {path.parent}. Wait for its end, or {elsewhere}.") from None
        with suppress(OSError):  # Windows locks the file against writing too
            path.write_text(str(os.getpid()), encoding="utf-8")
        self.leave = weakref.finalize(self, _release, self._lock, path, made)

    def _holder(self) -> str:
        with suppress(OSError):
            if number := self.path.read_text(encoding="utf-8"):
                return f"another command of this kit (process {number})"
        return "another command of this kit"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        self.leave()


def _release(lock: FileLock, path: Path, made: bool) -> None:
    lock.release()
    if not lock.is_locked:
        with suppress(OSError):
            path.unlink()
            if made:
                path.parent.rmdir()  # which works where nothing came into it


# --- files that notice when they are damaged --------------------------------------------------------------------------


def write_state(value: dict[str, Any], path: Path) -> None:
    """Write a JSON object with its digest, whole or absent, for ``read_state``."""
    write_json(value | {"sha256": _digest_of_json(value)}, path)


def read_state(path: Path, cure: str) -> dict[str, Any]:
    """What ``write_state`` wrote. Raises UserError, which ends with ``cure``, where the file is damaged."""
    try:
        value = dict(load_json(path))
    except (OSError, ValueError, TypeError):
        raise damaged(path, cure) from None
    if value.pop("sha256", None) != _digest_of_json(value):
        raise damaged(path, cure)
    return value


def _digest_of_json(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def save_tensors(tensors: "dict[str, Tensor]", path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file, whole or absent, with the digest of its tensors in the metadata."""
    from safetensors.torch import save

    # As bytes: writing by itself, safetensors would leave a file of its own name behind when it is killed.
    data = save(tensors, (metadata or {}) | {"sha256": _digest_of_tensors(tensors)})
    write_whole(path, lambda partial: partial.write_bytes(data))


def load_tensors(path: Path, cure: str) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, which are checked where ``save_tensors`` wrote it. Raises UserError, which
    ends with ``cure``, where the file is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("sha256")
    except (OSError, ValueError, RuntimeError, SafetensorError):
        raise damaged(path, cure) from None
    if digest is not None and digest != _digest_of_tensors(tensors):
        raise damaged(path, cure)
    return tensors


def _digest_of_tensors(tensors: "dict[str, Tensor]") -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """The digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damaged_line(path: Path, number: int, cure: str = LINE_CURE) -> UserError:
    """The error for a line of JSON Lines that is not what was written."""
    return UserError(f"{path}, line {number} is damaged. {cure}")


def damaged(path: Path, cure: str) -> UserError:
    """The error for a file that is not what was written."""
    return UserError(f"{path} is missing or damaged. {cure}")
