import logging

import numpy as np
import pytest
import torch
from example_rows import make_dead, make_row
from PIL import ExifTags, Image

from polylight.embedding import Embedder
from polylight.errors import InputError
from polylight.models import load_model
from polylight.scoring import weighted_ms_score
from polylight.validate.photos import (
    _one_minus_ms,
    pooled_activations,
    read_photos,
    screen_channels,
    strength_of,
)

CPU = torch.device("cpu")
LOGGER = "polylight.validate.photos"


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read(folder, side):
    """The photos as whole numbers: [N, side, side, 3]."""
    found = read_photos(folder, side)
    assert found.dtype == torch.float32
    return np.rint(found.permute(0, 2, 3, 1).numpy().astype(np.float64) * 255).astype(int)


def noise(rng, height, width, channels=3):
    return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)


def test_photos_come_by_name_cropped_to_the_middle_with_values_from_0_to_1(tmp_path, rng, caplog):
    wide, high, odd = noise(rng, 4, 8), noise(rng, 10, 4), noise(rng, 4, 9)
    # Written in another order than that of their names.
    Image.fromarray(odd).save(tmp_path / "c.bmp")
    Image.fromarray(wide).save(tmp_path / "a.png")
    Image.fromarray(high).save(str(tmp_path / "b.tiff"))
    (tmp_path / "aa").mkdir()
    Image.fromarray(wide).save(tmp_path / "aa" / "deeper.png")
    expected = [wide[:, 2:6], high[3:7], odd[:, 2:6]]
    np.testing.assert_array_equal(read(tmp_path, 4), expected)
    exact = torch.from_numpy(wide[:, 2:6].astype(np.float32) / 255).permute(2, 0, 1)
    assert torch.equal(read_photos(str(tmp_path), 4)[0], exact)
    # A folder is no bad file.
    assert not caplog.messages


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("scale", [2, 8])
def test_the_shorter_side_is_resized_so_that_a_ramp_stays_that_ramp(tmp_path, scale, upright):
    # Every kernel that is even and sums to 1 keeps a ramp, but near its ends.
    side, step = 16, 8 / scale
    ramp = np.broadcast_to(step * np.arange(2 * side * scale), (side * scale, 2 * side * scale))
    pixels = np.repeat(ramp.astype(np.uint8)[..., None], 3, axis=2)
    Image.fromarray(pixels.swapaxes(0, 1) if upright else pixels).save(tmp_path / "ramp.png")
    found = read_photos(tmp_path, side)[0].double().numpy() * 255
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
    assert len(read_photos(tmp_path, 4)) == 2
    # Pillow refuses more than twice as many.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 112)
    np.testing.assert_array_equal(read(tmp_path, 4), [small])
    assert caplog.messages[0].endswith("left out: bomb.png")


def test_a_folder_without_photos_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--images .*nowhere is no folder"):
        read_photos(tmp_path / "nowhere", 4)
    with pytest.raises(InputError, match="holds no readable image"):
        read_photos(tmp_path, 4)
    (tmp_path / "notes.txt").write_text("no photo")
    with pytest.raises(InputError, match=r"notes\.txt is no folder"):
        read_photos(tmp_path / "notes.txt", 4)
    with pytest.raises(InputError, match="holds no readable image"):
        read_photos(tmp_path, 4)


def test_activations_of_photos_are_the_means_of_each_layers_own_output():
    model = load_model("tiny:subject")
    photos = torch.rand(19, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    layers = ["act3", "conv2", "fc"]
    found = pooled_activations(model, layers, photos, CPU)
    assert list(found) == layers
    values = model.preprocess(photos.double())
    for name, module in load_model("tiny:subject").net.double().named_children():
        values = module(values)
        if name in layers:
            expected = values.mean((2, 3)) if values.ndim > 2 else values
            scale = expected.abs().max().item()
            torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-5 * scale)


def driven(channel, activation, label, **changes):
    changes |= {"activation": np.float32(activation), "label": np.int32(label)}
    return make_row(f"a:{channel}", n=len(label), layer="a", channel=channel, **changes)


