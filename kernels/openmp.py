"""A loop over rows on several threads: on torch's own where they are GNU OpenMP's."""

import ctypes
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

_Range = tuple[int, int]

_CALLBACK = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()


def parallel_for(count: int, run: Callable[[int, int], None], grain_size: int = 1) -> None:
    """Call ``run`` on equal ranges of ``count`` rows, on as many threads as torch uses.

    After each operation torch's threads busy-wait for the next one, so any other threads would
    compete with them for the cores. Where torch runs on Intel's or LLVM's OpenMP, and in a forked
    process, which has none of its parent's threads, a pool of ordinary threads does the work.

    Args:
        count: Number of rows.
        run: Takes the first row of a range and the one after its last. Local data of a thread
            (``threading.local``) does not outlast a call.
        grain_size: Fewest rows that are worth a thread, > 0.
    """
    threads = max(1, min(torch.get_num_threads(), count // grain_size))
    if threads == 1:
        run(0, count)
        return
    ranges = list(pairwise(count * part // threads for part in range(threads + 1)))
    parallel = gomp_parallel() if os.getpid() == _PROCESS else None
    if parallel is None:
        _run_in_pool(ranges, run)
    else:
        _run_in_team(parallel, ranges, run)


@cache
def gomp_parallel() -> Any:
    """GNU OpenMP's function that runs a callback on a team of threads; None without it."""
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    libraries = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "libgomp" in line}
    # With two of them one cannot tell which is torch's.
    return ctypes.CDLL(libraries.pop()).GOMP_parallel if len(libraries) == 1 else None


def _run_in_team(parallel: Any, ranges: Sequence[_Range], run: Callable[[int, int], None]) -> None:
    left = iter(ranges)
    errors: list[BaseException] = []

    def take(_: int | None) -> None:
        try:
            # A team may be smaller than asked for.
            for start, stop in left:
                run(start, stop)
        # An exception cannot pass through C.
        except BaseException as error:
            errors.append(error)

    parallel(_CALLBACK(take), None, len(ranges), 0)
    if errors:
        raise errors[0]


def _run_in_pool(ranges: Sequence[_Range], run: Callable[[int, int], None]) -> None:
    first, *rest = ranges
    pool = _pool(os.getpid(), torch.get_num_threads())
    others = [pool.submit(run, start, stop) for start, stop in rest]
    try:
        run(*first)
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that are kept, for each process its own."""
    return ThreadPoolExecutor(threads, f"polylight-{process}")
