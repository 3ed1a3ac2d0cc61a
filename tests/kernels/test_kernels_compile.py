"""The interpreter takes Python that the compiler does not; compiling needs no GPU."""

import os
import subprocess
import sys

import pytest

# In a process of its own: this one's kernels belong to the interpreter.
SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from polylight.kernels import augment_triton, philox_triton, slot_adam_triton

INT, FLOAT, FLOATS, HALVES = "i32", "fp32", "*fp32", "*bf16"
KERNELS = [
    (philox_triton._uniform_kernel, ["*i64", "*i64", FLOATS, INT, INT], {"BLOCKS": 64}),
    (augment_triton._forward_kernel, [FLOATS] * 4 + [HALVES] + [INT] * 8, {"BLOCK": 64}),
    (augment_triton._backward_kernel, [HALVES] + [FLOATS] * 3 + [INT] * 8, {"BLOCK": 64}),
    (slot_adam_triton._step_kernel, [FLOATS] * 5 + ["*u8"] + [FLOAT] * 6 + [INT] * 2, {"BLOCK": 8}),
]
for kernel, types, constants in KERNELS:
    names = kernel.arg_names
    signature = dict(zip(names, types + ["constexpr"] * len(constants), strict=True))
    places = {(names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, places)
    options = {"enable_fp_fusion": True}
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    # Neither atomics nor float64, which is slow on most GPUs.
    print(kernel.__name__, "atom" in code or "red.global" in code, ".f64" in code)
"""


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
    names = ["_uniform_kernel", "_forward_kernel", "_backward_kernel", "_step_kernel"]
    assert done.stdout.splitlines() == [f"{name} False False" for name in names]
