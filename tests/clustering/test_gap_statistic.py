import functools

import numpy as np
import pytest
import torch
from scipy import stats

from polylight.clustering import gap, gap_statistic
from polylight.clustering.rotations import axis_lengths, flatten, turn, wrap
from polylight.errors import InputError
from polylight.kernels import centre


def clouds(num, images, dims=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, images, dims, generator=generator, dtype=torch.float64)


def all_valid(points):
    return torch.ones(points.shape[:2], dtype=torch.bool)


def keys_of(points, first=1000):
    return first + torch.arange(len(points))


@functools.cache
def partitions(num, k):
    """Every way to part the points into k clusters: float64 [partitions, k, num], 1 for a member.

    A point may open the next cluster, but none beyond it, so each way comes once.
    """
    labels = [[0]]
    for _ in range(num - 1):
        labels = [[*row, c] for row in labels for c in range(min(max(row) + 2, k))]
    labels = np.array([row for row in labels if max(row) == k - 1])
    return (labels[:, None] == np.arange(k)[:, None]).astype(np.float64)


def least_inertia(points, k):
    """W_K of points [..., n, D]: the least over all partitions, from the distances of all pairs."""
    num = points.shape[-2]
    member = partitions(num, k)
    pairs = np.einsum("pki,pkj,pk->pij", member, member, 0.5 / member.sum(-1))
    square = ((points[..., :, None, :] - points[..., None, :, :]) ** 2).sum(-1)
    return (square.reshape(*square.shape[:-2], -1) @ pairs.reshape(-1, num * num).T).min(-1)


