import logging
import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, features

from polylight.errors import InputError
from polylight.photos.folder import PhotoFolder

LOGGER = "polylight.photos.folder"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read(folder, side):
    """The photos that can be read: [N, side, side, 3]."""
    found = [pixels for _, (pixels,) in PhotoFolder(folder, "--photos").read([side])]
    assert all(pixels.dtype == np.uint8 for pixels in found)
    return np.array(found)


def noise(rng, height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_photos_come_by_name_cropped_to_the_middle(tmp_path, rng, caplog):
    wide, high, odd = noise(rng, 4, 8), noise(rng, 10, 4), noise(rng, 4, 9)
    # Written in another order than that of their names.
    Image.fromarray(odd).save(tmp_path / "c.bmp")
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(high).save(str(tmp_path / "b.tiff"))
    expected = [wide[:, 2:6], high[3:7], odd[:, 2:6]]
    np.testing.assert_array_equal(read(tmp_path, 4), expected)
    assert not caplog.messages


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("scale", [2, 8])
def test_the_shorter_side_is_resized_so_that_a_ramp_stays_that_ramp(tmp_path, scale, upright):
    # Every kernel that is even and sums to 1 keeps a ramp, but near its ends.
    side, step = 16, 8 / scale
    ramp = np.broadcast_to(step * np.arange(2 * side * scale), (side * scale, 2 * side * scale))
    pixels = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(pixels.swapaxes(0, 1) if upright else pixels).save(tmp_path / "ramp.png")
    found = read(tmp_path, side)[0].transpose(2, 0, 1).astype(np.float64)
    column = side // 2 + np.arange(side)
    expected = step * (scale * column + (scale - 1) / 2)
    expected = expected[:, None] if upright else expected[None]
    assert np.abs(found - expected).max() <= 1.0


@pytest.mark.parametrize(("width", "height"), [(7, 5), (5, 31), (8, 8), (100, 3)])
def test_photos_of_any_shape_fill_the_square(tmp_path, width, height):
    pixels = np.full((height, width, 3), (10, 20, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    np.testing.assert_array_equal(read(tmp_path, 8), np.broadcast_to([10, 20, 30], (1, 8, 8, 3)))


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x.swapaxes(0, 1)[::-1, ::-1]),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_photos_are_turned_as_their_camera_says(tmp_path, rng, orientation, turned):
    stored = noise(rng, 4, 8)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    upright = turned(stored)
    middle = upright[:, 2:6] if upright.shape[0] == 4 else upright[2:6]
    np.testing.assert_array_equal(read(tmp_path, 4)[0], middle)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_are_scaled_to_eight_not_cut_off(tmp_path, rng, name):
    deep = rng.integers(0, 65536, (4, 4), dtype=np.uint16)
    deep[0] = [0, 257, 128 * 257, 65535]
    # Divided by 256 it would be white.
    deep[1, 0] = 255 * 256
    Image.fromarray(deep).save(tmp_path / name)
    found = read(tmp_path, 4)[0]
    assert (found == found[..., :1]).all()
    assert found[0, :, 0].tolist() == [0, 1, 128, 255]
    off = found[..., 0] - deep / 257
    assert -1 < off.min() <= off.max() <= 0.5


def test_every_kind_of_image_becomes_red_green_and_blue(tmp_path, rng):
    colours = noise(rng, 1, 5)[0]
    index = rng.integers(0, 5, (4, 4), dtype=np.uint8)
    palette = Image.fromarray(index)
    palette.putpalette(colours.tobytes())
    assert palette.mode == "P"
    palette.save(tmp_path / "a.png")
    palette.save(tmp_path / "b.gif")
    clear = noise(rng, 4, 4, 4)
    Image.fromarray(clear).save(tmp_path / "c.png")
    grey = noise(rng, 4, 4, 1)
    Image.fromarray(grey[..., 0]).save(tmp_path / "d.png")
    black = rng.integers(0, 2, (4, 4)).astype(bool)
    Image.fromarray(black).save(tmp_path / "e.png")
    expected = [
        colours[index],
        colours[index],
        clear[..., :3],
        np.repeat(grey, 3, axis=2),
        np.repeat(255 * black[..., None], 3, axis=2),
    ]
    np.testing.assert_array_equal(read(tmp_path, 4), expected)


def test_what_is_no_image_is_named_and_left_out(tmp_path, rng, caplog):
    good = noise(rng, 4, 4)
    Image.fromarray(good).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no photo")
    with caplog.at_level(logging.WARNING, LOGGER):
        np.testing.assert_array_equal(read(tmp_path, 4), [good])
    assert caplog.messages == [
        f"{tmp_path}: 3 files are no readable image, left out: cut.png, empty.jpg, notes.txt"
    ]
    for number in range(3):
        (tmp_path / f"z{number}").write_bytes(b"?")
    caplog.clear()
    with caplog.at_level(logging.WARNING, LOGGER):
        assert len(read(tmp_path, 4)) == 1
    assert "6 files" in caplog.text
    assert caplog.messages[0].endswith("notes.txt, z0, z1 ...")


def test_an_image_that_would_fill_the_memory_is_left_out(tmp_path, rng, caplog, monkeypatch):
    Image.fromarray(noise(rng, 15, 15)).save(tmp_path / "bomb.png")
    small = noise(rng, 4, 4)
    Image.fromarray(small).save(tmp_path / "small.png")
    assert len(read(tmp_path, 4)) == 2
    # Pillow refuses more than twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 112)
    np.testing.assert_array_equal(read(tmp_path, 4), [small])
    assert caplog.messages[0].endswith("left out: bomb.png")


def test_a_strip_is_cropped_before_it_is_enlarged(tmp_path, rng, monkeypatch):
    resize, enlarged = Image.Image.resize, []

    def counted(image, size, *args, **kwargs):
        enlarged.append(size[0] * size[1])
        return resize(image, size, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "resize", counted)
    # Enlarged whole, it would have 64 million pixels.
    strip = noise(rng, 1, 1_000_000)
    Image.fromarray(strip).save(tmp_path / "a.png")
    Image.fromarray(strip.swapaxes(0, 1)).save(tmp_path / "b.png")
    Image.fromarray(strip[:, 499_968:500_032]).save(tmp_path / "c.png")
    wide, high, middle = read(tmp_path, 8)
    np.testing.assert_array_equal(wide, middle)
    np.testing.assert_array_equal(high, middle.swapaxes(0, 1))
    assert max(enlarged) == 64 * 8 * 8


@pytest.mark.parametrize("name", ["a.avif", "a.jp2", "a.tiff", "a.webp", "a.ppm", "a.gif", "a.bmp"])
def test_a_damaged_file_of_any_format_ends_nothing(tmp_path, rng, name):
    if not features.check("avif") and name == "a.avif":
        pytest.skip("this Pillow has no AVIF")
    Image.fromarray(noise(rng, 16, 16)).save(tmp_path / name)
    assert len(read(tmp_path, 4)) == 1
    Image.fromarray(noise(rng, 4, 4)).save(tmp_path / "good.png")
    whole = (tmp_path / name).read_bytes()
    for number in range(60):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 300), 3):
            damaged[place] = rng.integers(0, 256)
        cut = len(whole) if number % 3 else int(rng.integers(1, len(whole)))
        (tmp_path / f"{number}{name}").write_bytes(damaged[:cut])
    with warnings.catch_warnings():
        # PIL warns of what it can still make something of.
        warnings.simplefilter("ignore")
        assert 2 <= len(read(tmp_path, 4)) <= 62


