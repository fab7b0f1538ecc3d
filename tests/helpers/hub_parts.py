"""What the Hub of the tests is made of: repositories in memory, as the Hub lists them, and faults."""

import hashlib
import re
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".gguf", ".parquet", ".bin", "tokenizer.json")  # what the Hub keeps in Git LFS


def git_sha1(content: bytes) -> str:
    """The name that Git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repository:
    """files: content by path. licensed: the tokens that may read a gated one. commits: messages, oldest first. card:
    the front matter of README.md. sizes: what is said of files instead of their true size."""

    files: dict[str, bytes] = field(default_factory=dict)
    private: bool = False
    gated: bool = False
    licensed: set[str] = field(default_factory=set)
    commits: list[str] = field(default_factory=list)
    card: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def sha(self) -> str:
        """The commit: of the content alone, so that it changes with it."""
        digests = [(path, git_sha1(content)) for path, content in sorted(self.files.items())]
        return hashlib.sha1(repr(digests).encode()).hexdigest()

    def entry(self, path: str) -> dict[str, Any]:
        """A file as /tree and /paths-info list it."""
        content = self.files[path]
        found: dict[str, Any] = {"type": "file", "path": path, "size": self.sizes.get(path, len(content))}
        found["oid"] = git_sha1(content)
        if path.endswith(LARGE):
            digest = hashlib.sha256(content).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return found

    def tree(self, under: str, recursive: bool) -> list[dict[str, Any]]:
        """The files and folders below ``under``."""
        start = f"{under}/" if under else ""
        below = [path for path in self.files if path.startswith(start)]
        folders = {path[: m.start()] for path in below for m in re.finditer("/", path) if m.start() > len(start)}
        if not recursive:
            below = [path for path in below if "/" not in path[len(start) :]]
            folders = {path for path in folders if "/" not in path[len(start) :]}
        listed = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
        return listed + [self.entry(path) for path in sorted(below)]


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD path" matches ``where``, the next ``times`` of them.

    what: a status; "cut": the body ends half way; "short": the last byte is missing, and the length says so; "flip": a
    byte of the body is another; "page": a login page comes instead; "stall": nothing comes.
    """

    where: str
    what: int | str
    times: int = 10**6
    headers: dict[str, str] = field(default_factory=dict)

    def hits(self, request: str) -> bool:
        """Whether this request is to fail; counts those that do."""
        if self.times <= 0 or not re.search(self.where, request):
            return False
        self.times -= 1
        return True
