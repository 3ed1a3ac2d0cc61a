"""How the CPU kernels are compiled by numba, and how long what is compiled is kept."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from numba import njit

from polylight.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")


def compiled(
    inline: bool = False, any_order: bool = False
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compile a function when it is first called; it runs without the interpreter's lock.

    The machine code is kept on disk until a Python file in the function's folder changes, so a
    kernel may use functions and constants of its own folder; what it takes from other folders has
    to come as arguments. It gives the same bits each time, and on another kind of CPU too unless
    ``any_order`` is set.

    Args:
        inline: Whether to repeat it wherever it is called: a call with arrays costs as much as a
            loop over 64 points.
        any_order: Whether sums may be taken in the order that suits the vectors of the CPU.

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
        # numba itself compares only the file of the function, and not its options.
        made._cache._cache_file._source_stamp = sources(Path(function.__code__.co_filename).parent)
        callable_: Callable[P, R] = made
        return callable_

    return decorate


@cache
def sources(folder: Path) -> tuple[tuple[int, int], ...]:
    """When each Python file in a folder, and this one, was changed (ns), and its size (bytes)."""
    stats = [path.stat() for path in (*sorted(folder.glob("*.py")), Path(__file__))]
    return tuple((stat.st_mtime_ns, stat.st_size) for stat in stats)
