"""Which implementation of an operation runs: one rule for all of them."""

import importlib.util
import os
import platform
from typing import Literal, get_args

import torch

from polylight.errors import InputError, nearest

Kernels = Literal["auto", "torch", "triton"]
"""What a user asks for."""
Backend = Literal["torch", "numba", "triton"]
"""What runs."""

# What Triton itself takes for true.
_TRUE = {"1", "true", "on", "yes", "y"}


def resolve_kernels(kernels: str, device: torch.device) -> Backend:
    """Say which implementation runs on a device.

    ``auto`` is the fast one of the device: Triton on CUDA, numba on a CPU, plain torch elsewhere.
    An operation without a numba kernel is plain torch on a CPU. Nothing falls back: what is
    missing is an error.

    Args:
        kernels: ``auto``; ``torch``, the plain twin that every operation has; or ``triton``.
        device: Where the tensors are.

    Returns:
        ``torch``, ``numba`` or ``triton``.

    Raises:
        InputError: The name is unknown, Triton is not installed, or it cannot run on the device.
    """
    if kernels not in get_args(Kernels):
        raise InputError(
            f"kernels must be one of {', '.join(get_args(Kernels))}, got {kernels!r}; "
            f"{nearest(kernels, get_args(Kernels))}"
        )
    if kernels == "torch":
        return "torch"
    if kernels == "auto" and device.type != "cuda":
        return "numba" if device.type == "cpu" else "torch"
    if device.type != "cuda" and not is_interpreted():
        raise InputError(
            f"kernels 'triton' needs tensors on a CUDA device, got {device}; move them there, set "
            "kernels to 'auto', or set TRITON_INTERPRET=1 in the environment to try the kernels "
            "out slowly"
        )
    if importlib.util.find_spec("triton") is None:
        raise InputError(
            f"kernels {kernels!r} on {device} needs Triton, which is not installed; install it "
            "with pip install triton, or set kernels to 'torch'"
        )
    return "triton"


def is_interpreted() -> bool:
    """Whether Triton kernels run in its interpreter, on any device."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in _TRUE


def has_fma() -> bool:
    """Whether the processor has fused multiply-add; others take a function call for each."""
    is_arm = platform.machine() in ("aarch64", "arm64")
    return is_arm or torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
