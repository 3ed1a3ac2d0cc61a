"""The photos of a folder: found, cropped and read ahead, a few in memory at a time."""

import logging
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile, ImageOps

from polylight.errors import InputError

_logger = logging.getLogger(__name__)
# PIL lets other threads run while it decodes; more of them wait for the disk.
_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 4 * _THREADS
_NAMED = 5
# Pixels that a side keeps, for each that is wanted, where a file can be decoded at a part of its
# size.
_GAP = 3.0
# What cameras and the web write. PIL knows some forty more, one of which runs another program.
_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
# Of a longer strip only the middle is resized: one of 60,000 pixels by one would take 14 GB.
_LONGEST = 64

Pixels = npt.NDArray[np.uint8]


class PhotoFolder:
    """The photos of a folder and of the folders in it, by their names; hidden ones do not count.

    Args:
        path: The folder.
        option: What it was given by, for errors.

    Attributes:
        names: Paths of the files below the folder, with ``/``, in the order of the alphabet.

    Raises:
        InputError: If there is no such folder, or not one photo in it can be read.
    """

    def __init__(self, path: str | Path, option: str) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise InputError(f"{option} {path} is no folder; give one that holds photos.")
        self.names = sorted(_files(self.path))
        with _strict():
            if all(_read(self.path / name, (1,)) is None for name in self.names):
                raise InputError(
                    f"{option} {path} holds no readable image; give a folder of photos."
                )

    @property
    def key(self) -> str:
        """Hash of the names, sizes and times of the files, 32 hex digits."""
        digest = blake2b(digest_size=16)
        for name in self.names:
            status = (self.path / name).stat()
            digest.update(os.fsencode(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"))
        return digest.hexdigest()

    def read(
        self, sides: Iterable[int], chosen: Iterable[int] | None = None
    ) -> Iterator[tuple[int, list[Pixels]]]:
        """Read photos, resized by their shorter side and cropped to the middle.

        Files that are no images, or cannot be read, are left out, and named in the log at the end.

        Args:
            sides: Sides that each photo is wanted with, in pixels.
            chosen: Indices of the photos wanted, into ``names``; None for all.

        Yields:
            Index of a photo and its pixels, uint8 [side, side, 3] for each side; in the order of
            ``chosen``.
        """
        wanted, bad = tuple(sides), list[str]()
        ahead: deque[tuple[int, Future[list[Pixels] | None]]] = deque()

        def first() -> Iterator[tuple[int, list[Pixels]]]:
            index, future = ahead.popleft()
            pixels = future.result()
            if pixels is None:
                bad.append(self.names[index])
            else:
                yield index, pixels

        with _strict(), ThreadPoolExecutor(_THREADS, "polylight-photos") as threads:
            for index in range(len(self.names)) if chosen is None else chosen:
                ahead.append((index, threads.submit(_read, self.path / self.names[index], wanted)))
                if len(ahead) > _AHEAD:
                    yield from first()
            while ahead:
                yield from first()
        if bad:
            some = ", ".join(bad[:_NAMED]) + (" ..." if len(bad) > _NAMED else "")
            what = "1 file is" if len(bad) == 1 else f"{len(bad)} files are"
            _logger.warning("%s: %s no readable image, left out: %s", self.path, what, some)


def _files(path: Path) -> Iterator[str]:
    """Name the files below a folder; links to folders are followed, but not in circles."""
    seen = set()
    for folder, inner, files in os.walk(path, followlinks=True):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        here = Path(folder).relative_to(path)
        for name in files:
            if not name.startswith(".") and (Path(folder) / name).is_file():
                yield (here / name).as_posix()


@contextmanager
def _strict() -> Iterator[None]:
    """Take a file that breaks off for no image; some packages let PIL, in all the process."""
    before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def _read(path: Path, sides: tuple[int, ...]) -> list[Pixels] | None:
    """Read a photo at some sides; None where it is no image that can be read."""
    enough = round(_GAP * max(sides))
    try:
        with Image.open(path, formats=_known_formats()) as image:
            # JPEG files are then decoded at a half, a quarter or an eighth of their size.
            image.draft(None, (enough, enough))
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or math.inf):
                return None
            upright = _upright(image)
    except MemoryError:
        raise
    except Exception:
        # PIL's decoders raise whatever they run into in a damaged file.
        return None
    return [_square(upright, side) for side in sides]


@cache
def _known_formats() -> tuple[str, ...]:
    """Those of the formats that this version of PIL has."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _upright(image: Image.Image) -> Image.Image:
    """The picture as it is meant to be looked at, in eight bits a colour."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # Sixteen bits would be cut off, not scaled.
        wide = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((wide / 257.0).round().clip(0, 255).astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Pixels:
    """Make a square of a picture: upright, resized by its shorter side, cropped to the middle.

    Args:
        image: Any picture.
        side: Of the square, in pixels, > 0.

    Returns:
        uint8 [side, side, 3].
    """
    return _square(_upright(image), side)


def _square(image: Image.Image, side: int) -> Pixels:
    """Resize a picture by its shorter side and crop it to the middle: [side, side, 3]."""
    longest = _LONGEST * min(image.size)
    if max(image.size) > longest:
        image = _middle(image, min(image.width, longest), min(image.height, longest))
    width, height = image.size
    scale = side / min(width, height)
    size = max(side, round(width * scale)), max(side, round(height * scale))
    resized = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=_GAP)
    return np.asarray(_middle(resized, side, side))


def _middle(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))