def test_strength_is_the_share_of_photos_below_the_median_of_a_channels_images():
    pooled = {
        "a": torch.tensor([[0.0, 1.0, 2.0, 9.0], [10.0, 10.0, 10.0, 0.0], [5.0, 5.0, 5.0, 7.0]]).mT,
        "b": torch.full((4, 3), 100.0),
    }
    rows = [
        # Of those with a vote 1, 2, 2.5 and 30: the median is 2.25, the mean 8.875.
        driven(0, [30.0, 1.0, 99.0, 2.5, 2.0], [0, 0, -1, 1, 0]),
        # As strong as the best photos is not stronger.
        driven(1, [10.0, 10.0, 10.0], [0, 0, 0]),
        driven(2, [8.0, 7.5, 3.0], [0, 1, 0]),
        driven(2, [0.0], [0], status="failed"),
        make_dead("a:0"),
        make_row("max(a:0,a:1)", channel=None),
    ]
    found = strength_of(rows, pooled)
    assert found.photos == 4
    assert found.percentile == {"a:0": 3 / 4, "a:1": 1 / 4, "a:2": 1.0}
    assert found.above_best == pytest.approx(1 / 3)


@pytest.mark.parametrize("rows", [[], [make_dead()], [make_row("max(a:0,a:1)", channel=None)]])
def test_strength_of_nothing_is_refused(rows):
    with pytest.raises(InputError, match="no single channel has a score"):
        strength_of(rows, {"a": torch.rand(4, 3)})


def test_all_channels_at_once_have_the_weighted_score_of_each():
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    activations = torch.randn(40, 9, generator=generator, dtype=torch.float64)
    # Sparse, of another scale and sign, and one that never moves.
    activations[:, 1] = activations[:, 1].relu()
    activations[:, 2] = 1e4 * activations[:, 2] - 1e5
    activations[:, 3] = 0.3
    # One that follows a direction, so that not all are near 1.
    activations[:, 4] = embeddings[:, 0].relu()
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    expected = torch.cat(
        [
            weighted_ms_score(unit[None], a[None], torch.ones(1, 40, dtype=torch.bool))
            for a in activations.unbind(1)
        ]
    )
    assert expected.isnan().tolist() == [c == 3 for c in range(9)]
    assert expected[4] < 0.9
    found = _one_minus_ms(unit, activations)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10, equal_nan=True)


def coloured(count):
    """Photos that are red and blue in turn."""
    photos = 0.2 * torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    photos[0::2, 0] += 0.8
    photos[1::2, 2] += 0.8
    return photos


def test_channels_of_one_kind_of_photo_are_in_the_lower_half_of_their_layer():
    # More photos than one batch holds.
    count = 36
    red = (torch.arange(count) % 2 == 0).float()
    spread = (torch.arange(count) // 2 % 2).float()
    pooled = {
        "a": torch.stack([spread, red, 1 - spread, 3 - 2 * red], 1),
        # Of an odd number the middle one is in, and one that never moves is not.
        "b": torch.stack([0.5 * red + spread, torch.full((count,), 2.0), red, spread], 1),
    }
    found = screen_channels(load_model("tiny:embedder"), coloured(count), pooled, CPU)
    assert [found[f"a:{c}"] for c in range(4)] == [False, True, False, True]
    assert [found[f"b:{c}"] for c in range(4)] == [True, False, True, False]
    assert len(found) == 8


def test_channels_are_screened_by_embeddings_without_what_all_photos_share():
    generator = torch.Generator().manual_seed(1)
    embedder, activations = load_model("tiny:embedder"), torch.rand(20, 10, generator=generator)
    photos = torch.rand(20, 3, 4, 4, generator=generator).repeat_interleave(8, 2)
    photos = photos.repeat_interleave(8, 3)
    embedded = Embedder(embedder)(photos).double()

    def lower_half(vectors):
        votes = torch.ones(10, 20, dtype=torch.bool)
        scores = weighted_ms_score(vectors[None].expand(10, -1, -1), activations.mT, votes)
        return (scores <= scores.sort().values[4]).tolist()

    expected = lower_half(embedded - embedded.mean(0))
    assert expected != lower_half(embedded)
    found = screen_channels(embedder, photos, {"a": activations}, CPU)
    assert found == {f"a:{c}": is_in for c, is_in in enumerate(expected)}


def test_too_few_photos_screen_nothing(caplog):
    model = load_model("tiny:embedder")
    assert screen_channels(model, coloured(2), {"a": torch.rand(2, 3)}, CPU) == {}
    assert caplog.messages == ["2 photos are too few to screen channels by"]
    assert len(screen_channels(model, coloured(3), {"a": torch.rand(3, 3)}, CPU)) == 3


def test_a_photo_alone_makes_no_pair():
    unit = torch.randn(6, 5, generator=torch.manual_seed(0), dtype=torch.float64)
    unit = unit / unit.norm(dim=1, keepdim=True)
    assert _one_minus_ms(unit, 2 * torch.eye(6, dtype=torch.float64)).isnan().all()
