"""Memory settings of the process that make ascents on a CPU faster."""

import ctypes
import logging
import sys

_logger = logging.getLogger(__name__)

# The parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def keep_freed_memory() -> bool:
    """Let glibc keep the memory of freed tensors instead of returning it to the system.

    Every ascent step allocates and frees the same activations. By default glibc gives blocks of
    that size back at once, and each step pays thousands of page faults to get them again.

    Returns:
        Whether the C library took the settings; False, and a line in the log, where it is not
        glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    took = mallopt is not None and all(
        mallopt(parameter, value)
        for parameter, value in (
            (_M_MMAP_THRESHOLD, 32 << 20),
            (_M_TRIM_THRESHOLD, 1 << 30),
            (_M_TOP_PAD, 64 << 20),
        )
    )
    if not took:
        _logger.info("the C library is not glibc: activations are allocated anew at every step")
    return took
