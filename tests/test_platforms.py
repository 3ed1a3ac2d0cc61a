"""What Windows and macOS lack is not needed, as far as that can be tried elsewhere."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from test_architecture import PACKAGE, modules

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
CODE = """
from test_fit import TINY
from polylight.cli import main
run = sys.argv[1]
assert main(["fit", "--run_dir", run, "--data.neurons", "act3:0", *TINY]) == 0
assert os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] == "1"
import polylight, torch
assert polylight.read_run(run)["neuron"].to_pylist() == ["act3:0"]
metric = polylight.PolysemanticityScore()
metric.update(torch.eye(8)[torch.arange(16) // 8] + 0.01, torch.ones(16))
assert .4 < metric.compute() < .6
sys.exit(main(["show", run]))
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


@pytest.mark.slow
def test_a_run_is_made_read_and_scored_without_what_windows_lacks(tmp_path):
    ended = on_windows(CODE, tmp_path / "run", HOME=str(tmp_path), POLYLIGHT_CACHE=str(tmp_path))
    assert ended.returncode == 0, ended.stderr.decode()
    assert b"has no file locks: do not start this run twice" in ended.stderr
    assert ended.stdout.count(b"act3:0") == 2
