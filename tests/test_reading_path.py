"""From a recipe to the loss it is not far: few calls, few lines."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from small_runs import RECIPE, flags, run_here

from dcr_lite.method import contrastive, geometry, gradcache, loop, losses
from dcr_lite.run import steps

ROOT = RECIPE.parent.parent
MOST_CALLS, MOST_LINES = 5, 600


def test_the_loss_is_few_calls_from_the_recipe(
    tiny: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a real run the stack from the recipe's main to the loss holds at most five calls, and each function on it
    stands in a module that docs/method.md lists."""
    stacks: list[list[inspect.FrameInfo]] = []
    supervised_contrastive = losses.supervised_contrastive

    def recorded(temperature: float) -> losses.Loss:
        loss = supervised_contrastive(temperature)

        def with_stack(similarity: Any, is_toxic: Any) -> Any:
            stacks.append(inspect.stack()[1:])
            return loss(similarity, is_toxic)

        return with_stack

    monkeypatch.setattr(losses, "supervised_contrastive", recorded)
    few = {"contrastive_steps": 1, "stage2": "no", "compare_with": []}
    assert run_here(flags(tiny, rows, tmp_path / "run", **few)).code == 0
    ours = [frame for frame in stacks[0] if Path(frame.filename).is_relative_to(ROOT)]
    below_main = ours[: [Path(frame.filename) for frame in ours].index(RECIPE)]
    assert len(below_main) + 1 <= MOST_CALLS, [frame.function for frame in below_main]
    listed = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    for frame in below_main:
        assert str(Path(frame.filename).relative_to(ROOT)) in listed


def test_the_method_is_read_in_one_sitting() -> None:
    """The recipe, the step that trains a stage, the loop, stage 1, geometry, losses and GradCache: at most 600 lines
    with all docstrings and comments."""
    whole = (contrastive, geometry, gradcache, losses, loop)
    lines = len(RECIPE.read_text(encoding="utf-8").splitlines())
    lines += sum(len(inspect.getsource(module).splitlines()) for module in whole)
    lines += sum(len(inspect.getsource(function).splitlines()) for function in (steps.refine, steps.train))
    assert lines <= MOST_LINES


def test_no_function_and_no_module_is_long() -> None:
    """Every module of the kit has at most 300 lines, every function at most 50."""
    import ast

    for path in [*(ROOT / "dcr_lite").rglob("*.py"), *RECIPE.parent.glob("*.py"), ROOT / "app.py"]:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 50, f"{path.name}: {node.name}"
