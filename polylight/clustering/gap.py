"""The gap statistic of every neuron, against its own points rotated at random."""

from typing import NamedTuple

import torch
from torch import Tensor

from polylight.clustering import gram
from polylight.clustering.bic import reachable
from polylight.clustering.rotations import axis_lengths, flatten, turn, wrap
from polylight.errors import InputError
from polylight.kernels import Backend, Kernels, centre, needs_float64, resolve_kernels

# Fewer points are not cut into two clusters of two.
LEAST_POINTS = 4
_ITERATIONS = 16
# Widths that neurons are filled up to are multiples of it: whole vectors, and few kinds of batch.
_STEP = 8
# Numbers held per chunk of neurons: what stays near a CPU core, and half a GiB on a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**26}
# Of the inertia of one cluster: what is below is no distance but rounding.
_FLOOR = 1e-8
# Of the logarithm of an inertia; that of real null samples is a hundred times as large.
_LEAST_DEVIATION = 1e-3


class GapStatistic(NamedTuple):
    """Whether the points of each neuron could come from a single mode.

    Attributes:
        p_value: float64 [U] in (0, 1]; NaN where there is nothing to test.
        gaps: float64 [U, k_max - 1], by how many standard deviations of the null samples the points
            fall into K = 2..k_max clusters better than these; NaN likewise, and for a K that
            is out of reach.
    """

    p_value: Tensor
    gaps: Tensor


