import math

import pytest
import torch

from polylight.ascent.augmentation import Augmentation, identity
from polylight.embedding.embedder import on_grey
from polylight.errors import InputError
from polylight.kernels import sample


def image(size=32, count=1):
    torch.manual_seed(0)
    return torch.rand(count, 3, size, size)


def apply_maps(images, maps):
    return sample(images, maps, 32, torch.zeros(3), torch.ones(3), torch.float32)


def test_standing_still_shows_the_image_itself():
    moved = apply_maps(image(), identity(1, torch.device("cpu")))
    torch.testing.assert_close(moved, image(), atol=1e-6, rtol=0)


def test_jitter_alone_is_a_shift_within_its_play():
    moves = Augmentation(jitter=8, scale=(1.0, 1.0), rotate=0.0)
    maps = moves.maps(torch.arange(500), torch.zeros(500, dtype=torch.int64), 32)
    shift = maps[:, :, 2] * 16  # pixels
    assert shift.abs().max() <= 4.0
    assert shift.std(0).tolist() == pytest.approx([8 / math.sqrt(12)] * 2, rel=0.1)
    assert torch.equal(maps[:, :, :2], torch.eye(2).expand(500, 2, 2))
    # A shift by whole pixels moves the image, and grey comes in.
    maps = identity(1, torch.device("cpu"))
    maps[0, :, 2] += torch.tensor([3.0, -2.0]) / 16
    expected = torch.full_like(image(), 0.5)
    expected[..., 2:, :29] = image()[..., :30, 3:]
    torch.testing.assert_close(apply_maps(image(), maps), expected, atol=1e-5, rtol=0)


def test_jitter_is_the_same_part_of_a_small_image_and_no_more_of_a_large_one():
    moves = Augmentation(jitter=16, jitter_after=4)
    found = {size: moves.at(size) for size in (8, 32, 100, 128, 224)}
    assert {s: (m.jitter, m.jitter_after) for s, m in found.items()} == {
        8: (1, 0),
        32: (4, 1),
        100: (12, 3),
        128: (16, 4),
        224: (16, 4),
    }
    assert found[128] == found[224] == moves


def test_scale_and_angle_are_in_range():
    moves = Augmentation(jitter=0, scale=(0.8, 1.3), rotate=20.0)
    maps = moves.maps(torch.arange(500), torch.zeros(500, dtype=torch.int64), 32)[:, :, :2]
    zoom = 1 / torch.linalg.det(maps).sqrt()
    angle = torch.atan2(maps[:, 1, 0], maps[:, 0, 0]).rad2deg()
    assert 0.8 <= zoom.min() < 0.82
    assert 1.28 < zoom.max() <= 1.3
    assert 19 < angle.abs().max() <= 20


def test_a_quarter_turn_is_rot90():
    maps = torch.tensor([[[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]]])
    moved = apply_maps(image(), maps)
    expected = torch.rot90(image(), 1, (2, 3))
    torch.testing.assert_close(moved, expected, atol=1e-5, rtol=0)


def test_maps_depend_on_key_and_step_alone():
    moves = Augmentation()
    keys, steps = torch.tensor([1, 2, 3]), torch.tensor([0, 9, 4])
    together = moves.maps(keys, steps, 64)
    alone = moves.maps(keys[1:2], steps[1:2], 64)
    assert torch.equal(together[1], alone[0])
    assert not torch.equal(moves.maps(keys, steps + 1, 64), together)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"scale": (1.1, 0.9)}, "smallest <= largest"), ({"jitter": -1}, "cannot be negative")],
)
def test_impossible_moves_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        Augmentation(**settings)


@pytest.mark.parametrize(("size", "side"), [(4, 4), (4, 8), (4, 7), (5, 8), (6, 3)])
def test_images_are_put_into_the_middle_of_grey_ones(size, side):
    images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    found = on_grey(images, side)
    before = (side - size) // 2
    expected = torch.full((2, 3, side, side), 0.5)
    for y in range(side):
        for x in range(side):
            if 0 <= y - before < size and 0 <= x - before < size:
                expected[..., y, x] = images[..., y - before, x - before]
    assert torch.equal(found, expected)
