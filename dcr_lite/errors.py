"""Errors that a user can fix are one-line messages, never tracebacks."""

import errno
import os

HEAD, TAIL = 1_500, 500  # characters of a message that quotes very much
WHERE = "Choose a folder that can be written to"
# What the system says of files and disks, and what a user does about it.
CURES = {
    errno.ENOSPC: "Free some disk",
    errno.EDQUOT: "Free some disk",
    errno.EFBIG: "The file system or a limit allows no larger file: choose another folder",
    errno.EROFS: WHERE,
    errno.EACCES: WHERE,
    errno.EPERM: WHERE,
    errno.ENOENT: "It was moved or removed: put it back",
    errno.ENOTDIR: WHERE,
    errno.EEXIST: "It is a file in place of a folder: choose another place",
    errno.EIO: "Check the disk",
    errno.ENAMETOOLONG: "Choose a shorter name",
}


class UserError(Exception):
    """An error that its reader can fix: the message names the place (file and line) and the cure.

    Messages quote what is wrong, so characters that would steer a terminal are written as escapes, and the middle of a
    very long one is left out."""

    def __init__(self, message: str):
        if len(message) > HEAD + TAIL:
            message = f"{message[:HEAD]} ... {message[-TAIL:]}"
        super().__init__("".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in message))


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


class MethodError(UserError):
    """What one training, or one method with one model, cannot do and another may: of several, the others go on."""


# How torch's messages name it where it is another RuntimeError: on a CPU, and of CUDA and its libraries themselves.
OUT_OF_MEMORY_WORDS = (
    "DefaultCPUAllocator", "can't allocate memory", "bad_alloc", "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED", "MPS backend out of memory",
)  # fmt: skip
MORE_MEMORY = (
    "Close other programs that use it, lower --rank, load the model with --quantization nf4, or take a smaller one; "
    "--plan shows what fits which card."
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory has run out: Python's, or torch's on a card or on a CPU."""
    by_type = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"  # torch is not imported here
    return by_type or (isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY_WORDS))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def sentence(error: BaseException, again: str) -> str | None:
    """What a user reads of an error that can be met, and does before ``again``: the kit's own, memory that runs out,
    what the system says of a file or a disk. None for an error that nobody has foreseen."""
    if isinstance(error, UserError):
        return str(error)
    if out_of_memory(error):
        return f"memory runs out. {MORE_MEMORY} Then {again}."
    if not isinstance(error, OSError) or error.errno not in CURES:
        return None
    place = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{place}{os.strerror(error.errno)}. {CURES[error.errno]}, then {again}."
