import math

import numpy as np
import pytest
import torch

from polylight.clustering import cluster
from polylight.clustering.bic import bic, choose_k, reachable


def reference_bic(points: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Written from the log-likelihood of the points, not from the closed form."""
    num, dims = points.shape
    means = np.stack([points[labels == c].mean(0) for c in range(k)])
    inertia = sum(((points[labels == c] - means[c]) ** 2).sum() for c in range(k))
    variance = inertia / (dims * (num - k))
    likelihood = 0.0
    for point, label in zip(points, labels, strict=True):
        prior = (labels == label).sum() / num
        square = ((point - means[label]) ** 2).sum()
        density = -0.5 * dims * math.log(2 * math.pi * variance) - square / (2 * variance)
        likelihood += math.log(prior) + density
    parameters = (k - 1) + dims * k + 1
    return likelihood - 0.5 * parameters * math.log(num)


@pytest.mark.parametrize(("num", "dims"), [(16, 3), (30, 16), (64, 5)])
def test_bic_is_the_penalised_likelihood(num, dims):
    rng = np.random.default_rng(num)
    points = rng.normal(size=(num, dims))
    k_max = 6
    labels = [rng.permutation(np.arange(num) % k) for k in range(1, k_max + 1)]
    expected = [reference_bic(points, labels[k - 1], k) for k in range(1, k_max + 1)]
    inertia = torch.zeros(1, k_max, dtype=torch.float64)
    sizes = torch.zeros(1, k_max, k_max, dtype=torch.int64)
    for k in range(1, k_max + 1):
        for c in range(k):
            members = points[labels[k - 1] == c]
            inertia[0, k - 1] += ((members - members.mean(0)) ** 2).sum()
            sizes[0, k - 1, c] = len(members)
    result = bic(inertia, sizes, torch.tensor([num]), dims)
    np.testing.assert_allclose(result[0].numpy(), expected, rtol=1e-12)


def test_reach_is_half_the_points():
    reach = reachable(torch.tensor([0, 1, 2, 3, 4, 9, 64]), 8).sum(1)
    assert reach.tolist() == [0, 1, 1, 1, 2, 4, 8]


def test_smallest_k_of_equal_criteria_and_one_of_none():
    nan = math.nan
    criterion = torch.tensor([[1.0, 3.0, 3.0], [nan, nan, nan], [2.0, nan, nan]])
    assert choose_k(criterion).tolist() == [2, 1, 1]


@pytest.mark.parametrize(
    ("k_min", "expected"),
    [(1, [2, 1, 1, 4]), (2, [2, 1, 1, 4]), (3, [3, 1, 1, 4]), (4, [4, 1, 1, 4])],
)
def test_k_from_k_min_on_and_one_where_it_is_out_of_reach(k_min, expected):
    nan = math.nan
    criterion = torch.tensor(
        [[1.0, 3.0, 2.0, 2.0], [nan] * 4, [2.0, nan, nan, nan], [-1.0, -3.0, -2.0, 0.0]]
    )
    assert choose_k(criterion, k_min).tolist() == expected


def test_exact_duplicates_do_not_pay_for_further_clusters():
    centres = torch.eye(6, dtype=torch.float64)[:3]
    points = centres.repeat_interleave(8, dim=0)[None]
    found = cluster(points, valid=torch.ones(1, 24).bool(), keys=torch.tensor([0]))
    assert found.k.item() == 3
    assert found.bic.isfinite().all()


def clouds(num, images, dims, generator):
    return torch.randn(num, images, dims, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("images", [16, 32, 64])
@pytest.mark.parametrize("frame", ["raw", "offset", "normalised"])
def test_one_cloud_is_one_cluster(images, frame):
    generator = torch.Generator().manual_seed(images)
    num = 300 if images < 64 else 150
    points = clouds(num, images, 16, generator)
    if frame != "raw":
        if frame == "offset":
            points = points + 2.0 * clouds(num, 1, 16, generator)
        points = points / points.norm(dim=-1, keepdim=True)
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    found = cluster(points, valid=valid, keys=torch.arange(num), restarts=4)
    assert (found.k == 1).double().mean() >= 0.99


@pytest.mark.parametrize("images", [24, 33, 64])
def test_three_clouds_six_sigma_apart_are_three_clusters(images):
    generator = torch.Generator().manual_seed(images)
    truth = torch.arange(images) % 3
    centres = torch.eye(16, dtype=torch.float64)[:3] * 6.0 / math.sqrt(2.0)
    points = clouds(100, images, 16, generator) + centres[truth]
    valid = torch.ones(points.shape[:2], dtype=torch.bool)
    found = cluster(points, valid=valid, keys=torch.arange(100))
    assert (found.k == 3).all()
    agree = (found.labels[:, :, None] == found.labels[:, None]) == (truth[:, None] == truth)
    assert agree.double().mean() >= 0.99
