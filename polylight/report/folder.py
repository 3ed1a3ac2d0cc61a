"""A folder that is replaced as a whole: its readers see the old one or the new one."""

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from polylight.errors import InputError
from polylight.run.lock import HeldError, hold


def check_folder(path: Path, *, is_ours: Callable[[Path], bool]) -> None:
    """Find out before any work whether a folder may be made or replaced.

    Args:
        path: The folder; what is above it is made if need be.
        is_ours: Tells a folder that may be replaced from one that may not.

    Raises:
        InputError: If there is something else, or nothing can be written there.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise InputError(f"{path} is no directory; move it away or choose another --out")
    if path.is_dir() and any(path.iterdir()) and not is_ours(path):
        raise InputError(
            f"{path} is not empty and no report of polylight, so it is not replaced; "
            "choose another --out"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.parent / f".probe-{secrets.token_hex(4)}"
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise InputError(
            f"cannot write in {path.parent} ({error.strerror or error}); choose another --out"
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Fill a new folder that takes the place of an old one when all has gone well.

    The new one is a hidden sibling until it is whole. If the work fails it is removed, and the old
    folder stays. What killed processes left behind is cleared away first; a folder that was
    killed between its two names is put back.

    Args:
        path: The folder, of which :func:`check_folder` has approved.

    Yields:
        The empty folder to fill.

    Raises:
        OSError: If something cannot be written.
    """
    _clear(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    old = path.with_name(f".{path.name}.old")
    # While this process lives, others that clear up know by the lock that the folder is in use.
    release = _hold(new)
    try:
        new.mkdir()
        yield new
        if path.exists():
            path.replace(old)
        new.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    except BaseException:
        if old.exists() and not path.exists():
            old.replace(path)
        shutil.rmtree(new, ignore_errors=True)
        raise
    finally:
        if release is not None:
            release()
            _lock_of(new).unlink(missing_ok=True)


def _clear(path: Path) -> None:
    """Remove what processes that were killed have left beside a folder."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.replace(path)
    shutil.rmtree(old, ignore_errors=True)
    left = (path.parent.glob(f".{_literal(path.name)}.*.{end}") for end in ("tmp", "lock"))
    for leftover in {found.with_suffix(".tmp") for paths in left for found in paths}:
        release = _hold(leftover)
        if release is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            release()
            _lock_of(leftover).unlink(missing_ok=True)


def _hold(folder: Path) -> Callable[[], None] | None:
    """Hold a folder for as long as this process lives; None where it is held already."""
    try:
        return hold(_lock_of(folder))
    # A file system without locks cannot tell a live process: its folders are left alone.
    except (HeldError, OSError):
        return None


def _lock_of(folder: Path) -> Path:
    """Name the file that is held for a folder: beside it, as Windows renames no folder in use."""
    return folder.with_suffix(".lock")


def _literal(name: str) -> str:
    """Spell a name so that a glob takes each letter for itself."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
