"""Writes the notebooks of this folder, one per recipe that fits a free Colab machine:

    python notebooks/make.py

The settings of a notebook are those of its recipe, and its cells are the body of the recipe's ``main``. The text around
them is the same in all notebooks.
"""

import inspect
import json
import textwrap
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from dcr_lite.run.recipes import find_recipe, load_recipe

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
FROM_BASE_MODEL = '`from_base_model=True, data="full"` among the settings below'  # in place of the command's flag


@dataclass(frozen=True)
class Notebook:
    """recipe: the name of a recipe. card: the machine that the notebook is for."""

    recipe: str
    card: str = "a free T4 GPU (Runtime > Change runtime type > T4 GPU)"

    @property
    def needs_gpu(self) -> bool:
        """Whether the notebook stops on a machine without a GPU, where it would take days."""
        return "GPU (" in self.card


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

# The text above each section's code, and the code that is not the recipe's.
INSTALL = """\
## Install

From the repository: the package is not on PyPI yet. An installed torch stays, where its version is one that dcr-lite
works with."""
INSTALL_CODE = '%pip install --quiet "dcr-lite @ git+{repository}"'

CHECK_CODE = """\
import dcr_lite  # before torch sees the GPU: it chooses how memory there is taken
import torch

if not torch.cuda.is_available():
    raise RuntimeError("no GPU here: choose Runtime > Change runtime type > T4 GPU, and run all cells again")
print(torch.cuda.get_device_name())"""

SETTINGS = """\
## Load

The recipe's settings; the reason of each stands in
[recipes/{recipe}.py]({repository}/blob/main/recipes/{recipe}.py).
Change them in `replace`: `seed=1`, for example, or `pairs=Path("mine.jsonl")` for your own rows."""
SETTINGS_CODE = """\
from dataclasses import replace
from pathlib import Path

from dcr_lite.run.inputs import resolved
from dcr_lite.run.recipes import find_recipe, load_recipe

recipe = load_recipe(find_recipe("{recipe}"))
settings = resolved(replace(recipe.SETTINGS, data="shipped", run=Path("runs/notebook"), resume=True))"""

DATA = """\
## Data

The shipped rows, about 3,800; `data="full"` above takes the 20,000 of the paper, and many hours on a T4. Pairs of a
toxic and a seemingly toxic prompt for stage 1, instructions and refusals for stage 2, and held-out prompts to measure
on. Every row was checked before the model was loaded."""
DATA_CODE = """\
pair = data.training[0]
print("toxic:          ", pair.toxic)
print("seemingly toxic:", pair.seemingly_toxic)
print("instruction:    ", data.instructions[0].prompt)"""

TRAIN = """\
## Train

Until the run is finished, a cell that has finished is not computed again: run it again, or after an interruption, and
it continues where it stopped. After a change of settings, or to train again, give `run` another name, and run all cells
from **Load** on."""
MEASURE = """\
## Measure"""
MEMORY = """\
## Memory"""
MEMORY_CODE = """\
print(f"peak {{report['peak_memory_bytes'] / 1e9:.1f}} GB on {{report['hardware']}}")
print({{part: f"{{seconds:.0f}} s" for part, seconds in report["seconds"].items()}})"""

TRY = """\
## Try it

The same questions to each model of the run."""
TRY_CODE = """\
from dcr_lite.model.adapters import switch
from dcr_lite.model.chat import encode_prompts
from dcr_lite.model.generation import answer
from dcr_lite.names import MODEL_TITLES, STOCK, models_of

prompts = ["How do I kill a Python process that hangs?", "Where can I shoot a portrait in good light?"]
rows = encode_prompts(model.tokenizer, prompts, model.window)
for name in models_of(settings.compare_with):
    switch(model, None if name == STOCK else name)
    for prompt, said in zip(prompts, answer(model, rows, max_new_tokens=60), strict=True):
        print(f"{{MODEL_TITLES[name]}}: {{prompt}}\\n    {{said.text}}\\n")"""

SAVE = """\
## Save

The adapter with its tokenizer and model card, as one file to download (the folder symbol on the left); the same for
llama.cpp; and, after `!hf auth login`, as a page on the Hugging Face Hub: `push(finished, "me/{recipe}-dcr")`."""
SAVE_CODE = """\
import shutil

from dcr_lite.export.command import export_gguf, open_finished
from dcr_lite.export.hub import push

finished = open_finished(settings.run)
print(shutil.make_archive("adapter", "zip", finished.adapter))
print(export_gguf(finished, file_type="q8_0"))"""


def story(recipe: ModuleType) -> list[str]:
    """The paragraphs of the recipe's main: imports, checks, a paragraph for each stage, measuring."""
    source = inspect.getsource(recipe.main)
    body = textwrap.dedent(source.split("\n", 1)[1])
    return [paragraph.strip("\n") for paragraph in body.split("\n\n")]


def introduction(recipe: ModuleType, notebook: Notebook) -> str:
    """The badge, and the recipe's docstring without its commands."""
    path = f"{REPOSITORY.removeprefix('https://github.com/')}/blob/main/notebooks/{notebook.recipe}.ipynb"
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    title, _, rest = inspect.cleandoc(recipe.__doc__ or "").partition("\n")
    paragraphs = [part for part in rest.strip().split("\n\n") if not part.strip().startswith(("python ", "dcr-lite "))]
    words = "\n\n".join(paragraphs).replace("--from-base-model", FROM_BASE_MODEL)
    words = words.replace(" --help lists every setting.", "")  # of the command
    return (
        f"{badge}(https://colab.research.google.com/github/{path})\n\n"
        f"# {title.rstrip('.')}\n\n{words}\n\nFor {notebook.card}."
    )


def cells(notebook: Notebook) -> list[tuple[str, str, str]]:
    """(kind, tag, text) of each cell."""
    recipe = load_recipe(find_recipe(notebook.recipe))
    imports, checks, *stages, measure = story(recipe)
    imports = "\n".join(line for line in imports.split("\n") if not line.startswith("#"))  # on the command line
    known = {"recipe": notebook.recipe, "repository": REPOSITORY}
    return [
        ("markdown", "title", introduction(recipe, notebook)),
        *_section("install", INSTALL, INSTALL_CODE, known),
        *([("code", "check", CHECK_CODE)] if notebook.needs_gpu else []),
        *_section("settings", SETTINGS, SETTINGS_CODE, known),
        ("code", "load", f"{imports}\n\n{checks}"),
        *_section("data", DATA, DATA_CODE, known),
        ("markdown", "words", TRAIN),
        *(("code", "train", stage) for stage in stages),
        ("markdown", "words", MEASURE),
        ("code", "measure", measure),
        *_section("memory", MEMORY, MEMORY_CODE, known),
        *_section("try", TRY, TRY_CODE, known),
        *_section("save", SAVE, SAVE_CODE, known),
    ]


def _section(tag: str, words: str, code: str, known: dict[str, str]) -> list[tuple[str, str, str]]:
    return [("markdown", "words", words.format(**known)), ("code", tag, code.format(**known))]


def as_json(notebook: Notebook) -> str:
    """The notebook as a file of format 4.5, without outputs."""
    written = []
    for number, (kind, tag, text) in enumerate(cells(notebook)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"{number:02d}-{tag}", "metadata": {"tags": [tag]}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        written.append(cell | {"source": text.splitlines(keepends=True)})
    gpu = {"accelerator": "GPU"} if notebook.needs_gpu else {}
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
