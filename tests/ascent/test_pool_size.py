import logging

import pytest
import tiny_runs
import torch

from polylight.ascent import pool_size
from polylight.neurons import Component, Neuron


class Made:
    """Pools of a tiny subject; memory ends at some size, and time goes by a made-up clock."""

    def __init__(self, fits=10**9):
        self.fits, self.sizes = fits, []

    def __call__(self, size):
        self.sizes.append(size)
        if size > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tiny_runs.engine(["act3:0-3"], pool_size=size).pool


@pytest.fixture(autouse=True)
def _candidates(monkeypatch):
    monkeypatch.setattr(pool_size, "_CANDIDATES", {"cpu": (4, 8, 16, 32)})


NEURON = Neuron((Component("act3", 1),))


def rates(monkeypatch, by_size):
    """Let a step of a pool take what its rate says; a size that is missing does not fit."""

    def seconds(pool, neuron):
        if pool.size not in by_size:
            raise torch.OutOfMemoryError
        return pool.size / by_size[pool.size]

    monkeypatch.setattr(pool_size, "_seconds_per_step", seconds)


@pytest.mark.parametrize(
    ("by_size", "chosen"),
    [
        ({4: 100, 8: 150, 16: 140, 32: 130}, 8),
        ({4: 100, 8: 101, 16: 102, 32: 102.5}, 4),  # nearly as fast
        ({4: 100, 8: 102, 16: 106, 32: 106}, 16),
        ({4: 100, 8: 85, 16: 300}, 4),  # not looked for beyond a loss
        ({4: 100, 8: 200}, 8),  # 16 do not fit
    ],
)
def test_the_fastest_size_is_chosen_or_a_smaller_one_nearly_as_fast(monkeypatch, by_size, chosen):
    rates(monkeypatch, by_size)
    assert pool_size.choose_pool_size(Made(), NEURON, 10**6) == chosen


def test_a_pool_is_not_larger_than_the_work(monkeypatch):
    rates(monkeypatch, {4: 100, 8: 200, 16: 400, 32: 800})
    assert pool_size.choose_pool_size(Made(), NEURON, 6) == 8


def test_no_size_that_fits_is_an_error(monkeypatch):
    rates(monkeypatch, {})
    with pytest.raises(torch.OutOfMemoryError):
        pool_size.choose_pool_size(Made(), NEURON, 100)


def test_real_steps_are_measured_and_leave_nothing_behind():
    build = Made()
    assert pool_size.choose_pool_size(build, NEURON, 8) in (4, 8)
    pool = pool_size.build_fitting(build, 6, NEURON)
    assert pool.size == 6
    assert not pool.running.any()
    assert (pool.latents == 0).all()


def test_what_does_not_fit_is_halved_and_said_once(caplog):
    build = Made(fits=5)
    with caplog.at_level(logging.WARNING, logger="polylight"):
        pool = pool_size.build_fitting(build, 32, NEURON)
    assert pool.size == 4
    assert build.sizes[:4] == [32, 16, 8, 4]
    assert [r.getMessage() for r in caplog.records] == [
        "32 images at a time do not fit into memory; going on with 4"
    ]
    with pytest.raises(torch.OutOfMemoryError):
        pool_size.build_fitting(Made(fits=0), 4, NEURON)
