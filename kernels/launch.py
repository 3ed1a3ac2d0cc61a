"""How a Triton kernel is launched."""

from typing import Any

import torch
from torch import Tensor


def launch(
    kernel: Any, programs: int, first: Tensor, *rest: Tensor | float, **constants: int
) -> None:
    """Launch programs on the device of the first argument, on its current stream.

    Args:
        kernel: What ``triton.jit`` returned.
        programs: How many, in a grid of one axis: the others end at 65,535. With 0 nothing runs.
        first: The kernel's first argument.
        rest: Its others.
        constants: The kernel's compile-time constants.
    """
    if not programs:
        return
    with torch.cuda.device(first.get_device()):
        # Its default differs between releases of Triton, and so would the last digits.
        kernel[(programs,)](first, *rest, **constants, enable_fp_fusion=True)
