"""Unimodal clouds with a given spectrum: a neuron's points, rotated at random."""

import torch
from torch import Tensor

from polylight.kernels import philox_uniform

# Lengths that differ by less are equal.
_EQUAL = 1e-3
# Above the counters from which the starts of k-means are drawn.
_FIRST_DRAW = 1 << 32


def flatten(points: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Lay points of equal length out in the plane that touches their sphere.

    A point at the angle a from the mean direction comes to lie at the distance a from the
    origin, on its own side (logarithmic map of the unit sphere).

    Args:
        points: float64 [U, N, D], finite; 0 where invalid.
        valid: bool [U, N].

    Returns:
        float64 [U, N, D], in radians where the points are of equal length, else as they were;
        bool [U], where they are.
    """
    length = points.norm(dim=-1, keepdim=True)
    longest = length.amax((1, 2))
    shortest = length.masked_fill(~valid[..., None], torch.inf).amin((1, 2))
    is_level = longest - shortest <= _EQUAL * longest
    unit = torch.nn.functional.normalize(points, dim=-1)
    pole = torch.nn.functional.normalize(unit.sum(1, keepdim=True), dim=-1)
    height = (unit * pole).sum(-1, keepdim=True)
    aside = unit - height * pole
    # torch.atan2 rounds the last elements of a tensor unlike the others.
    angle = 2.0 * torch.atan(aside.norm(dim=-1, keepdim=True) / (1.0 + height).clamp_min(1e-300))
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
        points: float64 [U, N, D], centred, valid ones first, the others 0; finite.
        counts: int64 [U], how many are valid.
        axes: How many lengths are wanted, at most min(D, N).

    Returns:
        float64 [U, axes], singular values, the largest first.
    """
    across = points.mT if points.shape[2] <= points.shape[1] else points
    # One at a time: a product of a batch adds up in an order that depends on the batch.
    square = torch.stack([one @ one.mT for one in across]) if len(points) else across @ across.mT
    squares: Tensor = torch.linalg.eigvalsh(square).flip(-1)[:, :axes]
    # n points span n - 1 dimensions; what is found beyond them is rounding.
    spanned = torch.arange(axes, device=points.device) < counts[:, None] - 1
    return squares.clamp_min(0.0).sqrt().masked_fill(~spanned, 0.0)


def turn(lengths: Tensor, counts: Tensor, keys: Tensor, images: int, draws: Tensor) -> Tensor:
    """Turn each neuron's points at random among all that have their mean and covariance.

    Args:
        lengths: float64 [U, axes], from :func:`axis_lengths`, axes < N.
        counts: int64 [U], how many points are valid.
        keys: int64 [U], random stream of each neuron.
        images: Number of points N, invalid ones included.
        draws: int64 [B], which turns, >= 0.

    Returns:
        float64 [U, B, N, axes], coordinates along the principal axes; 0 where invalid.
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