@needs_float64
def gap_statistic(
    points: Tensor,
    valid: Tensor,
    keys: Tensor,
    k_max: int = 8,
    null_samples: int = 200,
    restarts: int = 4,
    kernels: Kernels = "auto",
) -> GapStatistic:
    r"""Test whether k-means explains a neuron's points better than it would one Gaussian's.

    For each K the inertia :math:`W_K` is compared with that of null samples (the gap statistic,
    Tibshirani, Walther & Hastie 2001), in units of their standard deviation:

    .. math:: g_K = \frac{\operatorname{mean}_b \log W_K^b - \log W_K}
              {\operatorname{sd}_b \log W_K^b}, \qquad
              G = \max_{2 \le K \le k_{max}} g_K, \qquad
              p = \frac{1 + \#\{b : G_b \ge G\}}{B + 1}

    For p, mean and deviation are those of the null samples and the points together, so that under
    the null all B + 1 have the same standing.

    The null is a Gaussian of unknown mean and covariance. With the centred points
    :math:`X = U S V^T`, a null sample replaces U by a uniformly random orthonormal frame that is
    orthogonal to the mean, so it has the very spectrum of X; that is how Gaussian points are
    distributed given their covariance (rotation test; Langsrud 2005). The test is therefore exact
    for every Gaussian, round or elongated, however few points there are; a spectrum that is
    estimated and drawn from anew is too spread out where points are few, and hides modes.

    Points of equal length, as of normalised embeddings, lie on a sphere and are no Gaussian. They
    are turned in the plane that touches the sphere at their mean direction, and wrapped around it
    again. That is approximate: it holds for round clouds, however wide, and is too small a p for
    long ones whose ends the sphere bends together.

    Args:
        points: float [U, N, D]; invalid ones are ignored.
        valid: bool [U, N], which points count.
        keys: int64 [U], random stream of each neuron
            (:func:`polylight.kernels.stream_key`).
        k_max: Largest K that is tried; a neuron reaches half its valid at the most. With 1, as
            with 2, two clusters are tried.
        null_samples: Null samples of each neuron, B > 1; the smallest p is 1 / (B + 1).
        restarts: Starts of k-means for each K, > 0.
        kernels: Which implementation of k-means runs
            (:func:`polylight.kernels.resolve_kernels`).

    Returns:
        The test of each neuron: NaN for fewer than four valid and where a valid point is
        not finite; p = 1, without gaps (NaN), where all points are the same.

    Raises:
        InputError: A shape, type or number is wrong.
    """
    _check(points, valid, keys, k_max, null_samples, restarts)
    chosen = resolve_kernels(kernels, points.device)
    most = max(2, k_max)
    counts = valid.sum(-1)
    # Points that a neuron lacks are turned too. The last digits depend on how many there are; so
    # they are as many as its own valid ask for, whatever its batch and its padding are.
    widths = (counts.clamp_min(1) + _STEP - 1) // _STEP * _STEP
    p_value = torch.full(counts.shape, torch.nan, dtype=torch.float64, device=points.device)
    gaps = p_value[:, None].repeat(1, most - 1)
    budget = _CHUNK.get(points.device.type, _CHUNK["cpu"])
    for width in sorted(set(widths.tolist())):
        axes, k_most = min(points.shape[-1], width - 1), min(most, width // 2)
        numbers = width * (width + 4 * axes + restarts * k_most)
        at_once = max(1, min(null_samples, budget // numbers))
        chunk = max(1, budget // (null_samples * numbers))
        for rows in (widths == width).nonzero().squeeze(1).split(chunk):
            batch = points[rows], valid[rows], keys[rows]
            fit, null = _fits(*batch, width, axes, k_most, null_samples, at_once, restarts, chosen)
            p_value[rows], gaps[rows, : k_most - 1] = _compare(fit, null, counts[rows])
    return GapStatistic(p_value, gaps)


def _compare(fit: Tensor, null: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """p-value [U] and gaps [U, K] of fits [U, K] among those of null samples [U, B, K]."""
    tried = reachable(counts, fit.shape[1] + 1)[:, 1:]
    every = torch.cat([fit[:, None], null], 1)
    excess = _gaps(every, every).masked_fill(~tried[:, None], -torch.inf).amax(2)
    p_value = (excess >= excess[:, :1]).sum(1).double() / excess.shape[1]
    gaps = _gaps(every[:, :1], null)[:, 0]
    # Four points reach two clusters, and what is not finite has no fit for any number.
    untested = (counts < LEAST_POINTS) | gaps[:, 0].isnan()
    # Points that are all the same leave nothing to compare.
    even = untested | (fit == 0.0).all(1)
    gaps = gaps.masked_fill(even[:, None] | ~tried, torch.nan)
    return p_value.masked_fill(untested, torch.nan), gaps


def _gaps(fits: Tensor, null_samples: Tensor) -> Tensor:
    """How far fits [U, M, K] are below null samples [U, B, K], in their deviations: [U, M, K]."""
    # Sums over the last axis add up in the same order in any batch.
    rows = null_samples.mT.contiguous()
    mean, deviation = rows.mean(-1)[:, None], rows.std(-1)[:, None]
    gaps: Tensor = (mean - fits) / deviation.clamp_min(_LEAST_DEVIATION)
    return gaps


def _fits(
    points: Tensor,
    valid: Tensor,
    keys: Tensor,
    images: int,
    axes: int,
    k_max: int,
    null_samples: int,
    at_once: int,
    restarts: int,
    kernels: Backend,
) -> tuple[Tensor, Tensor]:
    """Logarithms of W_K / W_1, K = 2..k_max, of neurons with at most ``images`` valid.

    Returns:
        float64 [U, k_max - 1] of the points, NaN where one is not finite;
        [U, null_samples, k_max - 1] of null samples that span ``axes``.
    """
    counts = valid.sum(-1)
    missing = max(0, images - points.shape[1])
    points = torch.nn.functional.pad(points, (0, 0, 0, missing))
    valid = torch.nn.functional.pad(valid, (0, missing))
    points = points.double().masked_fill(~valid[..., None], 0.0)
    finite = points.isfinite().all(2).all(1)
    points = torch.where(finite[:, None, None], points, 0.0)
    flat, is_level = flatten(points, valid)
    flat, _ = centre(flat, valid)
    flat = flat[:, :images]
    lengths = axis_lengths(flat, counts, axes)
    present = torch.arange(images, device=points.device) < counts[:, None]

    def fit_of(points: Tensor, valid: Tensor, keys: Tensor) -> Tensor:
        _, inertia, _ = gram.solve(points, valid, keys, k_max, restarts, _ITERATIONS, kernels)
        # Where all points are the same, one mean leaves as little as many.
        left = torch.where(inertia[:, :1] > 0.0, inertia[:, 1:] / inertia[:, :1], 1.0)
        return left.clamp_min(_FLOOR).log()

    parts = []
    for first in range(0, null_samples, at_once):
        block = torch.arange(first, min(first + at_once, null_samples), device=points.device)
        null = wrap(turn(lengths, counts, keys, images, block), is_level).flatten(0, 1)
        times = len(block)
        fits = fit_of(null, present.repeat_interleave(times, 0), keys.repeat_interleave(times))
        parts.append(fits.view(-1, times, k_max - 1))
    fit = fit_of(points, valid, keys).masked_fill(~finite[:, None], torch.nan)
    return fit, torch.cat(parts, 1)


def _check(
    points: Tensor, valid: Tensor, keys: Tensor, k_max: int, null_samples: int, restarts: int
) -> None:
    if points.dim() != 3 or 0 in points.shape[1:] or not points.is_floating_point():
        raise InputError(
            "points must be floating-point [neurons, images >= 1, dimensions >= 1], got "
            f"{points.dtype} {list(points.shape)}; a single neuron is a batch of one: points[None]"
        )
    if valid.dtype != torch.bool or valid.shape != points.shape[:2]:
        raise InputError(
            f"valid must be bool {list(points.shape[:2])}, one for each point, got "
            f"{valid.dtype} {list(valid.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != points.shape[:1]:
        raise InputError(
            f"keys must be int64 {list(points.shape[:1])}, one for each neuron, got "
            f"{keys.dtype} {list(keys.shape)}; make them with stream_key"
        )
    if null_samples < 2 or restarts < 1 or k_max < 1:
        raise InputError(
            "null_samples must be at least 2, restarts and k_max at least 1, got "
            f"{null_samples}, {restarts} and {k_max}"
        )
