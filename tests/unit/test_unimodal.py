from itertools import product

import numpy as np
import pytest
import torch

from polylight.clustering import one_mode_p_value, unimodal
from polylight.clustering.unimodal import axis_lengths, flatten, turn, wrap
from polylight.errors import InputError
from polylight.kernels.centred_gram import centre


def clouds(num, images, dims=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(num, images, dims, generator=generator, dtype=torch.float64)


def all_votes(points):
    return torch.ones(points.shape[:2], dtype=torch.bool)


def keys_of(points, first=1000):
    return first + torch.arange(len(points))


def cluster_index(points):
    """Least W_2 / W_1 over every way to part the points in two."""
    total = ((points - points.mean(0)) ** 2).sum()
    least = total
    for rest in product([False, True], repeat=len(points) - 1):
        second = np.array([False, *rest])
        if second.any():
            parts = points[second], points[~second]
            least = min(least, sum(((part - part.mean(0)) ** 2).sum() for part in parts))
    return least / total


@pytest.mark.parametrize("on_sphere", [False, True])
def test_p_value_counts_the_draws_that_two_means_fit_better(on_sphere):
    points = clouds(3, 8, dims=3, seed=2)
    points[0, :4] += 2.0
    if on_sphere:
        points /= points.norm(dim=-1, keepdim=True)
    votes, keys = all_votes(points), keys_of(points)
    flat, is_level = flatten(points, votes)
    assert is_level.all() == on_sphere
    lengths = axis_lengths(centre(flat, votes)[0], votes.sum(1), 3)
    null = turn(lengths, votes.sum(1), keys, 8, torch.arange(19))
    null = wrap(null, is_level).numpy()
    for p_value, own, draws in zip(
        one_mode_p_value(points, votes, keys, draws=19), points.numpy(), null, strict=True
    ):
        index = cluster_index(own)
        better = sum(cluster_index(draw) <= index for draw in draws)
        assert p_value.item() == (1 + better) / 20


@pytest.mark.parametrize(("images", "dims"), [(12, 16), (20, 16), (9, 2)])
def test_a_turn_keeps_the_mean_and_the_covariance(images, dims):
    points = clouds(4, images, dims)
    votes = all_votes(points)
    votes[1, 7:] = False
    votes[2, 3:] = False
    centred, _ = centre(points, votes)
    axes = min(dims, images - 1)
    counts = votes.sum(1)
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
    flat, is_level = flatten(points, all_votes(points))
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
def test_one_mode_is_called_two_as_often_as_the_level_says(images, shape):
    points = clouds(400, images, seed=images)
    if shape == "long":
        points /= torch.arange(1, 17).sqrt()
    elif shape == "one axis":
        points[..., 0] *= 15**0.5
    elif shape == "sphere":
        points /= points.norm(dim=-1, keepdim=True)
    p_value = one_mode_p_value(points, all_votes(points), keys_of(points), draws=59)
    lowest = 0.01 if shape == "sphere" else 0.02
    assert lowest <= (p_value <= 0.05).double().mean() <= 0.09
    if shape != "sphere":
        assert p_value.mean().item() == pytest.approx(0.5, abs=0.05)


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
    p_value = one_mode_p_value(points, all_votes(points), keys_of(points))
    assert (p_value <= 0.05).double().mean() >= 0.95
    assert p_value.min().item() == 1 / 201


def test_company_order_and_images_without_a_vote_do_not_matter():
    points, votes = clouds(8, 20), all_votes(clouds(8, 20))
    votes[::2, 13:] = False
    keys = keys_of(points)
    p_value = one_mode_p_value(points, votes, keys, draws=50)
    torch.manual_seed(99)
    assert torch.equal(one_mode_p_value(points, votes, keys, draws=50), p_value)
    for neuron in range(8):
        row = slice(neuron, neuron + 1)
        alone = one_mode_p_value(points[row], votes[row], keys[row], draws=50)
        assert torch.equal(alone, p_value[row])
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one_mode_p_value(points[:, order], votes[:, order], keys, draws=50), p_value)
    for poison in (torch.nan, torch.inf):
        found = one_mode_p_value(
            points.masked_fill(~votes[..., None], poison), votes, keys, draws=50
        )
        assert torch.equal(found, p_value)
    few = one_mode_p_value(points[::2, :13], votes[::2, :13], keys[::2], draws=50)
    assert torch.equal(few, p_value[::2])
    assert not torch.equal(one_mode_p_value(points, votes, keys + 1, draws=50), p_value)


def test_chunks_do_not_matter(monkeypatch):
    points = clouds(5, 12)
    whole = one_mode_p_value(points, all_votes(points), keys_of(points), draws=30)
    for numbers in (1, 7 * 12 * 60, 2 * 30 * 12 * 60):
        monkeypatch.setitem(unimodal._CHUNK, "cpu", numbers)
        found = one_mode_p_value(points, all_votes(points), keys_of(points), draws=30)
        assert torch.equal(found, whole)


def test_plain_and_compiled_kernels_agree():
    points = clouds(4, 14)
    arguments = (points.float(), all_votes(points), keys_of(points), 30)
    fast = one_mode_p_value(*arguments)
    torch.testing.assert_close(one_mode_p_value(*arguments, kernels="torch"), fast, rtol=0, atol=0)


def test_degenerate_neurons():
    points = clouds(6, 6, 4)
    votes = all_votes(points)
    votes[0] = False
    votes[1, 3:] = False
    points[2] = points[2, 0]
    points[3, 1] = torch.nan
    points[4] = points[4, :2].repeat(3, 1)
    found = one_mode_p_value(points, votes, keys_of(points), draws=19)
    assert found[[0, 1, 3]].isnan().all()
    assert found[2] == 1.0
    assert found[4].item() == 1 / 20
    assert 0.0 < found[5] <= 1.0
    assert found.dtype == torch.float64


def test_nothing_to_test():
    points = clouds(0, 6)
    found = one_mode_p_value(points, all_votes(points), keys_of(points))
    assert found.shape == (0,)
    points = clouds(2, 3)
    assert one_mode_p_value(points, all_votes(points), keys_of(points)).isnan().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(4, 5)}, r"\[neurons, images >= 1, dimensions >= 1\].*\[4, 5\]"),
        ({"votes": torch.ones(3, 8)}, r"votes must be bool \[3, 8\].*float32"),
        ({"keys": torch.zeros(2, dtype=torch.int64)}, r"keys must be int64 \[3\].*\[2\]"),
        ({"draws": 0}, "at least 1, got 0 and 4"),
        ({"kernels": "fast"}, "kernels must be one of auto, torch, triton, got 'fast'"),
    ],
)
def test_errors_name_what_came(change, message):
    points = clouds(3, 8)
    arguments = {"points": points, "votes": all_votes(points), "keys": keys_of(points)} | change
    with pytest.raises(InputError, match=message):
        one_mode_p_value(**arguments)
