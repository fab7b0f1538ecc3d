"""Public data sets: whether their host answers, and their rows with the columns checked."""

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from dcr_lite.errors import UserError, first_line

HUB = "https://huggingface.co"
SECONDS = 5  # to wait for a host's first answer: an unreachable one must not look like a hang


def answers(address: str | None = None) -> bool:
    """Whether a host, by default the Hugging Face Hub, answers within a few seconds. Never with HF_HUB_OFFLINE set."""
    import httpx

    if os.environ.get("HF_HUB_OFFLINE"):
        return False
    try:
        httpx.head(address or hub(), timeout=SECONDS, follow_redirects=True)
    except httpx.HTTPError:
        return False
    return True


def hub() -> str:
    """The address of the Hugging Face Hub, or of the mirror in $HF_ENDPOINT."""
    return os.environ.get("HF_ENDPOINT", HUB)


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
    from httpx import HTTPError

    host = file or hub()
    if not answers(host):
        raise UserError(f"{name} cannot be fetched ({urlsplit(host).netloc} does not answer). {instead}")
    try:
        rows = datasets.load_dataset(path, name=config, data_files=file, split=split)
    except (OSError, ValueError, RuntimeError, HTTPError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{name} cannot be fetched ({first_line(error)}). {instead}") from None
    if missing := [column for column in columns if column not in rows.column_names]:
        found = ", ".join(rows.column_names)
        raise UserError(f"{name} has changed: no column {', '.join(missing)} among {found}. {instead}")
    return rows
