import io

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from PIL import Image, ImageColor

from polylight.inspect.contact_sheet import WIDTH, contact_sheet, extreme_rows
from polylight.inspect.palette import PALETTE
from polylight.run.png import decode_images, encode_png
from polylight.run.store import RunStore

LONG = "max(features.denseblock3.denselayer12.conv2:1024,features.denseblock4.denselayer1.conv2:77)"


def test_images_are_decoded_as_networks_take_them():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 7, 5, 3), dtype=torch.uint8, generator=generator)
    decoded = decode_images(encode_png(images))
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, images.permute(0, 3, 1, 2) / 255.0)


def test_png_keeps_every_pixel():
    images = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8)
    files = encode_png(images.transpose(1, 2).contiguous().transpose(1, 2))
    for image, png in zip(images, files, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), image.numpy())
    assert encode_png(images[:0]) == []


@pytest.mark.parametrize("images", [torch.zeros(1, 4, 4, 3), torch.zeros(4, 4, 3).byte()])
def test_png_of_something_else_is_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 images \[N, H, W, 3\]"):
        encode_png(images)


def plain_row(name, score, labels, weights):
    """Image i is all of the grey level 10 * i; later images have higher activation."""
    n = len(labels)
    images = (10 * torch.arange(n).byte()).view(n, 1, 1, 1).expand(n, 32, 32, 3)
    return make_row(
        name,
        n=n,
        k=len(weights),
        score=score,
        label=np.array(labels, np.int32),
        cluster_weight=np.array(weights),
        activation=np.arange(n, dtype=np.float32),
        image=encode_png(images),
    )


def opened(path):
    with Image.open(path) as image:
        return image.convert("RGBA")


def strips(path):
    """Read back the images and the frames of each strip of a sheet, from left to right."""
    pixels = np.asarray(opened(path))[:, 250:, :3].astype(int)
    colours = np.array([ImageColor.getrgb(colour) for colour in PALETTE])
    found = []
    for row in pixels:
        starts = np.flatnonzero(np.any(np.diff(row, axis=0, prepend=-1), axis=1))
        lengths = np.diff(starts, append=len(row))
        wide = [row[s] for s, length in zip(starts, lengths, strict=True) if length > 20]
        greys = [int(c[0]) // 10 for c in wide if c.max() == c.min() and c[0] % 10 == 0]
        # Frames are drawn smoothly, so that their colours are off by a little.
        near = np.abs(row[:, None] - colours).sum(-1)  # [pixels, colours]
        frames = list(dict.fromkeys(near.argmin(1)[near.min(1) < 12].tolist()))
        if greys and frames and (greys, frames) not in found[-1:]:
            found.append((greys, frames))
    return found


def test_the_sheet_shows_the_strongest_images_by_cluster(tmp_path):
    # Two thirds of nine places go to cluster 1 and the one image that is not valid is left out.
    row = plain_row("a:0", 0.4, [0, 1, 1, 0, 1, 1, 1, -1, 0, 1, 0, 1], [1 / 3, 2 / 3])
    contact_sheet([row], tmp_path / "sheet.png", tiles=9)
    assert strips(tmp_path / "sheet.png") == [([11, 9, 6, 5, 4, 2, 10, 8, 3], [0, 1])]


def test_every_cluster_has_a_place_and_none_more_than_it_has_images(tmp_path):
    row = plain_row("a:0", 0.4, [0, 0, 0, 0, 0, 1, 2, 2], [0.9, 0.05, 0.05])
    contact_sheet([row], tmp_path / "sheet.png", tiles=9)
    assert strips(tmp_path / "sheet.png") == [([4, 3, 2, 1, 0, 5, 7, 6], [0, 1, 2])]
    contact_sheet([row], tmp_path / "sheet.png", tiles=3)
    assert strips(tmp_path / "sheet.png") == [([4, 5, 7], [0, 1, 2])]


def test_the_sheet_has_both_ends_and_grows_with_its_rows(tmp_path):
    rows = [plain_row(f"a:{i}", i / 20, [0] * (i + 1), [1.0]) for i in range(9)]
    heights = []
    for count in (1, 2, 3):
        contact_sheet([*rows, make_dead()], tmp_path / "sheet.png", count=count)
        sheet = opened(tmp_path / "sheet.png")
        assert sheet.size[0] == WIDTH
        assert sheet.getpixel((0, 0))[3] == 0
        heights.append(sheet.size[1])
    assert heights[2] - heights[1] == heights[1] - heights[0] > 2 * 80
    lengths = [len(greys) for greys, _ in strips(tmp_path / "sheet.png")]
    assert lengths == [9, 8, 7, 3, 2, 1]
    contact_sheet(rows, tmp_path / "sheet.png", count=3, title="Of everything")
    assert opened(tmp_path / "sheet.png").size[1] > heights[2]
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_names_of_any_length_and_more_clusters_than_colours(tmp_path):
    rows = [make_row(LONG, n=24, k=12, label=np.arange(24, dtype=np.int32) % 12), make_row("x")]
    contact_sheet(rows, tmp_path / "sheet.png", tiles=12)
    assert opened(tmp_path / "sheet.png").size[0] == WIDTH


def test_a_sheet_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one neuron with a score and images"):
        contact_sheet([make_dead()], tmp_path / "sheet.png")


def test_only_the_ends_are_read_from_a_run(tmp_path):
    store = RunStore(tmp_path)
    scores = [0.3, 0.9, 0.1, 0.5, 0.7]
    store.append([make_row(f"a:{s}", score=s) for s in scores])
    store.append([make_dead()])
    assert [row.score for row in extreme_rows(tmp_path, 1)] == [0.9, 0.1]
    assert [row.score for row in extreme_rows(tmp_path, 9)] == sorted(scores, reverse=True)
