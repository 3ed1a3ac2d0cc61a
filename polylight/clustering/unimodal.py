"""Is it one mode? A p-value for every neuron, by turning its points at random."""

import torch
from torch import Tensor

from polylight.clustering import gram
from polylight.errors import InputError
from polylight.kernels.centred_gram import centre
from polylight.kernels.choice import Chosen, Kernels, resolve_kernels
from polylight.kernels.philox import philox_uniform

# Fewer points are not cut into two clusters of two.
LEAST_POINTS = 4
_ITERATIONS = 16
# Numbers held per chunk of neurons: what stays near a CPU core, and half a GiB on a GPU.
_CHUNK = {"cpu": 2**20, "cuda": 2**26}
# Lengths that differ by less are equal.
_EQUAL = 1e-3
# Above the counters from which the starts of k-means are drawn.
_FIRST_DRAW = 1 << 32


def one_mode_p_value(
    points: Tensor,
    votes: Tensor,
    keys: Tensor,
    draws: int = 200,
    restarts: int = 4,
    kernels: Kernels = "auto",
) -> Tensor:
    r"""Test whether two means explain a neuron's points better than they would one Gaussian's.

    The statistic is SigClust's cluster index (Liu, Hayes, Nobel & Marron 2008), small where two
    means leave little of the inertia:

    .. math:: CI = W_2 / W_1, \qquad p = \frac{1 + \#\{b : CI_b \le CI\}}{B + 1}

    The null is a Gaussian of unknown mean and covariance. With the centred points
    :math:`X = U S V^T`, a draw replaces U by a uniformly random orthonormal frame that is
    orthogonal to the mean, so it has the very spectrum of X; that is how Gaussian points are
    distributed given their covariance (rotation test; Langsrud 2005). The test is therefore exact
    for every Gaussian, round or elongated, however few points there are; a spectrum that is
    estimated and drawn from anew is too spread out where points are few, and hides modes.

    Points of equal length, as of normalised embeddings, lie on a sphere and are no Gaussian. They
    are turned in the plane that touches the sphere at their mean direction, and wrapped around it
    again. That is approximate: it holds for round clouds, however wide, and is too small a p for
    long ones whose ends the sphere bends together.

    Args:
        points: float [U, N, D]; those without a vote are not looked at.
        votes: bool [U, N], which points count.
        keys: int64 [U], random stream of each neuron
            (:func:`polylight.kernels.philox.stream_key`).
        draws: Null draws of each neuron, B > 0; the smallest p is 1 / (B + 1).
        restarts: Starts of 2-means, > 0.
        kernels: Which implementation of 2-means runs
            (:func:`polylight.kernels.choice.resolve_kernels`).

    Returns:
        float64 [U], in (0, 1]; 1 where all points are the same; NaN for fewer than four votes and
        where a point with a vote is not finite.

    Raises:
        InputError: A shape, type or number is wrong.
    """
    _check(points, votes, keys, draws, restarts)
    chosen = resolve_kernels(kernels, points.device)
    counts = votes.sum(-1)
    # Points that no neuron of the batch has would be drawn and turned for nothing.
    images = max(LEAST_POINTS, int(counts.amax()) if len(counts) else 0)
    axes = min(points.shape[-1], images - 1)
    budget = _CHUNK.get(points.device.type, _CHUNK["cpu"])
    at_once = max(1, min(draws, budget // (images * (images + 4 * axes))))
    chunk = max(1, budget // (draws * images * (images + 4 * axes)))
    parts = [torch.empty(0, dtype=torch.float64, device=points.device)]
    for start in range(0, len(points), chunk):
        rows = slice(start, start + chunk)
        batch = points[rows], votes[rows], keys[rows]
        parts.append(_p_value(*batch, images, axes, draws, at_once, restarts, chosen))
    return torch.cat(parts)


def _p_value(
    points: Tensor,
    votes: Tensor,
    keys: Tensor,
    images: int,
    axes: int,
    draws: int,
    at_once: int,
    restarts: int,
    kernels: Chosen,
) -> Tensor:
    """P-values float64 [U] of neurons with at most ``images`` votes that span ``axes``."""
    counts = votes.sum(-1)
    points = points.double().masked_fill(~votes[..., None], 0.0)
    finite = points.isfinite().all(2).all(1)
    points = torch.where(finite[:, None, None], points, 0.0)
    flat, is_level = flatten(points, votes)
    flat, _ = centre(flat, votes)
    flat = torch.nn.functional.pad(flat, (0, 0, 0, max(0, images - flat.shape[1])))[:, :images]
    lengths = axis_lengths(flat, counts, axes)
    present = torch.arange(images, device=points.device) < counts[:, None]

    def index_of(points: Tensor, votes: Tensor, keys: Tensor) -> Tensor:
        _, inertia, _ = gram.solve(points, votes, keys, 2, restarts, _ITERATIONS, kernels)
        # Where all points are the same, one mean leaves as little as two.
        return torch.where(inertia[:, 0] > 0.0, inertia[:, 1] / inertia[:, 0], 1.0)

    observed = index_of(points, votes, keys)
    smaller = torch.zeros_like(counts)
    for first in range(0, draws, at_once):
        block = torch.arange(first, min(first + at_once, draws), device=points.device)
        null = wrap(turn(lengths, counts, keys, images, block), is_level).flatten(0, 1)
        times = len(block)
        drawn = index_of(null, present.repeat_interleave(times, 0), keys.repeat_interleave(times))
        smaller += (drawn.view(-1, times) <= observed[:, None]).sum(-1)
    p_value = (1 + smaller).double() / (draws + 1)
    return p_value.masked_fill((counts < LEAST_POINTS) | ~finite, torch.nan)


def flatten(points: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Lay points of equal length out in the plane that touches their sphere.

    A point at the angle a from the mean direction comes to lie at the distance a from the
    origin, on its own side (logarithmic map of the unit sphere).

    Args:
        points: float64 [U, N, D], finite; 0 without a vote.
        votes: bool [U, N].

    Returns:
        float64 [U, N, D], in radians where the points are of equal length, else as they were;
        bool [U], where they are.
    """
    length = points.norm(dim=-1, keepdim=True)
    longest = length.amax((1, 2))
    shortest = length.masked_fill(~votes[..., None], torch.inf).amin((1, 2))
    is_level = longest - shortest <= _EQUAL * longest
    unit = torch.nn.functional.normalize(points, dim=-1)
    pole = torch.nn.functional.normalize(unit.sum(1, keepdim=True), dim=-1)
    height = (unit * pole).sum(-1, keepdim=True)
    aside = unit - height * pole
    angle = torch.atan2(aside.norm(dim=-1, keepdim=True), height)
    laid = torch.nn.functional.normalize(aside, dim=-1) * angle
    return torch.where(is_level[:, None, None], laid, points), is_level


def wrap(points: Tensor, is_level: Tensor) -> Tensor:
    """Wrap what :func:`flatten` laid out around the sphere again (exponential map).

    Args:
        points: float64 [U, draws, N, axes], coordinates in the plane, in radians.
        is_level: bool [U], which neurons' points lie on a sphere; the others stay as they are.

    Returns:
        float64 [U, draws, N, axes + 1]; the last coordinate is the height over the plane, <= 0.
    """
    angle = points.norm(dim=-1, keepdim=True)
    is_level = is_level[:, None, None, None]
    # cos a - 1, without its cancellation.
    height = -2.0 * torch.sin(0.5 * angle).square()
    shrink = torch.where(is_level, torch.sinc(angle / torch.pi), 1.0)
    return torch.cat([points * shrink, torch.where(is_level, height, 0.0)], -1)


def axis_lengths(points: Tensor, counts: Tensor, axes: int) -> Tensor:
    """Work out how far each neuron's points extend along their principal axes.

    Args:
        points: float64 [U, N, D], centred, those with a vote first, the others 0; finite.
        counts: int64 [U], how many have a vote.
        axes: How many lengths are wanted, at most min(D, N).

    Returns:
        float64 [U, axes], singular values, the largest first.
    """
    square = points.mT @ points if points.shape[2] <= points.shape[1] else points @ points.mT
    squares: Tensor = torch.linalg.eigvalsh(square).flip(-1)[:, :axes]
    # n points span n - 1 dimensions; what is found beyond them is rounding.
    spanned = torch.arange(axes, device=points.device) < counts[:, None] - 1
    return squares.clamp_min(0.0).sqrt().masked_fill(~spanned, 0.0)


def turn(lengths: Tensor, counts: Tensor, keys: Tensor, images: int, draws: Tensor) -> Tensor:
    """Turn each neuron's points at random among all that have their mean and covariance.

    Args:
        lengths: float64 [U, axes], from :func:`axis_lengths`, axes < N.
        counts: int64 [U], how many points have a vote.
        keys: int64 [U], random stream of each neuron.
        images: Number of points N, those without a vote included.
        draws: int64 [B], which turns, >= 0.

    Returns:
        float64 [U, B, N, axes], coordinates along the principal axes; 0 without a vote.
    """
    present = (torch.arange(images, device=keys.device) < counts[:, None])[:, None, :, None]
    frame = _normal(keys, draws, images, lengths.shape[1]) * present
    mean = frame.sum(2, keepdim=True) / counts.clamp_min(1)[:, None, None, None]
    frame = (frame - mean).mul_(present)
    # Signs of the columns, which a factorisation is free to choose, do not change their products.
    basis: Tensor = torch.linalg.qr(frame).Q
    turned: Tensor = basis * lengths[:, None, None] * present
    return turned


def _normal(keys: Tensor, draws: Tensor, images: int, axes: int) -> Tensor:
    """Standard normal numbers float64 [U, B, N, axes] of the draws int64 [B].

    A point and axis get the same number whatever the number of points and axes is.
    """
    counter = (
        (draws[:, None] + 1) * _FIRST_DRAW + torch.arange(images, device=keys.device)
    ).flatten()
    pairs = -(-axes // 2)
    uniform = philox_uniform(
        keys.repeat_interleave(len(counter)), counter.repeat(len(keys)), 2 * pairs
    )
    u, v = uniform.view(-1, pairs, 2).unbind(-1)
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), (2.0 * torch.pi) * v
    normal = torch.stack([radius * torch.cos(angle), radius * torch.sin(angle)], -1)
    return normal.view(len(keys), len(draws), images, 2 * pairs)[..., :axes].double()


def _check(points: Tensor, votes: Tensor, keys: Tensor, draws: int, restarts: int) -> None:
    if points.dim() != 3 or 0 in points.shape[1:] or not points.is_floating_point():
        raise InputError(
            "points must be floating-point [neurons, images >= 1, dimensions >= 1], got "
            f"{points.dtype} {list(points.shape)}; a single neuron is a batch of one: points[None]"
        )
    if votes.dtype != torch.bool or votes.shape != points.shape[:2]:
        raise InputError(
            f"votes must be bool {list(points.shape[:2])}, one for each point, got "
            f"{votes.dtype} {list(votes.shape)}"
        )
    if keys.dtype != torch.int64 or keys.shape != points.shape[:1]:
        raise InputError(
            f"keys must be int64 {list(points.shape[:1])}, one for each neuron, got "
            f"{keys.dtype} {list(keys.shape)}; make them with stream_key"
        )
    if draws < 1 or restarts < 1:
        raise InputError(f"draws and restarts must be at least 1, got {draws} and {restarts}")
