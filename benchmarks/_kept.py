"""Kept results are those of the settings, prompts and rows with which they were measured: a digest beside each says
so."""

import hashlib
from dataclasses import replace
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import sha256_of, write_text
from dcr_lite.settings import Settings

CURE = "is of other settings, prompts or rows. Choose another place for it, or delete it."


def digest_of(*of: object) -> str:
    """Of files what they hold, of settings all but their run folder, of everything else how Python writes it."""
    written = [
        sha256_of(one)
        if isinstance(one, Path)
        else ascii(replace(one, run=Path()) if isinstance(one, Settings) else one)
        for one in of
    ]
    return hashlib.sha256("\n".join(written).encode()).hexdigest()


def require_same(result: Path, *of: object) -> None:
    """Note beside a result, before it is begun, what it is measured with. Raises UserError where it was another, or
    where nothing is noted beside a result that is there."""
    note, digest = result.with_name(f"{result.name}.digest"), digest_of(*of)
    if note.exists():
        if note.read_text(encoding="utf-8") != digest:
            raise UserError(f"{result} {CURE} Its digest is in {note}.")
    elif result.exists():
        raise UserError(f"{result} {CURE} There is no {note} beside it.")
    write_text(note, digest)
