import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from polylight.run.png import ImageError, decode_images, decode_png, encode_png


@pytest.fixture
def images():
    return np.random.default_rng(1).integers(0, 256, (3, 7, 5, 3), dtype=np.uint8)


def test_a_file_keeps_every_pixel(images):
    files = encode_png(images.swapaxes(1, 2))
    for image, png in zip(images, files, strict=True):
        np.testing.assert_array_equal(decode_png(png), image.swapaxes(0, 1))
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), decode_png(png))
    assert encode_png(images[:0]) == []


def test_images_are_decoded_to_the_bit_as_torch_would_scale_them():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
    decoded = decode_images(encode_png(levels))
    assert decoded.dtype == np.float32
    expected = torch.from_numpy(levels).permute(0, 3, 1, 2) / 255.0
    assert torch.equal(torch.from_numpy(decoded), expected)
    assert torch.from_numpy(decoded).stride() == expected.stride()


@pytest.mark.parametrize("shape", [(1, 4, 4, 4), (4, 4, 3)])
def test_something_else_is_refused(shape):
    with pytest.raises(ValueError, match=r"expected uint8 images \[N, H, W, 3\]"):
        encode_png(np.zeros(shape, np.uint8))
    with pytest.raises(ValueError, match="but got float64"):
        encode_png(np.zeros((1, 4, 4, 3)))


@pytest.mark.parametrize("lets_pil_guess", [False, True])
def test_any_byte_that_changes_is_noticed(images, monkeypatch, lets_pil_guess):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lets_pil_guess)
    (png,) = encode_png(images[:1])
    for place in range(len(png)):
        damaged = bytearray(png)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ImageError, match="it is damaged"):
            decode_png(bytes(damaged))
        with pytest.raises(ImageError, match="it is damaged"):
            decode_png(png[:place])


def test_a_bomb_is_not_decoded():
    def chunk(kind, content):
        checked = kind + content
        return len(content).to_bytes(4) + checked + zlib.crc32(checked).to_bytes(4)

    def png(width, height):
        header = width.to_bytes(4) + height.to_bytes(4) + bytes([8, 2, 0, 0, 0])
        rows = zlib.compress(b"\0" * 100)
        parts = [chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(parts)

    assert decode_png(png(1, 1)).shape == (1, 1, 3)
    for width, height in ((50_000, 50_000), (10_000, 10_000), (1, 2**31 - 1), (4097, 4096)):
        with pytest.raises(ImageError, match=f"it has {width:,} x {height:,} pixels"):
            decode_png(png(width, height))
    with pytest.raises(ImageError, match="it is damaged: "):
        decode_png(png(64, 64))


def test_another_format_is_no_image_of_a_run(images):
    file = io.BytesIO()
    Image.fromarray(images[0]).save(file, "BMP")
    with pytest.raises(ImageError):
        decode_png(file.getvalue())
