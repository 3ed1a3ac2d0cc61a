import numpy as np
import pytest
from scipy import stats

from polylight.errors import InputError
from polylight.run.false_discovery import q_values

NAN = float("nan")


def test_q_values_are_those_of_scipy_within_each_group():
    p = np.random.default_rng(6).random(60) ** 3
    p[7] = p[21]
    p[11], p[12] = 0.0, 1.0
    p[[3, 30, 31]] = NAN
    group = [f"layer{i % 4 * (i % 3)}" for i in range(60)]
    found = q_values(p, group)
    for name in set(group):
        mine = np.array([g == name for g in group]) & ~np.isnan(p)
        np.testing.assert_allclose(found[mine], stats.false_discovery_control(p[mine]), rtol=1e-12)
    assert (np.isnan(found) == np.isnan(p)).all()
    assert q_values(p[:0], []).shape == (0,)
    np.testing.assert_array_equal(q_values([NAN, 0.2], ["a", "a"]), [NAN, 0.2])


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"every p-value needs a group, got \[2\] and 1"):
        q_values([0.0, 0.0], ["a"])
    with pytest.raises(InputError, match=r"must be in \[0, 1\], got -0.5 to 0.5"):
        q_values([0.5, NAN, -0.5], ["a", "b", "b"])
