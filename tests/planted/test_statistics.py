import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from polylight.planted.statistics import (
    auroc,
    bootstrap_interval,
    estimate,
    feature_recall,
    icc,
    separation,
    share_of,
    spearman,
    spearman_bound,
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


def test_auroc_counts_ties_half():
    assert auroc([1.0, 2.0], [2.0, 3.0]) == 0.875
    assert auroc([1.0], [1.0]) == 0.5
    assert auroc(np.ones((3, 4)), np.ones((3, 2))).tolist() == [0.5] * 3


@pytest.mark.parametrize("values", [3, 1000])
def test_spearman_is_scipys(rng, values):
    x, y = rng.integers(0, values, (2, 4, 31)).astype(float)
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(spearman(x, y), expected, rtol=1e-13)
    np.testing.assert_allclose(spearman(x, y[0])[0], expected[0], rtol=1e-13)


def test_spearman_of_a_constant_or_a_single_value_is_undefined():
    assert np.isnan(spearman([0.1, 0.1, 0.1], [1, 2, 3]))
    assert np.isnan(spearman([0.1], [1]))
    assert np.isnan(spearman([], []))
    assert spearman([0.1, 0.2], [1, 2]) == 1.0


def test_the_bound_of_spearman_is_kendalls_of_ties():
    # Kendall 1945: sqrt(1 - sum(t^3 - t) / (n^3 - n)), t the sizes of the groups of ties.
    for known in ([1, 1, 1, 2, 2, 3, 4], [1, 2], [3, 1, 2, 1, 1], [1] * 40 + [2] * 12 + [4]):
        sizes = [known.count(value) for value in set(known)]
        n = len(known)
        expected = math.sqrt(1 - sum(t**3 - t for t in sizes) / (n**3 - n))
        assert spearman_bound(known) == pytest.approx(expected, rel=1e-12)
    assert spearman_bound(range(5)) == pytest.approx(1)
    assert math.isnan(spearman_bound([1, 1, 1]))


def test_feature_recall_counts_components_that_win_a_valid_image():
    component = [[0, 0, 1, 2], [0, 0, 1, -1]]
    valid = [[True, True, True, False], [True] * 4]
    assert feature_recall(component, valid, 3).tolist() == pytest.approx([2 / 3, 2 / 3])
    assert feature_recall(component[0], [False] * 4, 3) == 0.0
    assert feature_recall([], [], 2) == 0.0


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


def mean(x):
    return x.mean(-1)


def test_bootstrap_of_a_mean_is_the_normal_interval(rng):
    sample = rng.normal(size=400)
    error = stats.norm.ppf(0.975) * sample.std() / math.sqrt(400)
    low, high = bootstrap_interval(mean, sample, resamples=20000)
    assert low == pytest.approx(sample.mean() - error, abs=0.03 * error)
    assert high == pytest.approx(sample.mean() + error, abs=0.03 * error)


def test_bootstrap_is_scipys(rng):
    a, b = rng.normal(size=30), rng.normal(0.7, 1.0, size=40)
    low, high = bootstrap_interval(auroc, a, b, resamples=9999)
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

    ends = bootstrap_interval(statistic, [1.0] * 3, [[1.0, 10.0], [2.0, 20.0]], resamples=2000)
    assert ends == (3.0, 3.0)


def test_bootstrap_is_the_same_again_and_leaves_undefined_resamples_out():
    sample = np.array([0.0, 1.0, 5.0])
    first = bootstrap_interval(mean, sample, resamples=50)
    assert bootstrap_interval(mean, sample, resamples=50) == first
    ends = bootstrap_interval(lambda x: np.where(mean(x) > 2, 7.0, np.nan), sample, resamples=50)
    assert ends == (7.0, 7.0)
    nothing = bootstrap_interval(lambda x: np.full(len(x), np.nan), sample, resamples=50)
    assert np.isnan(nothing).all()


def test_a_stratum_of_one_stays_as_it_is():
    found = estimate(lambda a, b: mean(a) + mean(b), [[5.0], [0.0, 1.0]], resamples=50, reason="")
    assert (found.value, found.n) == (5.5, 3)
    assert (found.low, found.high) == (5.0, 6.0)


@pytest.mark.parametrize(("samples", "n"), [([], 0), ([[1.0], []], 1), ([[math.nan] * 2], 2)])
def test_an_estimate_of_nothing_has_a_reason(samples, n):
    found = estimate(lambda *a: mean(a[0]), samples, resamples=50, reason="nothing")
    assert (found.value, found.low, found.high, found.n) == (None, None, None, n)
    assert found.reason == "nothing"


@pytest.mark.parametrize(("yes", "n"), [(0, 7), (7, 7), (3, 7), (94, 100), (48, 48)])
def test_a_share_has_wilsons_interval(yes, n):
    # Wilson 1927: the p for which the observed share is z standard errors away.
    z = stats.norm.ppf(0.975)
    found = share_of([True] * yes + [False] * (n - yes), reason="")
    assert (found.value, found.n) == (pytest.approx(yes / n), n)
    for end, exact in ((found.low, yes == 0), (found.high, yes == n)):
        apart = abs(yes / n - end) - z * math.sqrt(end * (1 - end) / n)
        assert apart == pytest.approx(0, abs=1e-9), exact
    assert share_of([], reason="none").reason == "none"


def test_groups_that_cannot_be_compared_are_left_out():
    strata = {("a", 1): [0.1, 0.2], ("a", 2): [0.3], ("b", 2): [0.0, 0.9], ("c", 1): [0.5]}
    one, ranked = separation(strata, within=True, resamples=20)
    assert (one.value, one.n, ranked.n) == (1.0, 3, 3)
    one, ranked = separation(strata, within=False, resamples=20)
    assert one.value == pytest.approx(
        roc_auc_score([0, 0, 1, 1, 1, 0], [0.1, 0.2, 0.3, 0, 0.9, 0.5])
    )
    assert (one.n, ranked.n) == (6, 6)


@pytest.mark.parametrize(
    ("strata", "within", "reason"),
    [
        ({}, False, "no neuron has a score"),
        ({("a", 2): [0.1]}, False, "no neuron of one feature has a score"),
        ({("a", 1): [0.1]}, False, "no composite has a score"),
        ({("a", 1): [0.1], ("b", 2): [0.1]}, True, "no layer has scores of both"),
    ],
)
def test_a_separation_that_is_none_says_what_lacks(strata, within, reason):
    found = separation(strata, within=within, resamples=20)
    assert [estimate.reason for estimate in found] == [reason, reason]