def fits(points, k_max):
    """Logarithms of W_K / W_1 [..., K] for K = 2..k_max, or half the points."""
    whole = least_inertia(points, 1)
    tried = range(2, min(k_max, points.shape[-2] // 2) + 1)
    return np.stack([np.log(least_inertia(points, k) / whole) for k in tried], -1)


def gaps_of(fit, draws):
    return (draws.mean(0) - fit) / draws.std(0, ddof=1)


def few_points(on_sphere):
    """Neurons of four to eight points, one of them with two modes."""
    # Of these points and their draws, k-means finds the best partitions.
    points = clouds(6, 8, dims=3)
    points[0, :4] += 2.0
    if on_sphere:
        points /= points.norm(dim=-1, keepdim=True)
    valid = all_valid(points)
    for neuron, silent in enumerate([[], [], [7], [0, 5], [1, 2, 3], [0, 2, 4, 6]]):
        valid[neuron, silent] = False
    return points, valid


def test_there_are_as_many_partitions_as_stirling_says():
    numbers = {(4, 2): 7, (5, 3): 25, (8, 1): 1, (8, 2): 127, (8, 3): 966, (8, 4): 1701}
    for (num, k), count in numbers.items():
        assert len(partitions(num, k)) == count


@pytest.mark.parametrize("k_max", [1, 2, 3, 8])
@pytest.mark.parametrize("on_sphere", [False, True])
def test_statistics_are_those_of_the_best_partitions_of_every_draw(on_sphere, k_max):
    points, valid = few_points(on_sphere)
    keys, counts = keys_of(points), valid.sum(1)
    flat, is_level = flatten(points.masked_fill(~valid[..., None], 0.0), valid)
    assert is_level.all() == on_sphere
    lengths = axis_lengths(centre(flat, valid)[0], counts, 3)
    null = wrap(turn(lengths, counts, keys, 8, torch.arange(19)), is_level).numpy()
    found = gap_statistic(points, valid, keys, k_max, null_samples=19, restarts=32)
    for neuron, count in enumerate(counts.tolist()):
        fit = fits(points[neuron, valid[neuron]].numpy(), max(k_max, 2))
        drawn = fits(null[neuron, :, :count], max(k_max, 2))
        assert len(fit) == min(max(k_max, 2), count // 2) - 1
        every = np.concatenate([fit[None], drawn])
        standing = np.array([gaps_of(one, every).max() for one in every])
        gaps = found.gaps[neuron]
        assert gaps[: len(fit)].tolist() == pytest.approx(gaps_of(fit, drawn), rel=1e-9)
        assert gaps[len(fit) :].isnan().all()
        assert len(gaps) == max(k_max, 2) - 1
        assert found.p_value[neuron].item() == (standing >= standing[0]).sum() / 20


@pytest.mark.parametrize("on_sphere", [False, True])
def test_gaps_are_those_of_draws_made_in_another_way(on_sphere):
    points, valid = few_points(on_sphere)
    points, draws = points[valid.all(1)], 3000
    found = gap_statistic(
        points, all_valid(points), keys_of(points), 3, null_samples=draws, restarts=16
    ).gaps
    # An orthonormal basis of what is orthogonal to the mean, and rotations within it.
    across = np.linalg.svd(np.eye(8) - 1 / 8)[0][:, :7]
    rotations = across @ stats.ortho_group.rvs(7, draws, random_state=0) @ across.T
    for own, gaps in zip(points.numpy(), found.numpy(), strict=True):
        flat, pole = own - own.mean(0), own.mean(0) / np.linalg.norm(own.mean(0))
        if on_sphere:
            aside = own - np.outer(own @ pole, pole)
            flat = aside / np.linalg.norm(aside, axis=1)[:, None] * np.arccos(own @ pole)[:, None]
            flat -= flat.mean(0)
        turned = rotations @ flat
        if on_sphere:
            angle = np.linalg.norm(turned, axis=-1, keepdims=True)
            turned = turned / angle * np.sin(angle) + np.cos(angle) * pole
        expected = gaps_of(fits(own, 3), fits(turned, 3))
        # Five standard errors of the difference of two such estimates.
        error = np.sqrt(2 / draws * (1 + expected**2 / 2))
        assert (np.abs(gaps - expected) < 5 * error).all()


@pytest.mark.parametrize(("images", "dims"), [(12, 16), (20, 16), (9, 2)])
def test_a_turn_keeps_the_mean_and_the_covariance(images, dims):
    points = clouds(4, images, dims)
    valid = all_valid(points)
    valid[1, 7:] = False
    valid[2, 3:] = False
    centred, _ = centre(points, valid)
    axes = min(dims, images - 1)
    counts = valid.sum(1)
    lengths = axis_lengths(centred, counts, axes)
    turned = turn(lengths, counts, keys_of(points), images, torch.arange(5))
    lengths = torch.linalg.svdvals(centred)[:, :axes]
    for neuron, count in enumerate(counts.tolist()):
        assert (turned[neuron, :, count:] == 0).all()
        torch.testing.assert_close(
            turned[neuron].mT @ turned[neuron],
            torch.diag(lengths[neuron].square()).expand(5, -1, -1),
            rtol=1e-10,
            atol=1e-10,
        )
    assert turned.mean(2).abs().max() < 1e-12


def test_turns_are_uniform():
    lengths = torch.ones(1, 2, dtype=torch.float64)
    frame = turn(lengths, torch.tensor([6]), torch.tensor([3]), 6, torch.arange(20000))[0]
    # Each column is uniform on the unit sphere of the 5 dimensions across the mean.
    across = torch.eye(6, dtype=torch.float64) - 1.0 / 6.0
    for column in frame.unbind(-1):
        torch.testing.assert_close(column.mT @ column / 20000, across / 5.0, rtol=0, atol=6e-3)
        fourth = column.pow(4).mean()
        assert fourth.item() == pytest.approx(3.0 / (5.0 * 7.0) * (5.0 / 6.0) ** 2, rel=0.03)


def test_wrapping_undoes_flattening():
    points = clouds(3, 10, 5)
    points *= 3.0 / points.norm(dim=-1, keepdim=True)
    flat, is_level = flatten(points, all_valid(points))
    assert is_level.all()
    mean = torch.nn.functional.normalize(points.mean(1, keepdim=True), dim=-1)
    angle = torch.arccos((points / 3.0 * mean).sum(-1))
    torch.testing.assert_close(flat.norm(dim=-1), angle, rtol=1e-10, atol=0)
    back = wrap(flat[:, None], is_level)[:, 0]
    torch.testing.assert_close(
        torch.cdist(back, back), torch.cdist(points, points) / 3.0, rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("images", [12, 16, 32])
@pytest.mark.parametrize("shape", ["round", "long", "one axis", "sphere"])
def test_one_mode_is_called_several_as_often_as_the_level_says(images, shape):
    points = clouds(400, images, seed=images)
    if shape == "long":
        points /= torch.arange(1, 17).sqrt()
    elif shape == "one axis":
        points[..., 0] *= 15**0.5
    elif shape == "sphere":
        points /= points.norm(dim=-1, keepdim=True)
    p_value, gaps = gap_statistic(points, all_valid(points), keys_of(points), null_samples=59)
    lowest = 0.01 if shape == "sphere" else 0.02
    assert lowest <= (p_value <= 0.05).double().mean() <= 0.09
    if shape != "sphere":
        assert p_value.mean().item() == pytest.approx(0.5, abs=0.05)
    # Of so few draws the deviation is not well known, and yet four of it are hardly ever reached.
    best = gaps.nan_to_num(nan=-torch.inf).amax(1)
    assert (best > 4.0).sum() <= 4
    assert best.mean() < 1.1
    assert gaps.nanmean().abs() < 0.2


@pytest.mark.parametrize("frame", ["raw", "normalised"])
@pytest.mark.parametrize("images", [12, 16, 32])
def test_two_modes_are_seen(images, frame):
    points = clouds(20, images, seed=1)
    truth = torch.arange(images) % 2
    centres = 8.0 / 2**0.5 * torch.eye(16, dtype=torch.float64)[:2]
    points += centres[truth]
    if frame == "normalised":
        points = 0.2 * clouds(20, images) + torch.eye(16, dtype=torch.float64)[:2][truth]
        points /= points.norm(dim=-1, keepdim=True)
    p_value, gaps = gap_statistic(points, all_valid(points), keys_of(points))
    assert (p_value <= 0.05).double().mean() >= 0.95
    assert p_value.min().item() == 1 / 201
    # Twelve points in sixteen dimensions say little about their modes, however far apart.
    assert gaps[:, 0].min() > {12: 2.0, 16: 2.5, 32: 4.5}[images]
    # More clusters than there are modes are less of a gain.
    assert gaps[:, 0].mean() > gaps[:, 4].mean()


@pytest.mark.parametrize("images", [16, 32])
def test_modes_farther_apart_are_more_separate(images):
    truth = torch.arange(images) % 2
    centres = torch.eye(16, dtype=torch.float64)[:2][truth] / 2**0.5
    apart = torch.tensor([2.0, 4.0, 6.0, 8.0, 12.0, 16.0], dtype=torch.float64)
    points = (clouds(20, images, seed=3)[:, None] + apart[:, None, None] * centres).flatten(0, 1)
    keys = keys_of(points[::6]).repeat_interleave(6)
    p_value, gaps = gap_statistic(points, all_valid(points), keys, null_samples=100)
    of_two = gaps[:, 0].view(20, 6)
    assert (of_two.mean(0).diff() > 0.1).all()
    assert (of_two[:, 2:].diff() > 0.0).all()
    assert (p_value.view(20, 6).mean(0).diff() <= 0.0).all()


def test_place_size_and_direction_of_the_axes_do_not_matter():
    points = clouds(6, 16, dims=5, seed=4)
    valid, keys = all_valid(points), keys_of(points)
    straight = gap_statistic(points, valid, keys, null_samples=30)
    rotation = torch.tensor(stats.ortho_group.rvs(5, random_state=0))
    moved = gap_statistic(40.0 * points @ rotation + 7.0, valid, keys, null_samples=30)
    torch.testing.assert_close(moved.gaps, straight.gaps, rtol=1e-9, atol=1e-9, equal_nan=True)
    assert torch.equal(moved.p_value, straight.p_value)
    sphere = torch.nn.functional.normalize(points, dim=-1)
    on_sphere = gap_statistic(sphere, valid, keys, null_samples=30)
    turned = gap_statistic(0.1 * sphere @ rotation, valid, keys, null_samples=30)
    torch.testing.assert_close(turned.gaps, on_sphere.gaps, rtol=1e-9, atol=1e-9, equal_nan=True)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_batch_padding_and_images_of_an_invalid_image_do_not_matter():
    points, valid = clouds(8, 20), all_valid(clouds(8, 20))
    valid[::2, 13:] = False
    keys = keys_of(points)
    found = gap_statistic(points, valid, keys, null_samples=50)
    torch.manual_seed(99)
    assert_same(gap_statistic(points, valid, keys, null_samples=50), found)
    for neuron in range(8):
        row = slice(neuron, neuron + 1)
        alone = gap_statistic(points[row], valid[row], keys[row], null_samples=50)
        assert_same(alone, (value[row] for value in found))
    for poison in (torch.nan, torch.inf):
        poisoned = points.masked_fill(~valid[..., None], poison)
        assert_same(gap_statistic(poisoned, valid, keys, null_samples=50), found)
    few = gap_statistic(points[::2, :13], valid[::2, :13], keys[::2], null_samples=50)
    assert torch.equal(few.p_value, found.p_value[::2])
    torch.testing.assert_close(few.gaps, found.gaps[::2], rtol=0, atol=1e-11, equal_nan=True)
    other = gap_statistic(points, valid, keys + 1, null_samples=50)
    assert not torch.equal(other.p_value, found.p_value)
    assert (other.gaps[:, 0] != found.gaps[:, 0]).all()


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_order_of_the_images_does_not_matter(kernels):
    points = clouds(100, 20, seed=5)
    points[::2] /= points[::2].norm(dim=-1, keepdim=True)
    # A spike that is a cluster of its own.
    points[::3, 0] *= -5.0
    valid = torch.rand(100, 20, generator=torch.Generator().manual_seed(5)) < 0.8
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    given = {"keys": keys_of(points), "null_samples": 25, "kernels": kernels}
    straight = gap_statistic(points, valid, **given)
    shuffled = gap_statistic(points[:, order], valid[:, order], **given)
    assert torch.equal(shuffled.p_value, straight.p_value)
    torch.testing.assert_close(shuffled.gaps, straight.gaps, rtol=0, atol=1e-11, equal_nan=True)


def test_chunks_do_not_matter(monkeypatch):
    points = clouds(5, 12)
    whole = gap_statistic(points, all_valid(points), keys_of(points), null_samples=30)
    for numbers in (1, 7 * 12 * 90, 2 * 30 * 12 * 90):
        monkeypatch.setitem(gap._CHUNK, "cpu", numbers)
        found = gap_statistic(points, all_valid(points), keys_of(points), null_samples=30)
        assert_same(found, whole)


def test_plain_and_compiled_kernels_agree():
    points = clouds(4, 14)
    arguments = (points.float(), all_valid(points), keys_of(points), 8, 30)
    fast = gap_statistic(*arguments)
    plain = gap_statistic(*arguments, kernels="torch")
    assert torch.equal(plain.p_value, fast.p_value)
    torch.testing.assert_close(plain.gaps, fast.gaps, rtol=0, atol=1e-11, equal_nan=True)


def test_degenerate_neurons():
    points = clouds(6, 6, 4)
    valid = all_valid(points)
    valid[0] = False
    valid[1, 3:] = False
    points[2] = points[2, 0]
    points[3, 1] = torch.nan
    points[4] = points[4, :2].repeat(3, 1)
    p_value, gaps = gap_statistic(points, valid, keys_of(points), null_samples=19)
    assert p_value[[0, 1, 3]].isnan().all()
    assert p_value[2] == 1.0
    assert p_value[4].item() == 1 / 20
    assert 0.0 < p_value[5] <= 1.0
    assert gaps[:4].isnan().all()
    # Nothing is left of two points that are repeated, where one mode leaves something.
    assert gaps[4, 0] > 10.0
    assert gaps[5, :2].isfinite().all()
    assert p_value.dtype == gaps.dtype == torch.float64


def test_gaps_of_exact_duplicates_have_a_bound():
    # What is left of the inertia counts as 1e-8 of it, or its logarithm would have no end.
    points = torch.eye(3, dtype=torch.float64).repeat_interleave(2, 0)[None]
    points *= torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    valid, keys = all_valid(points), torch.tensor([5])
    lengths = axis_lengths(centre(points, valid)[0], valid.sum(1), 3)
    drawn = fits(turn(lengths, valid.sum(1), keys, 6, torch.arange(40))[0].numpy(), 3)
    left = fits(points[0].numpy(), 2)
    gap = drawn.mean(0) - np.array([left[0], np.log(1e-8)])
    found = gap_statistic(points, valid, keys, null_samples=40, restarts=32)
    expected = gap / drawn.std(0, ddof=1)
    assert found.gaps[0, :2].tolist() == pytest.approx(expected, rel=1e-9)
    assert found.gaps[0, 2:].isnan().all()


def test_nothing_to_test():
    points = clouds(0, 6)
    found = gap_statistic(points, all_valid(points), keys_of(points))
    assert found.p_value.shape == (0,)
    assert found.gaps.shape == (0, 7)
    points = clouds(2, 3)
    found = gap_statistic(points, all_valid(points), keys_of(points))
    assert found.p_value.isnan().all()
    assert found.gaps.isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(4, 5)}, r"\[neurons, images >= 1, dimensions >= 1\].*\[4, 5\]"),
        ({"valid": torch.ones(3, 8)}, r"valid must be bool \[3, 8\].*float32"),
        ({"keys": torch.zeros(2, dtype=torch.int64)}, r"keys must be int64 \[3\].*\[2\]"),
        ({"null_samples": 1}, "null_samples must be at least 2, .* got 1, 4 and 8"),
        ({"restarts": 0}, "restarts and k_max at least 1, got 200, 0 and 8"),
        ({"k_max": 0}, "k_max at least 1, got 200, 4 and 0"),
        ({"kernels": "fast"}, "kernels must be one of auto, torch, triton, got 'fast'"),
    ],
)
def test_errors_name_what_came(change, message):
    points = clouds(3, 8)
    arguments = {"points": points, "valid": all_valid(points), "keys": keys_of(points)} | change
    with pytest.raises(InputError, match=message):
        gap_statistic(**arguments)
