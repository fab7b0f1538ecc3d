"""A snapshot in the Hub's cache: whether it is whole, and whether what arrived is what the Hub sent."""

import hashlib
import json
import os
from pathlib import Path

INDEX = "model.safetensors.index.json"
DAMAGED = "a file arrived damaged and was removed: run the same command again"


def damaged(snapshot: Path) -> list[str]:
    """The files of a snapshot in the Hub's cache whose content is not what the Hub said. They are removed, so that the
    next try fetches them anew: huggingface_hub itself compares their size alone.

    Each is a link to a file that is named by its content; where the cache holds copies instead, as on some Windows
    machines, nothing can be compared.
    """
    found = []
    for link in sorted(snapshot.rglob("*")):
        if link.is_symlink() and link.is_file() and not _is_named_by_content(link):
            link.resolve().unlink()
            link.unlink()
            found.append(link.name)
    return found


def _is_named_by_content(link: Path) -> bool:
    name = Path(os.readlink(link)).name
    digests = [hashlib.sha256()]
    if len(name) == 40:  # of a small file: Git's digest, and on some mirrors the plain one
        digests = [hashlib.sha1(b"blob %d\0" % link.stat().st_size), hashlib.sha1()]
    elif len(name) != 64:
        return True  # a mirror with names of its own
    with link.open("rb") as file:
        while part := file.read(2**20):
            for digest in digests:
                digest.update(part)
    return name in [digest.hexdigest() for digest in digests]


def missing(names: set[str]) -> str | None:
    """What is missing in a folder with these files, in words; None for a whole adapter or, but for its shards, a whole
    model."""
    if "adapter_config.json" in names:
        return None if "adapter_model.safetensors" in names else "adapter_model.safetensors"
    if "config.json" not in names:
        return "config.json"
    if not names & {"model.safetensors", INDEX}:
        return "weights in safetensors"
    tokenizers = {"tokenizer.json", "tekken.json", "vocab.json", "vocab.txt"}
    return None if names & tokenizers or any(name.endswith(".model") for name in names) else "tokenizer"


def is_whole(folder: Path) -> bool:
    """Whether a snapshot in the Hub's cache can be loaded: --plan and stopped downloads leave a part of one."""
    names = {file.name for file in folder.iterdir() if file.exists()}  # a link may point nowhere
    if missing(names):
        return False
    if INDEX not in names or "model.safetensors" in names:
        return True
    try:
        return names >= set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError):
        return False
