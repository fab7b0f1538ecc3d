"""Exports a finished run as a Hugging Face Space of its demo: ``dcr-lite export --to space``.

The folder is all that the Space needs: the kit itself, since nothing says that the version which wrote the run can be
installed there, the parts of the run that the demo reads, and the base model where nobody can get it by its name.
"""

import shutil
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import dcr_lite
from dcr_lite.data.sources import FETCHED, locate
from dcr_lite.errors import UserError
from dcr_lite.export.command import SMALL_FILES_BYTES, FinishedRun, require_new, write_folder
from dcr_lite.export.merge import read_json
from dcr_lite.files import load_json, require_disk, write_json, write_text
from dcr_lite.names import BASELINE, short_name
from dcr_lite.run.caution import FILE as CAUTION_FILE
from dcr_lite.run.model_card import base_of, is_hub_name
from dcr_lite.run.run_folder import FOUND_FILE
from dcr_lite.run.terminal import quoted
from dcr_lite.settings import ModelSettings

# Folders in the Space; in each there is one that is called as it was here, by which a model without another name goes.
RUN, MODEL = "run", "model"
DIAL_FILES = ("dial/dial.json", "dial/dial.safetensors")
TEXTS = "adapter/discernment.safetensors"
APP = '''"""The demo of dcr-lite: python app.py"""

import os
from pathlib import Path

from dcr_lite.demo.page import main

os.chdir(Path(__file__).parent)
main(Path({run!r}), port=int(os.environ.get("GRADIO_SERVER_PORT", "7860")), address="0.0.0.0")
'''
PAGE = """---
title: {name}
emoji: 🎚️
colorFrom: blue
colorTo: gray
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
{models}---

# {name}

{model}, aligned by [dcr-lite](https://github.com/dcr-lite/dcr-lite) to refuse toxic prompts and to answer those that
only sound toxic, beside the model as it was. Method: Lu et al., arXiv 2603.03323. The answers are a small model's: they
can be wrong, and refusing is not safety.
"""
NEXT = """hf upload me/{name} {out} . --repo-type space --private

Everything in that folder goes to the Space.{texts}"""
PUBLISHED = (
    " {file} holds the texts of the development pairs, some of them toxic questions: look before you make it public."
)


def export_space(run: FinishedRun, out: Path | None = None) -> tuple[Path, str]:
    """Write the folder of a Space with the demo of the run; returns it with what to do next, in words.

    out: by default RUN/space; whole or absent. Raises UserError where it exists, for too little disk, and without
    gradio, whose version the Space has to name.
    """
    out = out or run.path / "space"
    require_new(out)
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        raise UserError("a Space of the demo needs gradio: pip install 'dcr-lite[demo]'") from None
    model = base_of(run.report)
    base = None if is_hub_name(model) else Path(locate(model)[0])
    folder, own = f"{RUN}/{run.path.resolve().name}", f"{MODEL}/{short_name(model)}"
    copied = [file for pattern in FETCHED["allow_patterns"] for file in (base.glob(pattern) if base else ())]
    copied = [file for file in copied if not file.match(FETCHED["ignore_patterns"][0])]
    require_disk(out.parent, sum(file.stat().st_size for file in copied) + 2 * SMALL_FILES_BYTES)

    def write(partial: Path) -> None:
        write_text(partial / "app.py", APP.format(run=folder))
        write_text(partial / "requirements.txt", "".join(f"{line}\n" for line in requirements()))
        models = f"models:\n  - {model}\n" if base is None else ""
        page = PAGE.format(name=run.name, gradio=gradio, models=models, model=short_name(model))
        write_text(partial / "README.md", page)
        package = Path(dcr_lite.__file__).parent
        shutil.copytree(package, partial / "dcr_lite", ignore=shutil.ignore_patterns("__pycache__"))
        for file in copied:
            (partial / own).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, partial / own / file.name)
        _copy_run(run, partial / folder, own if base else model)

    write_folder(out, write)
    texts = PUBLISHED.format(file=f"{folder}/{TEXTS}") if (out / folder / TEXTS).exists() else ""
    return out, NEXT.format(name=run.served_name, out=quoted(out), texts=texts)


def requirements() -> list[str]:
    """What the kit and its demo need, without gradio, which a Space brings. The kit itself lies in the Space, so there
    it is no installed package."""
    found = [line.partition(";") for line in requires("dcr-lite") or ()]
    return [line.strip() for line, _, when in found if "extra ==" not in when]


def _copy_run(run: FinishedRun, folder: Path, model: str) -> None:
    """The parts of a run that the demo reads, of a base called ``model``, without paths of this machine."""
    settings = load_json(run.path / "settings.json")["settings"]
    names = {"compare_with", "stage1", "stage2", "answers", "dial", "layer"}
    names |= {field.name for field in fields(ModelSettings)}
    kept = {name: value for name, value in settings.items() if name in names}
    folder.mkdir(parents=True)
    write_json({"settings": kept | {"model": model}}, folder / "settings.json")
    for adapter in ("adapter", *([BASELINE] if BASELINE in settings.get("compare_with", ()) else [])):
        shutil.copytree(run.path / adapter, folder / adapter)
        config = folder / adapter / "adapter_config.json"
        write_json(read_json(config) | {"base_model_name_or_path": model}, config)
    for file in (FOUND_FILE, CAUTION_FILE, *DIAL_FILES):
        if (run.path / file).exists():
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(run.path / file, folder / file)
