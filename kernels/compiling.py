"""What the numba kernels share: how they are compiled, their memory, their threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
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
    inline: bool = False, any_order: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function, the interpreter lock let go of, when it is first called.

    What is compiled is kept on disk for as long as the file of the function does not change; so
    what it takes from other files has to come as arguments. It gives the same bits each time, and
    on another kind of CPU too unless ``any_order`` is set.

    Args:
        inline: Whether to repeat it wherever it is called: a call with arrays costs as much as a
            loop over 64 points.
        any_order: Whether sums may be taken in the order that suits the vectors of the CPU.

    Raises:
        InputError: Neither the folder of the file nor the user's cache can be written to.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        try:
            made: Callable[P, R] = njit(
                nogil=True,
                cache=True,
                error_model="numpy",
                forceinline=inline,
                fastmath={"reassoc", "contract"} if any_order else False,
            )(function)
        except RuntimeError as error:
            raise InputError(
                f"numba found no place that it may write to, for what it compiles: {error}; name "
                "a folder in the environment, NUMBA_CACHE_DIR, or set kernels to 'torch'"
            ) from error
        return made

    return decorate


def aligned(*shape: int, dtype: type = np.float64) -> NDArray[Any]:
    """Make zeros of 8 bytes each, from the beginning of a cache line on.

    A vector across two lines costs twice.
    """
    size = 8 * int(np.prod(shape))
    raw = np.zeros(size + _CACHE_LINE, np.uint8)
    skip = -raw.ctypes.data % _CACHE_LINE
    return raw[skip : skip + size].view(dtype).reshape(shape)


def deal_out(count: int, run: Callable[[int, int], None], least: int = 1) -> None:
    """Call ``run`` on equal ranges of ``count`` rows, on as many threads as torch uses.

    These are ordinary threads, the calling one among them: a second pool of OpenMP beside torch's
    would fight it for the cores. To reach another thread takes 50 us.

    Args:
        count: Number of rows.
        run: Takes the first row of a range and the one after its last.
        least: Rows that are worth a thread, > 0.
    """
    limit = torch.get_num_threads()
    threads = max(1, min(limit, count // least))
    bounds = [count * part // threads for part in range(threads + 1)]
    others = [
        _workers(os.getpid(), limit).submit(run, start, stop)
        for start, stop in pairwise(bounds[1:])
    ]
    try:
        run(0, bounds[1])
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that are kept; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, f"polylight-{process}")
