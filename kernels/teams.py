"""Work that is dealt out to threads."""

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

_PART = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_PROCESS = os.getpid()


def deal_out(count: int, run: Callable[[int, int], None], least: int = 1) -> None:
    """Call ``run`` on equal ranges of ``count`` rows, on as many threads as torch uses.

    They are torch's own threads where those are GNU's of OpenMP: after each operation of torch
    they wait for the next one with all their might, and any others would have to fight them for
    the cores. Elsewhere, and in a forked process, which has none of them, they are ordinary ones.

    Args:
        count: Number of rows.
        run: Takes the first row of a range and the one after its last. Local data of a thread
            (``threading.local``) does not outlast a call.
        least: Rows that are worth a thread, > 0.
    """
    threads = max(1, min(torch.get_num_threads(), count // least))
    if threads == 1:
        run(0, count)
        return
    ranges = list(pairwise(count * part // threads for part in range(threads + 1)))
    team = torchs_team() if os.getpid() == _PROCESS else None
    if team is None:
        _run_on_own_threads(ranges, run)
    else:
        _run_on_team(team, ranges, run)


@cache
def torchs_team() -> Any:
    """The function of GNU's OpenMP that lets a team of threads run something; None without it."""
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    libraries = {line.split(maxsplit=5)[-1] for line in mapped.splitlines() if "libgomp" in line}
    # With two of them one cannot tell which is torch's.
    return ctypes.CDLL(libraries.pop()).GOMP_parallel if len(libraries) == 1 else None


def _run_on_team(team: Any, ranges: Sequence[_Range], run: Callable[[int, int], None]) -> None:
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

    team(_PART(take), None, len(ranges), 0)
    if errors:
        raise errors[0]


def _run_on_own_threads(ranges: Sequence[_Range], run: Callable[[int, int], None]) -> None:
    first, *rest = ranges
    workers = _workers(os.getpid(), torch.get_num_threads())
    others = [workers.submit(run, start, stop) for start, stop in rest]
    try:
        run(*first)
    finally:
        wait(others)
    for other in others:
        other.result()


@cache
def _workers(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads that are kept; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, f"polylight-{process}")
