"""Memory that the CPU kernels work in."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

LANES = 8
"""Numbers of float64 in the widest vector register."""
_CACHE_LINE = 64


def aligned(*shape: int, dtype: type = np.float64) -> NDArray[Any]:
    """Make zeros that start at a cache line: a vector across two lines costs twice."""
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    skip = -raw.ctypes.data % _CACHE_LINE
    return raw[skip : skip + size].view(dtype).reshape(shape)
