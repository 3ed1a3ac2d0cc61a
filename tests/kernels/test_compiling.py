import os
import subprocess
import sys
from pathlib import Path

import pytest

import polylight
from polylight.errors import InputError
from polylight.kernels import compiling

KERNEL = """
from room.part import factor
from polylight.kernels.compiling import compiled

@compiled()
def times(number: float) -> float:
    return number * factor(number)
"""
PART = """
from polylight.kernels.compiling import compiled

@compiled(inline=True)
def factor(number: float) -> float:
    return {factor}
"""
SCRIPT = """
from room.kernel import times

print(times(2.0), times.stats.cache_hits.total(), times.stats.cache_misses.total())
"""


def test_what_is_compiled_is_kept_until_any_file_of_its_folder_changes(tmp_path):
    folder = tmp_path / "room"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "kernel.py").write_text(KERNEL)
    root = Path(polylight.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    environment.pop("NUMBA_CACHE_DIR", None)

    def run():
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [float(word) for word in done.stdout.split()]

    (folder / "part.py").write_text(PART.format(factor=3.0))
    assert run() == [6.0, 0, 1]
    assert run() == [6.0, 1, 0]
    # Of another size, as the clock of the file system may be slow.
    (folder / "part.py").write_text(PART.format(factor=10.0))
    assert run() == [20.0, 0, 1]


def test_no_place_for_what_is_compiled_is_the_users_to_mend(monkeypatch):
    def refuse(**options):
        raise RuntimeError("no locator available")

    monkeypatch.setattr(compiling, "njit", refuse)
    with pytest.raises(InputError, match=r"no locator available.*NUMBA_CACHE_DIR"):
        compiling.compiled()(len)
