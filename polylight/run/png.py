"""Images as PNG files, and back; without torch, so that a run can be looked at without it."""

import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from PIL import Image

# Measured on visualizations: as small as with a search for matches, in two thirds of its time.
_COMPRESSION = {"compress_level": 1, "compress_type": zlib.Z_RLE}
_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"IEND"
# Far above any canvas. A file of a few hundred bytes can ask for gigabytes.
_MOST_PIXELS = 1 << 24


class ImageError(ValueError):
    """Bytes of a row that are no image of polylight's any more."""


def encode_png(images: npt.NDArray[np.uint8]) -> list[bytes]:
    """Compress images without loss.

    Args:
        images: Uint8 [N, H, W, 3].

    Returns:
        N PNG files.

    Raises:
        ValueError: If the shape or dtype is another.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(
            f"expected uint8 images [N, H, W, 3], but got {images.dtype} {list(images.shape)}"
        )
    return [_encode_one(Image.fromarray(image)) for image in images]


def decode_png(png: bytes) -> npt.NDArray[np.uint8]:
    """Read a PNG file of an image.

    Args:
        png: The file, as :func:`encode_png` writes it; it may be damaged.

    Returns:
        Uint8 [H, W, 3].

    Raises:
        ImageError: If a byte of it has changed or is missing, or it is larger than any image of a
            run; nothing is decoded then.
    """
    if not _is_whole(png):
        raise ImageError("it is damaged: its checksums do not fit")
    width, height = struct.unpack(">II", png[16:24])
    if width * height > _MOST_PIXELS:
        raise ImageError(f"it has {width:,} x {height:,} pixels, more than any image of a run")
    try:
        return np.array(Image.open(io.BytesIO(png), formats=["PNG"]).convert("RGB"))
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error) as error:
        raise ImageError(f"it is damaged: {error}") from error


def decode_images(pngs: Sequence[bytes]) -> npt.NDArray[np.float32]:
    """Read PNG files of one size as networks take them: float32 [N, 3, H, W] in [0, 1]."""
    pixels = np.stack([decode_png(png) for png in pngs])
    return np.divide(pixels.transpose(0, 3, 1, 2), 255, dtype=np.float32)


def _encode_one(image: Image.Image) -> bytes:
    """Compress one image, quickly rather than tightly."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", **_COMPRESSION)
    return buffer.getvalue()


def _is_whole(png: bytes) -> bool:
    """Tell by their checksums whether all chunks of a PNG file are there and undamaged.

    PIL checks some of them only, and less still where a package has let it take files that break
    off, in all the process.
    """
    if not png.startswith(_SIGNATURE) or png[12:16] != b"IHDR":
        return False
    view, at = memoryview(png), len(_SIGNATURE)
    while at + 12 <= len(png):
        # Length, kind, content, checksum of the kind and the content.
        end = at + 12 + int.from_bytes(view[at : at + 4])
        found = int.from_bytes(view[end - 4 : end])
        if end > len(png) or zlib.crc32(view[at + 4 : end - 4]) != found:
            return False
        if view[at + 4 : at + 8] == _END:
            return True
        at = end
    return False
