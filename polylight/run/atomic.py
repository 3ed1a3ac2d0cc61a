"""Files that are either whole or not there, whenever the process is killed."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from polylight.errors import InputError


def temporary_path(path: Path) -> Path:
    """Name the file that becomes ``path``: hidden, of a suffix that no reader asks for.

    Each process has its own, as several may write the same file at the same time.
    """
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.tmp")


def temporary_pattern(name: str) -> str:
    """Pattern of the temporary files of all processes for files of a name, itself a pattern."""
    return f".{name}.*tmp"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Create or replace a file in one indivisible act that survives a power cut.

    The content goes to a temporary file in the same directory, is synced to the disk and renamed;
    then the directory is synced, without which the new name itself may be lost.

    Args:
        path: The file; its directory must exist.
        write: Writes the content to the open file that it is given.

    Raises:
        OSError: If the disk is full or the directory cannot be written; nothing is left behind.
    """
    temporary = temporary_path(path)
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "nt":
        # Windows opens no directories, and keeps the new name by itself.
        return
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def check_writable(run_dir: str | Path) -> None:
    """Find out before any work whether results can be written.

    Args:
        run_dir: The run's directory; made if it is not there.

    Raises:
        InputError: If it cannot be made or nothing can be written in it.
    """
    probe = Path(run_dir) / f".probe-{socket.gethostname()}-{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(probe, lambda file: file.write(b"polylight"))
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write in the run directory {run_dir} ({error.strerror or error}); "
            "choose another --run_dir or make room"
        ) from error
