"""A prompt as text: cleaned, and cut into pieces."""

import math
import re
import unicodedata

from dcr_lite.errors import UserError

MAX_CHARACTERS = 8_000  # of a prompt, before it is cut into tokens
# A word, or one character of a script that puts no spaces between words.
PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+")


def cleaned(prompt: str) -> str:
    """The prompt without control characters and lone surrogates. Raises UserError for an empty or over-long one, and
    for what is no text."""
    if not isinstance(prompt, str):
        raise UserError(f"the prompt is not a text but {type(prompt).__name__}")
    if len(prompt) > MAX_CHARACTERS:
        raise UserError(f"the prompt has {len(prompt):,} characters; the limit is {MAX_CHARACTERS:,}. Shorten it.")
    text = prompt.replace("\r\n", "\n")
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs")).strip()
    if not text:
        raise UserError("the prompt is empty. Type a question first.")
    return text


def pieces_of(prompt: str, most: int) -> list[tuple[int, int]]:
    """The start and stop of each word of a prompt; neighbours are joined where there are more than ``most``."""
    words = [match.span() for match in PIECE.finditer(prompt)]
    size = math.ceil(len(words) / most)
    return [(words[i][0], words[min(i + size, len(words)) - 1][1]) for i in range(0, len(words), max(1, size))]