def test_formats_that_no_camera_writes_are_left_out(tmp_path, rng, caplog):
    Image.fromarray(noise(rng, 4, 4)).save(tmp_path / "good.png")
    for name in ("a.eps", "b.dds", "c.png"):
        kind = {"c.png": "DDS"}.get(name)
        Image.fromarray(noise(rng, 4, 4)).save(tmp_path / name, kind)
    assert len(read(tmp_path, 4)) == 1
    assert caplog.messages[0].endswith("left out: a.eps, b.dds, c.png")


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--photos .*nowhere is no folder"):
        read(tmp_path / "nowhere", 4)
    with pytest.raises(InputError, match="holds no readable image"):
        read(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(InputError, match=r"notes\.txt is no folder"):
        read(tmp_path / "notes.txt", 4)
    with pytest.raises(InputError, match="holds no readable image"):
        read(tmp_path, 4)


def test_photos_of_inner_folders_count_and_hidden_ones_do_not(tmp_path, rng, caplog):
    for name in ("b/z.png", "b/c/y.png", "a.png", "b.png", ".hidden.png", ".folder/x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(rng, 4, 4)).save(tmp_path / name)
    elsewhere = tmp_path.with_name("elsewhere")
    elsewhere.mkdir()
    shutil.copy(tmp_path / "a.png", elsewhere / "w.png")
    (tmp_path / "linked").symlink_to(elsewhere)
    # A folder in itself has no end, and a link to nothing is no file.
    (tmp_path / "b" / "circle").symlink_to(tmp_path)
    (tmp_path / "dangling.png").symlink_to("nowhere")
    folder = PhotoFolder(tmp_path, "--photos")
    assert folder.names == ["a.png", "b.png", "b/c/y.png", "b/z.png", "linked/w.png"]
    assert len(read(tmp_path, 4)) == 5
    assert not caplog.messages


def test_chosen_photos_come_in_their_order_at_every_side(tmp_path, rng):
    pixels = [noise(rng, 8, 8) for _ in range(80)]
    for i, photo in enumerate(pixels):
        Image.fromarray(photo).save(tmp_path / f"{i:02d}.png")
    (tmp_path / "07.png").write_bytes(b"broken")
    folder = PhotoFolder(tmp_path, "--photos")
    chosen = [*range(79, 5, -1), 3]
    found = list(folder.read([8, 2], chosen))
    assert [index for index, _ in found] == [i for i in chosen if i != 7]
    for index, (whole, small) in found:
        np.testing.assert_array_equal(whole, pixels[index])
        assert small.shape == (2, 2, 3)
    assert [index for index, _ in folder.read([4])] == [i for i in range(80) if i != 7]


def test_a_reader_that_stops_early_leaves_nothing_behind(tmp_path, rng, monkeypatch):
    for i in range(40):
        Image.fromarray(noise(rng, 4, 4)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    photos = PhotoFolder(tmp_path, "--photos").read([4])
    next(photos)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    photos.close()
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_large_jpeg_files_are_decoded_small_and_look_the_same(tmp_path):
    y, x = np.mgrid[:1600, :1600] / 1600
    waves = [np.sin(20 * x), np.cos(15 * y), np.sin(12 * (x + y))]
    whole = Image.fromarray((127.5 + 120 * np.stack(waves, -1)).astype(np.uint8))
    whole.save(tmp_path / "large.jpg", quality=95)
    (found,) = read(tmp_path, 64)
    expected = whole.resize((64, 64), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(expected)).max() <= 6
    assert np.abs(found.astype(int) - np.asarray(expected)).mean() <= 1


def test_a_key_knows_names_sizes_and_times(tmp_path, rng):
    def key():
        return PhotoFolder(tmp_path, "--photos").key

    file = tmp_path / "a.png"
    Image.fromarray(noise(rng, 4, 4)).save(file)
    os.utime(file, ns=(1, 1))
    keys = [key()]
    assert key() == keys[0]
    os.utime(file, ns=(1, 2))
    keys.append(key())
    file.rename(tmp_path / "b.png")
    keys.append(key())
    (tmp_path / "c.txt").write_text("no photo")
    keys.append(key())
    file = tmp_path / "b.png"
    file.write_bytes(file.read_bytes() + b"0")
    os.utime(file, ns=(1, 2))
    keys.append(key())
    assert len(set(keys)) == 5
