"""What Windows and macOS lack is not needed, as far as that can be tried elsewhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from example_rows import make_row
from test_architecture import PACKAGE, modules

from polylight.run.store import RunStore

HERE = Path(__file__).parent
POSIX_ONLY = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios", "tty"}
# Windows has none of them; text without an encoding would be read and written as its code page.
AS_ON_WINDOWS = f"""
import os, sys, warnings
for name in {sorted(POSIX_ONLY - {"posix", "tty"})}:
    sys.modules[name] = None
for name in ("fchmod", "getuid", "pread", "pwrite"):
    if hasattr(os, name):
        delattr(os, name)
warnings.filterwarnings("ignore", category=EncodingWarning)
warnings.filterwarnings("error", category=EncodingWarning, module="polylight")
"""
READ = """
import polylight, torch
assert polylight.read_run(sys.argv[1])["neuron"].to_pylist() == ["a:0"]
assert polylight.read_rows(sys.argv[1])[0].neuron == "a:0"
metric = polylight.PolysemanticityScore()
metric.update(torch.eye(8)[torch.arange(16) // 8] + 0.01, torch.ones(16))
assert .4 < metric.compute() < .6
from polylight.cli import main
sys.exit(main(["show", sys.argv[1]]))
"""
FIT = """
from test_fit import TINY
from polylight.cli import main
sys.exit(main(["fit", "--run_dir", sys.argv[1], "--data.neurons", "act3:0", *TINY]))
"""


def on_windows(code, *args, **environment):
    """Run code where what Windows lacks is missing."""
    paths = [str(PACKAGE.parent), str(HERE), str(HERE / "e2e")]
    code = f"{AS_ON_WINDOWS}\nsys.path[:0] = {paths}\n{code}"
    # As in a pipe on Windows, whose code page does not have the lines of a table.
    environment = {"PYTHONIOENCODING": "cp1252", "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", code, *map(str, args)],
        capture_output=True,
        check=False,
        env={**ENVIRONMENT, **environment},
    )


ENVIRONMENT = {"PATH": "", "HF_HUB_OFFLINE": "1"}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_nothing_of_posix_alone_is_imported(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    assert not names & POSIX_ONLY


def test_a_run_is_read_and_scored_without_what_windows_lacks(tmp_path):
    store = RunStore(tmp_path)
    store.append([make_row("a:0")])
    store.close()
    ended = on_windows(READ, tmp_path)
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"a:0" in ended.stdout


def test_a_run_is_made_without_what_windows_lacks(tmp_path):
    ended = on_windows(FIT, tmp_path / "run", HOME=str(tmp_path), POLYLIGHT_CACHE=str(tmp_path))
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"has no file locks: do not start this run twice" in ended.stderr
    assert b"act3:0" in ended.stdout
