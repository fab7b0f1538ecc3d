"""The rooms of the kit stand as CONTRIBUTING.md draws them."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = {path.stem: path for path in (ROOT / "dcr_lite").glob("*.py") if path.stem != "__init__"}
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def lines_of_rooms() -> dict[str, int]:
    """The line, counted from the top, on which each room stands in the drawing of the arrows."""
    drawing = TEXT.split("## The arrows")[1].split("```")[1].strip().splitlines()
    return {room: number for number, line in enumerate(drawing) for room in line.split()}


def imported_by(path: Path) -> set[str]:
    """The rooms that a file imports from, inside its functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "dcr_lite":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dcr_lite."):
            found.add(str(node.module).split(".")[1])
    return found


def test_every_room_is_drawn_and_has_its_job() -> None:
    """Each file of the kit stands once in the table of jobs and on one line of the drawing."""
    assert ROOMS.keys() <= lines_of_rooms().keys()
    for room in ROOMS:
        assert TEXT.count(f"\n| `{room}.py` |") == 1, room


def test_arrows_point_one_way() -> None:
    """A room imports only from lines below its own; what is on the lowest line imports nothing of ours."""
    line = lines_of_rooms()
    for room, path in ROOMS.items():
        above = {other for other in imported_by(path) if line[other] <= line[room]}
        assert not above, f"{room} imports {above}"
