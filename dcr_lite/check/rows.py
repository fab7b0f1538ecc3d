"""The rows of the run in tokens: how long they are, the longest ones, and what of that has to be guessed."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.reach import folder_of, full_data_is_here, reads_public_sets, token
from dcr_lite.data import hub
from dcr_lite.data.rows import Asked, prompts_of
from dcr_lite.data.splits import characters
from dcr_lite.errors import first_line
from dcr_lite.model.chat import encode_asked, encode_rows, set_format
from dcr_lite.model.configuration import longest_row, of_decoder
from dcr_lite.model.loading import load_tokenizer
from dcr_lite.model.packing import shared_prefix
from dcr_lite.run.inputs import Data, load_data, resolved
from dcr_lite.run.long_rows import NO_LIMIT, limits, short_rows
from dcr_lite.settings import Settings

TOKENIZER_FILES = ["config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                   "*.jinja"]  # fmt: skip
# Without the model's tokenizer: characters of English in a token, and tokens of a chat template around a prompt.
CHARACTERS, TEMPLATE = 4, 20


@dataclass(frozen=True)
class Lengths:
    """Rows of the run in tokens, with the chat template around them.

    prefix: what all prompts share. pairs: (toxic, seemingly toxic) of each training pair. conversations: (prompt,
    answer) of each row that safety SFT alone trains on; refuses: which of them are refusals.
    development, refusals, watched: how many pairs, toxic prompts and prompts are read along the way.
    held_out: of each prompt that is answered.
    """

    prefix: int
    pairs: list[tuple[int, int]]
    conversations: list[tuple[int, int]]
    refuses: list[bool]
    held_out: list[int]
    development: int
    refusals: int
    watched: int


def look(task: Task) -> Finding:
    """The lengths of the rows; gives later parts the ``Lengths``.

    Raises UserError for rows that the run would not begin with.
    """
    found = Finding()
    settings = resolved(_at_hand(task.settings, found))
    data = load_data(settings)
    tokenizer, window = _tokenizer(task, found)
    if tokenizer is not None:
        _, fitting = task.given_by("memory") or (None, None)
        most = limits(window, fitting.longest if fitting else {}, settings.answer_tokens)
        data = short_rows(data, settings, tokenizer, window, most)
    lengths = found.given = measured(data, tokenizer)
    longest = {
        "pairs": max(map(max, lengths.pairs)),
        "rows": max(map(sum, lengths.conversations)),
        "held_out": max(lengths.held_out),
    }
    found.values = {
        "pairs": len(lengths.pairs),
        "rows": len(lengths.conversations),
        "held_out_prompts": len(lengths.held_out),
        "longest_tokens": longest,
        "left_out_as_too_long": data.left_out,
        "tokens_are_estimated": tokenizer is None,
    }
    about = ", about" if tokenizer is None else ""
    found.says = [
        f"longest in tokens{about}: {longest['pairs']:,} of {len(lengths.pairs):,} pairs, {longest['rows']:,} of "
        f"{len(lengths.conversations):,} rows of safety SFT, {longest['held_out']:,} of {len(lengths.held_out):,} "
        "held-out prompts"
    ]
    for setting, n in data.left_out.items():
        found.notes.append(f"{n:,} public rows of {setting} are too long for the model or its memory: left out")
    return found


def _at_hand(settings: Settings, found: Finding) -> Settings:
    """The settings, with the shipped rows in the place of public sets that would have to be fetched."""
    if not reads_public_sets(settings) or full_data_is_here():
        return settings
    found.notes.append(
        "the public sets of --data full are not here yet: lengths are those of the shipped rows, theirs may be longer"
    )
    return replace(settings, data="shipped", instructions=None, refusals=None, baseline_refusals=None)


def measured(data: Data, tokenizer: Any) -> Lengths:
    """The rows in tokens of this tokenizer, or in estimated ones without it. Their prefix is what all of them share, so
    that one with a system message of its own makes all estimates larger."""
    mixture, n = data.baseline_mixture, len(data.training)
    asked = [*prompts_of(data.training), *data.held_out]
    if tokenizer is None:
        prefix, lengths = TEMPLATE // 2, _estimated(asked)
        rows = [(p, 1 + len(row.response) // CHARACTERS) for p, row in zip(_estimated(mixture), mixture, strict=True)]
    else:
        ids, encoded = encode_asked(tokenizer, asked, NO_LIMIT), encode_rows(tokenizer, mixture, NO_LIMIT)
        prefix, lengths = shared_prefix([*ids, *(prompt for prompt, _ in encoded)]), [len(row) for row in ids]
        rows = [(len(prompt), len(answer)) for prompt, answer in encoded]
    return Lengths(
        prefix=prefix,
        pairs=list(zip(lengths[:n], lengths[n : 2 * n], strict=True)),
        conversations=rows,
        refuses=[row.refuses for row in mixture],
        held_out=lengths[2 * n :],
        development=len(data.development),
        refusals=len(data.refusals),
        watched=len(data.watched),
    )


def _estimated(rows: Sequence[Asked]) -> list[int]:
    """Tokens of each prompt with the messages before it, about."""
    return [TEMPLATE * (1 + len(row.before)) + characters(row) // CHARACTERS for row in rows]


def _tokenizer(task: Task, found: Finding) -> tuple[Any, int]:
    """The model's own tokenizer and its window in tokens, where they are on the disk or a few files from the Hub; else
    None, with a note."""
    model, tokenizer, window = task.settings.model, None, NO_LIMIT
    try:
        tokenizer, window = _load(model, (task.given_by("hub") or {}).get(model) == "open")
    except Exception as error:  # whatever its files make the library raise: the run will say so
        found.notes.append(f"the tokenizer of {model} cannot be read ({first_line(error)})")
    if tokenizer is None:
        found.notes.append(f"lengths are estimated, at {CHARACTERS} characters a token: the tokenizer is not here")
    else:
        set_format(tokenizer, task.settings.chat_format)
    return tokenizer, window


def _load(model: str, from_hub: bool) -> tuple[Any, int]:
    from huggingface_hub import snapshot_download
    from transformers import AutoConfig

    if (folder := folder_of(model)) is None and not from_hub:
        return None, NO_LIMIT
    # Into a folder that goes again: what is left in the Hub's cache would look like a model there.
    with tempfile.TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            patterns, patience = TOKENIZER_FILES, hub.SECONDS
            snapshot_download(model, local_dir=folder, allow_patterns=patterns, etag_timeout=patience, token=token())
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        return load_tokenizer(folder), longest_row(of_decoder(config))
