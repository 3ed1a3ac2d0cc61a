import re
import subprocess
import sys
from pathlib import Path

from polylight import kernels

ROOT = Path(kernels.__file__).parents[2]
SCRIPT = """
import sys
import polylight.kernels

ours = [name for name in sys.modules if name.startswith("polylight.kernels.")]
print("numba" in sys.modules, [name for name in ours if name.endswith((".cpu", ".triton"))])
"""


def test_compilers_are_imported_when_a_kernel_runs():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False []"


def test_every_operation_has_a_reference():
    folders = [path.parent for path in Path(kernels.__file__).parent.glob("*/__init__.py")]
    assert len(folders) == 6
    for folder in folders:
        assert (folder / "reference.py").exists(), folder.name


def test_others_import_operations_and_not_their_folders():
    deep = re.compile(r"(?:from|import) polylight\.kernels\.(\w+)")
    sources = [path for part in ("polylight", "benchmarks") for path in (ROOT / part).rglob("*.py")]
    outside = [path for path in sources if "kernels" not in path.parts[len(ROOT.parts) : -1]]
    assert len(outside) > 50
    found = {path.name: deep.findall(path.read_text(encoding="utf-8")) for path in outside}
    assert {name: modules for name, modules in found.items() if modules} == {}
