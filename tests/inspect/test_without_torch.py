"""What only looks at a run needs no torch: loading it would take seconds."""

import subprocess
import sys

import pytest
from example_rows import make_dead, make_row

from polylight.run.store import RunStore

BLOCK = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "torchvision", "lightning", "timm"):
            raise ModuleNotFoundError(f"no {name} here", name=name)

sys.meta_path.insert(0, Missing())
"""
COMMANDS = [
    ["--help"],
    ["show", "RUN"],
    ["show", "RUN", "--where", "score > 0", "--csv"],
    ["query", "RUN", "SELECT neuron, score, image FROM neurons"],
    ["query", "RUN", "DESCRIBE neurons", "--json"],
    ["report", "RUN"],
    ["report", "RUN", "RUN", "--pdf", "false"],
]
SHEET = """
from polylight.inspect.contact_sheet import contact_sheet, extreme_rows
contact_sheet(extreme_rows(sys.argv[1], 4), sys.argv[2])
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    store = RunStore(path)
    store.append([make_row("a:0"), make_row("a:1", score=0.25), make_dead()])
    store.close()
    return str(path)


def without_torch(code, *args):
    command = [sys.executable, "-c", f"{BLOCK}\n{code}", *args]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_run_is_read_without_torch(run, command):
    args = [run if arg == "RUN" else arg for arg in command]
    code = "from polylight.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = without_torch(code, *args)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout or args[0] == "report"


def test_a_contact_sheet_is_drawn_without_torch(run, tmp_path):
    ended = without_torch(SHEET, run, str(tmp_path / "sheet.png"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_what_is_taken_away_would_be_missed():
    ended = without_torch("import polylight.module")
    assert "no torch here" in ended.stderr


def test_a_run_is_opened_in_python_without_torch(run):
    code = """
import polylight
run = polylight.open_run(sys.argv[1])
assert len(run["a:0"].clusters) == 2 and "a:1" in run._repr_html_() and "a:0" in repr(list(run))
assert run.to_arrow().num_rows == 3 and run.center is None
"""
    ended = without_torch(code, run)
    assert ended.returncode == 0, ended.stderr
