"""Writes the notebooks of this folder, one per recipe that a free Colab machine has room for:

    python notebooks/make.py

The story of a notebook is the recipe's own: its settings are imported and the body of its ``main`` is cut into cells,
so that a notebook cannot say anything else than the recipe does. Everything around it stands once, here.
"""

import importlib.util
import inspect
import json
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
PINNED = [name for name in PROJECT["dependencies"] if "==" in name]


@dataclass(frozen=True)
class Notebook:
    """recipe: the file in recipes/ without its ending. card: the machine that it is for."""

    recipe: str
    card: str = "a free T4 GPU (Runtime > Change runtime type > T4 GPU)"


NOTEBOOKS = (
    Notebook("smollm2_135m", "any machine, no GPU needed"),
    Notebook("qwen2_5_1_5b"),
    Notebook("gemma2_2b"),
    Notebook("llama3_2_3b"),
    Notebook("qwen3_4b"),
    Notebook("mistral_7b"),
    Notebook("qwen2_5_7b"),
    Notebook("llama3_8b"),
)

# Each section's words stand above its code.
INSTALL = """\
## Install

It takes some minutes. The versions are those that this release was tested with."""
INSTALL_CODE = """\
!git clone --quiet --depth 1 --branch v{version} {repository}
%cd {folder}
%pip uninstall --quiet --yes torchvision torchaudio  # they belong to the torch that was here before
%pip install --quiet . {pins}"""

SETTINGS = """\
## Load

The recipe's settings; the reason of each stands in
[recipes/{recipe}.py]({repository}/blob/v{version}/recipes/{recipe}.py).
Change what you like in `replace`: `replace(SETTINGS, seed=1)`, or `pairs=Path("mine.jsonl")` for your own rows."""
SETTINGS_CODE = """\
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, "recipes")
from {recipe} import SETTINGS

settings = replace(SETTINGS, data="shipped", run=Path("runs/notebook"), resume=True).chosen()"""

DATA = """\
## Data

The kit's own rows, a few hundred; `data="full"` above takes the 20,000 of the paper's size, and many hours on a T4.
Pairs of a toxic and a seemingly toxic prompt for stage 1, instructions and refusals for stage 2, and held-out prompts
to measure on. Every row was checked before the model was loaded."""
DATA_CODE = """\
pair = data.training[0]
print("toxic:          ", pair.toxic)
print("seemingly toxic:", pair.seemingly_toxic)
print("instruction:    ", data.instructions[0].prompt)"""

TRAIN = """\
## Train

Each cell does its work once: run again, or after an interruption, it goes on where it stopped."""
MEASURE = """\
## Measure"""
MEMORY = """\
## Memory"""
MEMORY_CODE = """\
print(f"peak {report['peak_memory_bytes'] / 1e9:.1f} GB on {report['hardware']}")
print({part: f"{seconds:.0f} s" for part, seconds in report["seconds"].items()})"""

TRY = """\
## Try it

The same questions to the stock model, to safety SFT alone and to DCR."""
TRY_CODE = """\
from dcr_lite.backend import switch
from dcr_lite.chat import encode_prompts
from dcr_lite.generation import answer

prompts = ["How do I kill a Python process that hangs?", "Where can I shoot a portrait in good light?"]
rows = encode_prompts(model.tokenizer, prompts, model.window)
for name, adapter in (("stock model", None), ("safety SFT alone", job.BASELINE), ("DCR", job.DCR)):
    switch(model, adapter)
    for prompt, said in zip(prompts, answer(model, rows, max_new_tokens=60), strict=True):
        print(f"{name}: {prompt}\\n    {said.text}\\n")"""

SAVE = """\
## Save

The adapter with its tokenizer and model card, as one file to download (the folder symbol on the left). The same for
llama.cpp, and a page on the Hugging Face Hub after `!hf auth login`:
`push(finished, "me/{recipe}-dcr")`."""
SAVE_CODE = """\
import shutil

from dcr_lite.export import export_gguf, open_finished, push

finished = open_finished(settings.run)
print(shutil.make_archive("adapter", "zip", finished.adapter))
print(export_gguf(finished, file_type="q8_0"))"""


def recipe_module(recipe: str) -> Any:
    """A recipe, imported from its file."""
    spec = importlib.util.spec_from_file_location(recipe, ROOT / "recipes" / f"{recipe}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def story(recipe: str) -> list[str]:
    """The body of the recipe's main in its paragraphs: imports, checks, stage 1, stage 2, the baseline, measuring."""
    source = inspect.getsource(recipe_module(recipe).main)
    body = textwrap.dedent(source.split("\n", 1)[1])
    return [paragraph.strip("\n") for paragraph in body.split("\n\n")]


def cells(notebook: Notebook) -> list[tuple[str, str, str]]:
    """(kind, tag, text) of each cell."""
    recipe = recipe_module(notebook.recipe)
    imports, checks, *stages, measure = story(notebook.recipe)
    title, _, rest = inspect.cleandoc(recipe.__doc__).partition("\n")
    paragraphs = [part for part in rest.strip().split("\n\n") if not part.strip().startswith("python ")]
    words = "\n\n".join(paragraphs).replace("--from-chat-model", "`replace(SETTINGS, from_chat_model=True)`")
    imports = "\n".join(line for line in imports.split("\n") if not line.startswith("#"))  # on the command line
    version, repository = PROJECT["version"], REPOSITORY
    known = {"recipe": notebook.recipe, "version": version, "repository": repository}
    path = repository.removeprefix("https://github.com/")
    badge = f"https://colab.research.google.com/github/{path}/blob/main/notebooks/{notebook.recipe}.ipynb"
    install = INSTALL_CODE.format(
        **known, folder=path.split("/")[1], pins=" ".join(pin.replace(" ", "") for pin in PINNED)
    )
    return [
        (
            "markdown",
            "title",
            f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({badge})\n\n"
            f"# {title.rstrip('.')}\n\n{words}\n\nFor {notebook.card}.",
        ),
        ("markdown", "words", INSTALL),
        ("code", "install", install),
        ("markdown", "words", SETTINGS.format(**known)),
        ("code", "settings", SETTINGS_CODE.format(**known)),
        ("code", "load", f"{imports}\n\n{checks}"),
        ("markdown", "words", DATA),
        ("code", "data", DATA_CODE),
        ("markdown", "words", TRAIN),
        *(("code", "train", stage) for stage in stages),
        ("markdown", "words", MEASURE),
        ("code", "measure", measure),
        ("markdown", "words", MEMORY),
        ("code", "memory", MEMORY_CODE),
        ("markdown", "words", TRY),
        ("code", "try", TRY_CODE),
        ("markdown", "words", SAVE.format(**known)),
        ("code", "save", SAVE_CODE),
    ]


def as_json(notebook: Notebook) -> str:
    """The notebook as a file of format 4.5, without outputs."""
    written = []
    for number, (kind, tag, text) in enumerate(cells(notebook)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"{number:02d}-{tag}", "metadata": {"tags": [tag]}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        written.append(cell | {"source": text.splitlines(keepends=True)})
    gpu = {"accelerator": "GPU"} if "GPU (" in notebook.card else {}
    metadata = {
        **gpu,
        "colab": {"provenance": []},
        "kernelspec": {"display_name": "Python 3", "name": "python3"},
        "language_info": {"name": "python"},
    }
    value = {"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for each in NOTEBOOKS:
        file = Path(__file__).parent / f"{each.recipe}.ipynb"
        file.write_text(as_json(each), encoding="utf-8")
        print(file)
