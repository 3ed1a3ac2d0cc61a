import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_rand_score, roc_auc_score

from polylight.errors import InputError
from polylight.planted.statistics import (
    adjusted_rand,
    auroc,
    bootstrap_interval,
    facet_recall,
    highest_spearman,
    icc,
    k_error,
    midranks,
    spearman,
    wilson_interval,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("values", [3, 1000])
def test_auroc_is_the_area_under_the_curve(rng, values):
    negatives, positives = rng.integers(0, values, (5, 17)), rng.integers(1, values, (5, 9))
    truth = np.r_[np.zeros(17), np.ones(9)]
    expected = [
        roc_auc_score(truth, np.r_[n, p]) for n, p in zip(negatives, positives, strict=True)
    ]
    np.testing.assert_allclose(auroc(negatives, positives), expected, rtol=1e-14)


def test_auroc_counts_ties_half_and_needs_both():
    assert auroc([1.0, 2.0], [2.0, 3.0]) == 0.875
    assert auroc([1.0], [1.0]) == 0.5
    assert np.isnan(auroc([], [1.0]))
    assert np.isnan(auroc(np.zeros((3, 2)), np.zeros((3, 0)))).tolist() == [True] * 3


@pytest.mark.parametrize("values", [3, 1000])
def test_midranks_and_spearman_are_scipys(rng, values):
    x, y = rng.integers(0, values, (2, 4, 31)).astype(float)
    np.testing.assert_array_equal(midranks(x), stats.rankdata(x, axis=-1))
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, rtol=1e-13)
    np.testing.assert_allclose(spearman(x, y[0])[0], expected[0], rtol=1e-13)


def test_spearman_of_a_constant_or_a_single_value_is_undefined():
    assert np.isnan(spearman([0.1, 0.1, 0.1], [1, 2, 3]))
    assert np.isnan(spearman([0.1], [1]))
    assert np.isnan(spearman([], []))
    assert spearman([0.1, 0.2], [1, 2]) == 1.0


def test_the_highest_spearman_is_that_of_the_right_order(rng):
    for known in ([1, 1, 1, 2, 2, 3, 4], [1, 2], [3, 1, 2, 1, 1], [1] * 40 + [2] * 12 + [4]):
        order = np.sort(known) + rng.uniform(0, 0.5, len(known))
        expected = stats.spearmanr(np.sort(known), order).statistic
        assert highest_spearman(known) == pytest.approx(expected, rel=1e-12)
    assert highest_spearman([1, 1, 1]) == 0
    assert highest_spearman(range(5)) == 1
    assert np.isnan(highest_spearman([1]))


def test_facet_recall_counts_parts_that_win_an_image_with_a_vote():
    winner = [[0, 0, 1, 2], [0, 0, 1, -1]]
    valid = [[True, True, True, False], [True] * 4]
    assert facet_recall(winner, valid, 3).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert facet_recall(winner[0], [False] * 4, 3) == 0.0
    assert facet_recall([], [], 2) == 0.0


