"""A file that one live process holds."""

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path


class HeldError(Exception):
    """Somebody else holds the file; the message names who, where that is known."""


def hold(path: Path) -> Callable[[], None]:
    """Hold a file until this process ends, however it ends, or lets go of it.

    The lock is the system's (``flock``, on Windows ``LockFileEx``), so a killed process leaves none
    behind, and reading the file takes nothing from its holder.

    Args:
        path: The file; made if it is not there. Its directory must exist.

    Returns:
        Lets go of it.

    Raises:
        HeldError: If it is held already, by another process or by this one.
        OSError: If the file system has no locks, or the file cannot be written.
    """
    # To read a run takes no lock, and no time to load this.
    from filelock import FileLock, SoftFileLock, Timeout

    if issubclass(FileLock, SoftFileLock):
        # A file that is there while somebody works outlives a process that is killed.
        raise OSError(errno.ENOSYS, "this Python has no file locks", str(path))
    lock = FileLock(path, thread_local=False, fallback_to_soft=False, on_acquired=_sign)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise HeldError(_holder(path)) from error
    return lock.release


def _sign(handle: int) -> None:
    """Write who holds a file into it, after its first byte: that is what Windows locks."""
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, f" process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(path: Path) -> str:
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(1)
            return file.read(200).decode(errors="replace") or "another process"
    except OSError:
        return "another process"
