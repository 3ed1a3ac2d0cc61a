"""How exactly the subject is computed while images climb, and while they are judged."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from polylight.errors import InputError, nearest

Precision = Literal["float32", "tf32", "bfloat16"]
PrecisionChoice = Literal["auto", "float32", "tf32", "bfloat16"]


def resolve_precision(choice: str, device: torch.device) -> Precision:
    """Say how the subject is computed on a device while images climb.

    ``auto`` is bfloat16 on a GPU and float32 elsewhere. Finished images are judged in float32
    whatever is chosen.

    Args:
        choice: ``auto``, ``float32``, ``tf32`` (CUDA only) or ``bfloat16``.
        device: Where the subject is.

    Returns:
        The precision.

    Raises:
        InputError: If there is no such precision, or the device does not know it.
    """
    if choice not in get_args(PrecisionChoice):
        names = get_args(PrecisionChoice)
        raise InputError(
            f"precision must be one of {', '.join(names)}, got {choice!r}; {nearest(choice, names)}"
        )
    if choice == "tf32" and device.type != "cuda":
        raise InputError(
            f"precision 'tf32' needs a CUDA device, and the run is on {device}; set "
            "--model.precision float32"
        )
    if choice == "auto":
        return "bfloat16" if device.type == "cuda" else "float32"
    return choice  # type: ignore[return-value]


@contextmanager
def arithmetic(precision: Precision, device: torch.device) -> Iterator[None]:
    """Set what CUDA's libraries may do to float32, and how they choose algorithms, for a block.

    Convolutions are timed once for each shape and only repeatable ones are used. What holds
    outside the block comes back after it.
    """
    if device.type != "cuda":
        yield
        return
    tf32, before = precision == "tf32", torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        with torch.backends.cudnn.flags(
            enabled=True, benchmark=True, deterministic=True, allow_tf32=tf32
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