@pytest.mark.parametrize(
    ("labels", "truth"),
    [
        ([0, 0, 1, 1], [1, 1, 0, 0]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([0, 1, 2, 3], [5, 6, 7, 8]),
        ([0, 0, 0, 0], [0, 0, 1, 1]),
        ([0, 1, 0, 1], [0, 0, 1, 1]),
        ([0], [3]),
    ],
)
def test_adjusted_rand_is_sklearns_at_its_edges(labels, truth):
    assert adjusted_rand(labels, truth) == pytest.approx(adjusted_rand_score(truth, labels))


def test_adjusted_rand_is_sklearns(rng):
    for _ in range(20):
        labels, truth = rng.integers(0, 4, (2, 23))
        truth[:12] = labels[:12]
        expected = adjusted_rand_score(truth, labels)
        assert adjusted_rand(labels, truth) == pytest.approx(expected, abs=1e-14)
    assert math.isnan(adjusted_rand([], []))


def test_icc_is_that_of_the_table_of_shrout_and_fleiss():
    judges = [[9, 6, 8, 7, 10, 6], [2, 1, 4, 1, 5, 2], [5, 3, 6, 2, 6, 4], [8, 2, 8, 6, 9, 7]]
    assert icc(*judges) == pytest.approx(0.29, abs=0.005)


def test_icc_is_the_ratio_of_variance_components(rng):
    scores = rng.normal(size=(50, 1)) + 0.3 * rng.normal(size=(50, 3)) + [0.0, 0.2, 0.5]
    n, k = scores.shape
    # Effects are estimated by least squares on indicators, not by the means of rows and columns.
    rows, columns = np.repeat(np.eye(n), k, 0), np.tile(np.eye(k), (n, 1))

    def left(*design):
        design = np.concatenate([np.ones((n * k, 1)), *design], 1)
        fit = design @ np.linalg.lstsq(design, scores.ravel(), rcond=None)[0]
        return ((scores.ravel() - fit) ** 2).sum()

    error = left(rows, columns) / ((n - 1) * (k - 1))
    subjects = ((left(columns) - left(rows, columns)) / (n - 1) - error) / k
    raters = ((left(rows) - left(rows, columns)) / (k - 1) - error) / n
    expected = subjects / (subjects + raters + error)
    assert icc(*scores.T) == pytest.approx(expected, rel=1e-10)
    np.testing.assert_allclose(icc(*np.stack([scores.T] * 2, 1)), [expected] * 2, rtol=1e-10)


def test_icc_wants_agreement_not_correlation():
    a = np.arange(5.0)
    assert icc(a, a) == 1.0
    # MS_R = 5, MS_E = 0, MS_C = 2.5: 5 / (5 + 2 * 2.5 / 5).
    assert icc(a, a + 1.0) == pytest.approx(5 / 6)
    assert np.isnan(icc(np.ones(5), np.ones(5)))
    assert np.isnan(icc([1.0], [2.0]))
    assert np.isnan(icc(a))


def test_k_error():
    error, exact = k_error([1, 2, 4, 1], [1, 2, 2, 3])
    assert (error, exact) == (0.0, 0.5)
    assert all(np.isnan(k_error([], [])))


def mean(x):
    return x.mean(-1)


def test_bootstrap_of_a_mean_is_the_normal_interval(rng):
    sample = rng.normal(size=400)
    error = stats.norm.ppf(0.975) * sample.std() / math.sqrt(400)
    low, high = bootstrap_interval(mean, sample, seed=1, draws=20000)
    assert low == pytest.approx(sample.mean() - error, abs=0.03 * error)
    assert high == pytest.approx(sample.mean() + error, abs=0.03 * error)


def test_bootstrap_is_scipys(rng):
    a, b = rng.normal(size=30), rng.normal(0.7, 1.0, size=40)
    low, high = bootstrap_interval(auroc, a, b, seed=1, draws=9999)
    expected = stats.bootstrap(
        (a, b), lambda x, y, axis: auroc(x, y), method="percentile", rng=np.random.default_rng(2)
    ).confidence_interval
    assert low == pytest.approx(expected.low, abs=0.01)
    assert high == pytest.approx(expected.high, abs=0.01)


def test_bootstrap_keeps_strata_and_rows_together():
    def statistic(a, b):
        assert a.shape == (2000, 3)
        assert b.shape == (2000, 2, 2)
        assert (b[..., 1] == 10 * b[..., 0]).all()
        return a.sum(-1) + 0.0 * b.sum((-2, -1))

    ends = bootstrap_interval(statistic, [1.0] * 3, [[1.0, 10.0], [2.0, 20.0]], seed=0)
    assert ends == (3.0, 3.0)


def test_bootstrap_depends_on_its_seed_alone_and_leaves_undefined_draws_out():
    sample = np.array([0.0, 1.0, 5.0])
    assert bootstrap_interval(mean, sample, seed=3) == bootstrap_interval(mean, sample, seed=3)
    assert bootstrap_interval(mean, sample, seed=3) != bootstrap_interval(
        mean, sample, seed=4, draws=50
    )
    low, high = bootstrap_interval(lambda x: np.where(mean(x) > 2, 7.0, np.nan), sample, seed=0)
    assert (low, high) == (7.0, 7.0)
    nothing = bootstrap_interval(lambda x: np.full(len(x), np.nan), sample, seed=0)
    assert np.isnan(nothing).all()


@pytest.mark.parametrize("samples", [(), ([1.0], [])])
def test_bootstrap_of_nothing_is_refused(samples):
    with pytest.raises(InputError, match="at least one observation each"):
        bootstrap_interval(mean, *samples, seed=0)


@pytest.mark.parametrize(("yes", "n"), [(0, 7), (7, 7), (3, 7), (94, 100), (48, 48)])
def test_wilson_interval_is_scipys(yes, n):
    expected = stats.binomtest(yes, n).proportion_ci(method="wilson")
    assert wilson_interval(yes, n) == pytest.approx(tuple(expected), abs=1e-12)
