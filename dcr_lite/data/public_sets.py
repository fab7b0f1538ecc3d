"""Rows of public data sets, from the Hugging Face Hub or a file with an address, with their columns checked."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dcr_lite.data import hub
from dcr_lite.data.snapshots import DAMAGED, damaged
from dcr_lite.errors import UserError


def public_rows(
    name: str,
    path: str,
    columns: Sequence[str],
    instead: str,
    config: str | None = None,
    split: str = "train",
    file: str | None = None,
) -> Any:
    """A public data set as ``datasets`` loads it.

    name: what messages call it. path: its name on the Hub, or "csv" or "text" for the address ``file``. columns: those
    that it must have. instead: what to do without it, the last sentence of every message.
    Raises UserError where the host does not answer, the set cannot be loaded, or a column is missing.
    """
    import datasets

    host = file or hub.hub()
    if not hub.answers(host):
        raise UserError(f"{name} cannot be fetched ({hub.silence(host)}). {instead}")
    hub.limit_waits()
    try:
        if file is None:
            hub.ask_for_set(path)
        with _here(file) as data_files:
            rows = datasets.load_dataset(path, name=config, data_files=data_files, split=split)
    except Exception as error:  # whatever the readers of a dozen formats raise: nothing of it is the kit's
        reason = hub.why(error, f"datasets/{path}", urlsplit(host).netloc if file else hub.THE_HUB)
        if file is None and _damaged_set(path, []):
            reason = DAMAGED
        raise UserError(f"{name} cannot be fetched ({reason}). {instead}") from None
    if file is None and _damaged_set(path, rows.cache_files):
        raise UserError(f"{name} cannot be fetched ({DAMAGED}). {instead}")
    if missing := [column for column in columns if column not in rows.column_names]:
        found = ", ".join(rows.column_names)
        raise UserError(f"{name} has changed: no column {', '.join(missing)} among {found}. {instead}")
    return rows


@contextmanager
def _here(file: str | None) -> Iterator[str | None]:
    """A copy of a file that has an address, on this machine: fetched by us, since datasets words each failure of a
    plain host as a missing file, and waits for it without end."""
    import httpx

    if file is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        answer = httpx.get(file, timeout=hub.LONGEST_WAIT, follow_redirects=True).raise_for_status()
        copy = Path(folder) / Path(urlsplit(file).path).name
        copy.write_bytes(answer.content)
        yield str(copy)


def _damaged_set(name: str, made: list[dict[str, str]]) -> bool:
    """Whether files of a set on the Hub arrived damaged. They and the files ``made`` of them are removed."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="dataset")
    if not damaged(folder / "snapshots"):
        return False
    for file in made:
        shutil.rmtree(Path(file["filename"]).parent, ignore_errors=True)
    return True
