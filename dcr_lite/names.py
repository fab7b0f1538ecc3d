"""Names that stand in files, flags and tables: kinds of prompt, models of a run, and a model's own."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from dcr_lite.files import exists

LABELS = ("toxic", "seemingly_toxic", "plain")
KEPT_LABELS = LABELS[1:]  # prompts whose answers by the stock model other models should keep
LABEL_TITLES = {"toxic": "toxic", "seemingly_toxic": "seemingly toxic", "plain": "plain"}

ModelName = Literal["dcr", "safety_sft", "base"]  # the models of a run
DCR: Final = "dcr"
BASELINE: Final = "safety_sft"  # which a run trains where it is asked for
STOCK: Final = "base"  # the model without an adapter
MENDED: Final = "mended"  # that of another run, which the demo opens beside them
MODEL_TITLES = {STOCK: "stock model", BASELINE: "safety SFT alone", DCR: "DCR"}
NOT_APPLICABLE = "not applicable"  # in the note of a compared method that does not apply to the model
ONLY_TURNED = "DCR is here the stock model with a dial alone: nothing was trained."
CACHED = "models--"  # begins the name of a repository's folder in the Hub's cache: models--OWNER--NAME
# Names of folders that hold some model, whichever.
NAMELESS = re.compile(
    r"(base|chat|hf|original|trained|tuned|merged|final|best|last|latest|new|output|snapshot|checkpoint|weights|model)?"
    r"[-_ ]?(models?)?[-_ ]?\d*|[0-9a-f]{12,}|\w",
    re.IGNORECASE,
)


def models_of(compare_with: Sequence[str]) -> tuple[ModelName, ...]:
    """The models of a run, in the order of its tables. compare_with: the baselines that it trained as well."""
    return (STOCK, BASELINE, DCR) if BASELINE in compare_with else (STOCK, DCR)


def repository_of(model: str) -> str:
    """The name on the Hub, owner/name, of the model that a folder in the Hub's cache holds, here or on the machine that
    a report came from, under a digest for a name; empty for what lies elsewhere."""
    parts = (Path(model).resolve() if exists(model) else Path(model)).parts
    return next((part.removeprefix(CACHED).replace("--", "/") for part in parts if part.startswith(CACHED)), "")


def with_name(model: str) -> str:
    """A model as it was given; a folder that was given without its name, as ``.`` or ``../``, by its whole path."""
    nameless = model and Path(model).name in ("", "..")
    return str(Path(model).resolve()) if nameless else model


def short_name(model: str) -> str:
    """The last part of a model's name: the repository's where a folder lies in the Hub's cache."""
    return Path(repository_of(model) or with_name(model)).name


def telling_name(model: str) -> str:
    """The same; of a folder whose name would do for any model with that of the folder around it in front: a_merged."""
    name = short_name(model)
    if NAMELESS.fullmatch(name) and exists(model) and not repository_of(model):
        return "_".join(filter(None, (Path(model).resolve().parent.name, name)))
    return name
