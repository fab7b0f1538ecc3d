"""Files are written whole or not at all, and read back; the cache folder and the free disk space."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from dcr_lite.errors import UserError, sentence
from dcr_lite.files import (
    cache_folder,
    load_jsonl,
    require_disk,
    write_json,
    write_jsonl,
    write_whole,
    write_whole_folder,
)


def test_json_lines_come_back(tmp_path: Path) -> None:
    """Unicode line separators inside a text break no line; lone surrogates are escaped; no rows are an empty file."""
    rows = [{"text": "a\u2028b\u0085c é"}, {"text": "half \ud83d"}, {"number": 1}]
    write_jsonl(rows, tmp_path / "new" / "rows.jsonl")
    assert load_jsonl(tmp_path / "new" / "rows.jsonl") == rows
    write_jsonl([], tmp_path / "none.jsonl")
    assert load_jsonl(tmp_path / "none.jsonl") == []


def test_an_unfinished_last_line_is_dropped(tmp_path: Path) -> None:
    """Whatever the place of the cut, in the middle of a character too, the rows before it are read."""
    path = tmp_path / "rows.jsonl"
    whole = '{"text": "one"}\n{"text": "é"}\n'.encode()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert load_jsonl(path) == [{"text": "one"}]


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_file_is_whole_or_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    """Writing that is interrupted, whatever stops it, leaves the old file, and nothing beside it."""

    def stop(partial: Path) -> None:
        partial.write_text("half")
        raise error

    path = tmp_path / "value.json"
    write_json({"text": "é"}, path)
    with pytest.raises(error):
        write_whole(path, stop)
    assert json.loads(path.read_text(encoding="utf-8")) == {"text": "é"}
    assert list(tmp_path.iterdir()) == [path]


def test_the_cache_can_be_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """$DCR_LITE_CACHE comes first, then $XDG_CACHE_HOME, then the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("DCR_LITE_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "dcr-lite"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "dcr-lite"
    monkeypatch.setenv("DCR_LITE_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"


def test_too_little_disk_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    """The free space is that of the nearest folder that exists."""
    with pytest.raises(UserError, match=f"{tmp_path}: [0-9,]+ MB free and 1,000,000,000,000 MB needed"):
        require_disk(tmp_path / "not" / "yet", 10**18)
    require_disk(tmp_path / "not" / "yet", 1)


def test_a_folder_is_whole_or_as_it_was(tmp_path: Path) -> None:
    """What stops the writing, or putting the new folder in the old one's place, leaves the old files."""
    folder = tmp_path / "adapter"
    write_whole_folder(folder, lambda new: (new / "old").touch())

    def stopped(new: Path) -> None:
        (new / "new").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole_folder(folder, stopped)
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["adapter", "adapter/old"]
    write_whole_folder(folder, lambda new: (new / "new").touch())
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["adapter", "adapter/new"]


def test_a_copy_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the disk is full, copying a folder into a new one is an error that names the new one, which is gone."""
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "weights").touch()

    def full(*given: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "weights")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left") as caught:
        write_whole_folder(tmp_path / "to", lambda new: shutil.copytree(tmp_path / "from", new / "own"))
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "to"))
    assert sentence(caught.value, "again") == f"{tmp_path / 'to'}: No space left on device. Free some disk, then again."
    assert [path.name for path in tmp_path.iterdir()] == ["from"]


@pytest.mark.parametrize("left", [{"adapter", ".partial"}, {".old.partial", ".partial"}, {"adapter", ".old.partial"}])
def test_a_folder_outlives_a_kill(left: set[str], tmp_path: Path) -> None:
    """While the new one is written, between the two renames, and before the old one is removed: whoever writes the
    folder next finds the old files in their place, takes over what is to stay, and leaves nothing else."""
    folder = tmp_path / "adapter"
    for name in left:
        (tmp_path / f"adapter{name.removeprefix('adapter')}").mkdir()
    for name in left - {".partial"}:
        (tmp_path / f"adapter{name.removeprefix('adapter')}" / "kept").write_text(name)
    write_whole_folder(folder, lambda new: shutil.copyfile(folder / "kept", new / "kept"))
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == ["adapter", "adapter/kept"]
    assert (folder / "kept").read_text() == ("adapter" if "adapter" in left else ".old.partial")
