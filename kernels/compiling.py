"""What the numba kernels share: how they are compiled, and their memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numba import njit
from numpy.typing import NDArray

from polylight.errors import InputError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
P = ParamSpec("P")
R = TypeVar("R")

# Numbers in the widest vector.
LANES = 8
_CACHE_LINE = 64


def compiled(
    inline: bool = False, any_order: bool = False, parts: Sequence[ModuleType] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function, the interpreter lock let go of, when it is first called.

    What is compiled is kept on disk for as long as the file of the function does not change, nor
    those of ``parts``; what it takes from other files has to come as arguments. It gives the same
    bits each time, and on another kind of CPU too unless ``any_order`` is set.

    Args:
        inline: Whether to repeat it wherever it is called: a call with arrays costs as much as a
            loop over 64 points.
        any_order: Whether sums may be taken in the order that suits the vectors of the CPU.
        parts: Modules that it takes functions from.

    Raises:
        InputError: Neither the folder of the file nor the user's cache can be written to.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            made: Any = njit(
                nogil=True,
                cache=True,
                error_model="numpy",
                forceinline=inline,
                fastmath={"reassoc", "contract"} if any_order else False,
            )(function)
        except RuntimeError as error:
            raise InputError(
                f"numba found no place that it may write to, for what it compiles: {error}; name "
                "a folder in the environment, NUMBA_CACHE_DIR"
            ) from error
        if parts:
            # numba itself only looks at the file of the function.
            kept = made._cache._cache_file
            stamps = (Path(str(part.__file__)).stat().st_mtime_ns for part in parts)
            kept._source_stamp = (kept._source_stamp, *stamps)
        callable_: Callable[P, R] = made
        return callable_

    return decorate


def aligned(*shape: int, dtype: type = np.float64) -> NDArray[Any]:
    """Make zeros, from the beginning of a cache line on.

    A vector across two lines costs twice.
    """
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    skip = -raw.ctypes.data % _CACHE_LINE
    return raw[skip : skip + size].view(dtype).reshape(shape)
