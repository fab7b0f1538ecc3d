"""Rows that a run makes in batches and keeps in a file of its folder: read back, they are those that were written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dcr_lite.files import damaged, load_jsonl, sha256_of
from dcr_lite.run.run_folder import RunFolder

Row = dict[str, Any]
DIGEST = "answers_sha256"  # under which the note of the finished part has the digest of the file


def kept_rows(run: RunFolder, part: str, path: Path, fields: dict[str, type], prompts: Sequence[str]) -> list[Row]:
    """The rows that the part ``part`` of a run has so far, all of them once it is finished; none where there is no file
    yet. fields: the types of a row's values by their names. prompts: of all rows, in their order.

    Raises UserError for a file that is damaged or of other prompts.
    """
    finished = run.finished(part)
    cure = f"Delete it and {run.note(part)} to have them answered again."
    if finished and not (path.exists() and finished.get(DIGEST) == sha256_of(path)):
        raise damaged(path, cure)
    rows = load_jsonl(path) if path.exists() else []
    for number, row in enumerate(rows, start=1):
        whole = {name: type(value) for name, value in row.items()} == fields
        if not whole or number > len(prompts) or row["prompt"] != prompts[number - 1]:
            raise damaged(path, cure)
    return rows
