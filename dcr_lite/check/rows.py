"""The rows of the run in tokens: how long they are, the longest ones, and what of that has to be guessed."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dcr_lite.check.finding import Finding, Task
from dcr_lite.check.reach import folder_of, full_data_is_here, token
from dcr_lite.data import hub
from dcr_lite.errors import UserError
from dcr_lite.model.chat import encode_conversations, encode_prompts, set_format
from dcr_lite.model.packing import shared_prefix
from dcr_lite.run.inputs import Data, load_data, resolved
from dcr_lite.settings import SHIPPED_FILES, Settings

TOKENIZER_FILES = ["config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
                   "*.jinja"]  # fmt: skip
NO_LIMIT = 1 << 40  # tokens
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
    """The lengths of the rows; gives later parts the ``Lengths``."""
    found = Finding()
    settings = resolved(_at_hand(task.settings, found))
    data = load_data(settings)
    tokenizer = _tokenizer(task, found)
    lengths = measured(data, tokenizer)
    prompt, row = max(map(max, lengths.pairs)), max(map(sum, lengths.conversations))
    held_out = max(lengths.held_out)
    found.given = lengths
    found.values = {
        "pairs": len(lengths.pairs),
        "rows": len(lengths.conversations),
        "held_out_prompts": len(lengths.held_out),
        "longest_pair_prompt_tokens": prompt,
        "longest_row_tokens": row,
        "longest_held_out_tokens": held_out,
        "tokens_are_estimated": tokenizer is None,
    }
    about = "about " if tokenizer is None else ""
    found.says = [
        f"longest prompt of {len(lengths.pairs):,} pairs: {about}{prompt:,} tokens; longest of "
        f"{len(lengths.conversations):,} rows of safety SFT: {about}{row:,}; longest of {len(lengths.held_out):,} "
        f"held-out prompts: {about}{held_out:,}"
    ]
    return found


def _at_hand(settings: Settings, found: Finding) -> Settings:
    """The settings, with the shipped rows in the place of public sets that would have to be fetched."""
    if settings.data == "shipped" or full_data_is_here():
        return settings
    found.notes.append("the public sets of --data full are not here yet: lengths are those of the shipped rows")
    own = {name: getattr(settings, name) for name in SHIPPED_FILES}
    sizes = {"instructions": None, "refusals": None, "baseline_refusals": None}
    return replace(settings, data="shipped", **own, **sizes)


def measured(data: Data, tokenizer: Any) -> Lengths:
    """The rows in tokens of this tokenizer, or in estimated ones without it."""
    prompts_of: Callable[[Sequence[str]], list[int]]
    prefix = TEMPLATE // 2
    pairs = [text for pair in data.training for text in (pair.toxic, pair.seemingly_toxic)]
    mixture = data.baseline_mixture
    if tokenizer is None:

        def prompts_of(texts: Sequence[str]) -> list[int]:
            return [TEMPLATE + len(text) // CHARACTERS for text in texts]

        prompts = prompts_of([row.prompt for row in mixture])
        rows = [(p, 1 + len(row.response) // CHARACTERS) for p, row in zip(prompts, mixture, strict=True)]
    else:

        def prompts_of(texts: Sequence[str]) -> list[int]:
            return [len(ids) for ids in encode_prompts(tokenizer, list(texts), NO_LIMIT)]

        encoded = encode_conversations(tokenizer, [r.prompt for r in mixture], [r.response for r in mixture], NO_LIMIT)
        rows = [(len(prompt), len(answer)) for prompt, answer in encoded]
        prefix = shared_prefix([prompt for prompt, _ in encoded])
    sides = prompts_of(pairs)
    return Lengths(
        prefix=prefix,
        pairs=list(zip(sides[::2], sides[1::2], strict=True)),
        conversations=rows,
        refuses=[row.refuses for row in mixture],
        held_out=prompts_of([prompt.prompt for prompt in data.held_out]),
        development=len(data.development),
        refusals=len(data.refusals),
        watched=len(data.watched),
    )


def _tokenizer(task: Task, found: Finding) -> Any:
    """The model's own tokenizer where it is on the disk or a few files from the Hub; else None, with a note."""
    model = task.settings.model
    try:
        tokenizer = _load(model, (task.given_by("hub") or {}).get(model) == "open")
    except Exception as error:  # whatever its files make the library raise: the run will say so
        found.notes.append(f"the tokenizer of {model} cannot be read ({error})")
        tokenizer = None
    if tokenizer is None:
        found.notes.append(f"lengths are estimated, at {CHARACTERS} characters a token: the tokenizer is not here")
        return None
    try:
        set_format(tokenizer, task.settings.chat_format)
    except UserError as error:
        found.problems.append(str(error))
        return None
    return tokenizer


def _load(model: str, from_hub: bool) -> Any:
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    if (folder := folder_of(model)) is not None:
        return AutoTokenizer.from_pretrained(folder)
    if not from_hub:
        return None
    # Into a folder that goes again: what is left in the Hub's cache would look like a model there.
    with tempfile.TemporaryDirectory() as scratch:
        snapshot_download(
            model, local_dir=scratch, allow_patterns=TOKENIZER_FILES, etag_timeout=hub.SECONDS, token=token()
        )
        return AutoTokenizer.from_pretrained(Path(scratch))
