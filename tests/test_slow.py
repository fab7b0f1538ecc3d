"""slow.txt: the tests that the fast tier leaves out."""

import ast

import pytest
from conftest import slow_tests


@pytest.mark.parametrize("line", sorted(slow_tests()))
def test_every_line_names_a_test(line: str, request: pytest.FixtureRequest) -> None:
    """A test that was renamed or removed is renamed or removed in the list."""
    file, _, name = line.partition("::")
    (path,) = request.path.parent.rglob(file)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert not name or name.partition("[")[0] in names
