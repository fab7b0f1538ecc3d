"""The notebooks: made from the recipes, complete, and every call in them one that the package takes."""

import ast
import importlib.util
import inspect
import json
import tomllib
from collections.abc import Collection
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import make
import pytest
from packaging.requirements import Requirement
from recipe_runs import small_settings
from small_runs import contents

from dcr_lite.data.rows import Pair
from dcr_lite.errors import UserError
from dcr_lite.export.command import FinishedRun
from dcr_lite.model.generation import Answer
from dcr_lite.model.loading import Model
from dcr_lite.model.memory import needs
from dcr_lite.model.shapes import shape_of
from dcr_lite.names import DCR, MODEL_TITLES, STOCK
from dcr_lite.run.cards import CARDS, DESKTOP
from dcr_lite.run.inputs import Data, resolved
from dcr_lite.run.recipes import find_recipe, load_recipe
from dcr_lite.run.run_folder import RunFolder
from dcr_lite.settings import Settings

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
FILES = sorted(FOLDER.glob("*.ipynb"))


each_notebook = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)


def cells(file: Path) -> list[tuple[str, str]]:
    """(tag, source) of the code cells."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    return [
        (cell["metadata"]["tags"][0], "".join(cell["source"]))
        for cell in notebook["cells"]
        if cell["cell_type"] == "code"
    ]


def python(file: Path) -> str:
    """The code of a notebook without the cell that installs."""
    return "\n\n".join(source for tag, source in cells(file) if tag != "install")


# --- as files ---------------------------------------------------------------------------------------------------------


def test_the_notebooks_are_what_the_script_makes() -> None:
    """`python notebooks/make.py` would change nothing: no notebook was edited by hand or left behind by a recipe."""
    assert {file.stem for file in FILES} == {notebook.recipe for notebook in make.NOTEBOOKS}
    for notebook in make.NOTEBOOKS:
        found = (FOLDER / f"{notebook.recipe}.ipynb").read_text(encoding="utf-8")
        assert found == make.as_json(notebook), f"{notebook.recipe}: run python notebooks/make.py"


@each_notebook
def test_a_notebook_is_one_of_the_format_without_outputs(file: Path) -> None:
    """Jupyter's own schema takes it, and nothing that a model said is in it."""
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed here")
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


@each_notebook
def test_a_notebook_has_every_part_in_order(file: Path) -> None:
    """A badge that opens this very file, then install, load, rows, train, measure, memory, try it, save."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    first = "".join(notebook["cells"][0]["source"])
    assert f"/notebooks/{file.name})" in first
    assert first.startswith("[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]")
    titles = [
        "".join(cell["source"]).split("\n")[0].removeprefix("## ")
        for cell in notebook["cells"][1:]
        if cell["cell_type"] == "markdown"
    ]
    assert titles == ["Install", "Load", "Data", "Train", "Measure", "Memory", "Try it", "Save"]


@each_notebook
def test_a_notebook_installs_the_kit_alone(file: Path) -> None:
    """From the repository that pyproject.toml names, and leaves the versions of all other packages to that."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    installed = Requirement(dict(cells(file))["install"].split('"')[1])
    assert (installed.name, installed.url) == (project["name"], f"git+{project['urls']['Repository']}")
    # Colab's psutil, which runs already, stays: replacing it would ask for a restart in the middle of the notebook.
    assert "5.9.5" in Requirement(next(one for one in project["dependencies"] if one.startswith("psutil"))).specifier
    assert "%cd" not in file.read_text(encoding="utf-8")


@each_notebook
def test_a_notebook_tells_the_story_of_its_recipe(file: Path) -> None:
    """Every statement of the recipe's main is in the notebook, in its order, and its settings are the recipe's."""
    recipe = ast.parse((ROOT / "recipes" / f"{file.stem}.py").read_text(encoding="utf-8"))
    main = next(node for node in recipe.body if isinstance(node, ast.FunctionDef) and node.name == "main")
    told = [ast.unparse(node) for node in ast.parse(python(file)).body]
    places = [told.index(ast.unparse(statement)) for statement in main.body]
    assert places == sorted(places)
    assert f"recipe = load_recipe(find_recipe('{file.stem}'))" in told


@each_notebook
def test_the_kit_is_imported_before_torch_sees_a_card(file: Path) -> None:
    """It chooses how torch takes memory there, which torch reads once."""
    told = [ast.unparse(node) for node in ast.parse(python(file)).body]
    kit = next(i for i, line in enumerate(told) if "dcr_lite" in line)
    assert not any("torch" in line for line in told[:kit])


@each_notebook
def test_a_notebook_says_nothing_of_the_command_line(file: Path) -> None:
    """What the recipe says of its flags has no meaning there."""
    assert "--help" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("notebook", make.NOTEBOOKS, ids=lambda notebook: notebook.recipe)
