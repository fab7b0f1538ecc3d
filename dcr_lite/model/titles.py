"""What a page calls a model: a name that tells a visitor something, never a path of this machine."""

import re
from pathlib import Path

from dcr_lite.errors import UserError
from dcr_lite.files import exists
from dcr_lite.model.configuration import in_folder
from dcr_lite.model.shapes import shape_of
from dcr_lite.names import NAMELESS, repository_of


def model_title(model: str) -> str:
    """The name of a model on the Hub without its owner, or of a folder's model: the repository's where it lies in the
    Hub's cache, else the folder's own, else that which its configuration remembers, else architecture and size."""
    if not exists(model):
        return _in_words(model)
    folder = Path(model).resolve()
    for name in (Path(repository_of(model)).name, folder.name, _remembered(folder)):
        if not NAMELESS.fullmatch(name):
            return _in_words(name)
    return _described(folder)


def _in_words(name: str) -> str:
    return re.sub(r"[-_]+", " ", name.rpartition("/")[2]).strip()


def _remembered(folder: Path) -> str:
    """What the model was called when it was saved, as transformers before 5 wrote it; often empty."""
    return Path(str(in_folder(folder).get("_name_or_path") or "")).name


def _described(folder: Path) -> str:
    kind = _in_words(str(in_folder(folder).get("model_type") or "A model")).capitalize()
    try:
        return f"{kind} with {shape_of(str(folder)).parameters / 1e6:,.1f} million weights"
    except UserError:
        return kind
