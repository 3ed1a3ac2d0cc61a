"""The direction of imports: a room imports from those below it, and never back."""

import ast
from pathlib import Path

import pytest

import polylight

PACKAGE = Path(polylight.__file__).parent
# From the ground up; rooms of a line know nothing of each other.
FLOORS = (
    ("errors", "noise", "stopwatch"),
    ("neurons", "kernels", "isolation"),
    ("networks", "run"),
    ("embedding", "clustering"),
    ("ascent",),
    ("reference", "scoring", "photos", "checking"),
    ("inspect",),
    ("data", "module", "report"),
    ("callbacks",),
    ("session",),
    ("commandline",),
    ("fit",),
    ("planted", "api"),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Names that the package itself hands on, loaded when they are asked for.
FACE = {"__init__", "__main__"}


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules():
    # A link is not followed by itself.
    found = [*PACKAGE.rglob("*.py"), *(PACKAGE / "kernels").rglob("*.py")]
    return sorted({p for p in found if room_of(p) not in FACE})


def imported(path):
    """The rooms that a module imports, also those that it imports within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module == "polylight":
            names = [f"polylight.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("polylight.")}
    return found


def test_every_room_has_its_floor():
    assert {room_of(path) for path in modules()} == FLOOR.keys()


@pytest.mark.parametrize("room", sorted(FLOOR))
def test_imports_go_down(room):
    for path in modules():
        if room_of(path) == room:
            up = {r for r in imported(path) - {room} if FLOOR.get(r, -1) >= FLOOR[room]}
            assert not up, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(up))}"


def test_every_import_names_a_room():
    names = {name for path in modules() for name in imported(path)}
    # __version__ and the like are the package's own.
    assert {n for n in names if not n.startswith("_")} <= FLOOR.keys()


def test_a_stranger_finds_few_modules_at_the_top():
    top = [p for p in PACKAGE.glob("*.py") if p.stem not in FACE]
    assert len(top) <= 12


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 440