def test_a_notebook_is_for_a_card_that_has_room(notebook: Any) -> None:
    """By the estimate every part of the run fits a free T4, in four bits and even with float32 activations, with the
    batches of the recipe."""
    settings = resolved(replace(load_recipe(find_recipe(notebook.recipe)).SETTINGS, data="shipped"))
    free = next(size for card, size in CARDS.items() if card.startswith("T4")) - DESKTOP
    for need in needs(shape_of(settings.model), settings, four_bit=True, value_bytes=4):
        assert need.units(free) is not None, need.name


# --- the calls --------------------------------------------------------------------------------------------------------

# The types of what a notebook's names stand for, so that attributes and methods can be looked up.
MADE: dict[str, type] = {
    "settings": Settings,
    "run": RunFolder,
    "model": Model,
    "data": Data,
    "finished": FinishedRun,
    "said": Answer,
    "pair": Pair,
}


def namespace(tree: ast.Module) -> dict[str, Any]:
    """Everything that the notebook imports, by its name there."""
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and importlib.util.find_spec(node.module.split(".")[0]):
            module = importlib.import_module(node.module)
            for alias in node.names:
                # Fails here for a name that is not there.
                found = getattr(module, alias.name, None) or importlib.import_module(f"{node.module}.{alias.name}")
                names[alias.asname or alias.name] = found
    return names


@each_notebook
def test_every_call_is_one_that_the_package_takes(file: Path) -> None:
    """Each call binds to the real signature, each attribute is there, and each setting that is replaced exists."""
    tree = ast.parse(python(file))
    names = namespace(tree)
    checked = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = node.value.id
            if owner in MADE:
                known = {f.name for f in fields(MADE[owner])} if hasattr(MADE[owner], "__dataclass_fields__") else set()
                known |= set(dir(MADE[owner])) | ({"path"} if owner == "run" else set())
                assert node.attr in known, f"{owner}.{node.attr}"
            elif owner in names:
                assert hasattr(names[owner], node.attr), f"{owner}.{node.attr}"
        if not isinstance(node, ast.Call):
            continue
        target = None
        if isinstance(node.func, ast.Name):
            target = names.get(node.func.id)
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            target = getattr(names.get(node.func.value.id), node.func.attr, None)
        if target is None or not getattr(target, "__module__", "").startswith("dcr_lite"):
            continue
        keywords = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(target).bind(*node.args, **keywords)
        checked.add(target.__name__)
    parts = {"RunFolder", "load_data", "load_model", "refine", "teach_refusals", "evaluate", "write_up", "answer"}
    parts |= {"load_recipe", "find_recipe", "resolved", "open_finished", "export_gguf", "encode_prompts", "switch"}
    assert checked >= parts | {"teach_refusals_alone"}
    replaced = next(n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "replace")
    assert {k.arg for k in replaced.keywords} <= {f.name for f in fields(Settings)}


@pytest.mark.parametrize("notebook", make.NOTEBOOKS, ids=lambda notebook: notebook.recipe)
def test_a_notebook_checks_for_a_gpu_first(notebook: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is loaded, with what to click; the notebook of SmolLM2 needs none."""
    found = cells(FOLDER / f"{notebook.recipe}.ipynb")
    tags = [tag for tag, _ in found]
    assert ("check" in tags) == (notebook.recipe != "smollm2_135m")
    if "check" in tags:
        assert tags[:3] == ["install", "check", "settings"]
        monkeypatch.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(RuntimeError, match="Change runtime type > T4 GPU"):
            exec(compile(dict(found)["check"], "check", "exec"), {})


# --- run --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("recipe", "models"), [("smollm2_135m", MODEL_TITLES), ("qwen2_5_1_5b", {STOCK, DCR})])
def test_a_notebook_runs(
    recipe: str, models: Collection[str], tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The cells of a notebook, in order, train and measure a tiny model on the CPU, answer, and save an adapter and a
    GGUF file: of SmolLM2's, which trains safety SFT alone as well, and of one that does not. After that the run is
    finished, and what is run again in it ends with an error."""
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {}
    for tag, source in cells(FOLDER / f"{recipe}.ipynb"):
        if tag in ("install", "check"):
            continue
        exec(compile(source, f"cell {tag}", "exec"), known)
        if tag == "settings":
            shipped = replace(known["recipe"].SETTINGS, data="shipped", run=Path("runs/notebook"), resume=True)
            assert known["settings"] == resolved(shipped)
            asked = known["settings"].compare_with
            known["settings"] = small_settings(tiny, rows, tmp_path / "run", answer_tokens=4, compare_with=asked)
    out = capsys.readouterr().out
    for name, title in MODEL_TITLES.items():
        assert (f"{title}: How do I kill a Python process that hangs?\n" in out) == (name in models)
    assert (tmp_path / "adapter.zip").stat().st_size > 10_000
    assert [file.suffix for file in (tmp_path / "run" / "gguf").iterdir() if file.name != "README.md"] == [".gguf"]
    assert known["report"]["methods"].keys() == set(models)
    before = contents(tmp_path / "run")
    again = [source for tag, source in cells(FOLDER / f"{recipe}.ipynb") if tag in ("train", "measure")]
    for source in (again[0], again[-1]):
        with pytest.raises(UserError, match="this run is finished"):
            exec(source, known)
    assert contents(tmp_path / "run") == before
