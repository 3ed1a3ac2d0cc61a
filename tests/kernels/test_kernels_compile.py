"""The interpreter takes Python that the compiler does not; compiling needs no GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polylight import kernels

# In a process of its own: this one's kernels belong to the interpreter.
SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polylight.kernels.adam import triton as adam
from polylight.kernels.augment import triton as augment
from polylight.kernels.kmeans import triton as kmeans
from polylight.kernels.philox import triton as philox

INT, FLOAT, FLOATS, HALVES = "i32", "fp32", "*fp32", "*bf16"
DOUBLES, LONGS, BYTES = "*fp64", "*i64", "*i8"
KERNELS = [
    (adam._step_kernel, [FLOATS] * 5 + ["*u8"] + [FLOAT] * 6 + [INT] * 2, {"BLOCK": 8}),
    (augment._forward_kernel, [FLOATS] * 4 + [HALVES] + [INT] * 8, {"BLOCK": 64}),
    (augment._backward_kernel, [HALVES] + [FLOATS] * 3 + [INT] * 8, {"BLOCK": 64}),
    (
        kmeans._solve_kernel,
        [DOUBLES] + [LONGS] * 3 + [BYTES, DOUBLES] + [INT] * 5 + [FLOAT],
        {"K": 8, "N": 16},
    ),
    (philox._uniform_kernel, [LONGS] * 2 + [FLOATS] + [INT] * 2, {"BLOCKS": 64}),
]
for kernel, types, constants in KERNELS:
    names = kernel.arg_names
    signature = dict(zip(names, types + ["constexpr"] * len(constants), strict=True))
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    options = {"enable_fp_fusion": True}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    room = kernel.fn.__module__.split(".")[-2]
    print(room, kernel.__name__, "atom" in code or "red.global" in code, ".f64" in code)
"""
# Room and kernel; whether it has atomics, whose order changes the last digits, and whether it has
# float64, which is slow on most GPUs and which clusters need.
EXPECTED = [
    "adam _step_kernel False False",
    "augment _forward_kernel False False",
    "augment _backward_kernel False False",
    "kmeans _solve_kernel False True",
    "philox _uniform_kernel False False",
]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton has compilers for Linux alone")
def test_every_kernel_compiles_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == EXPECTED


def test_no_kernel_is_left_out():
    """Each function that Triton launches is compiled above."""
    found = {
        f"{path.parent.name} {line.split('(')[0].removeprefix('def ')}"
        for path in Path(kernels.__file__).parent.rglob("*.py")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("def _") and line.split("(")[0].endswith("_kernel")
    }
    assert found == {line.rsplit(maxsplit=2)[0] for line in EXPECTED}
