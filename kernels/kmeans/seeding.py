"""Where k-means starts: greedy k-means++ in torch, for all neurons and starts at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from polylight.kernels.kmeans.reference import EQUAL, TRIALS
from polylight.kernels.philox.torch import philox_uniform


def kmeans_draws(keys: Tensor, k_max: int, restarts: int) -> Tensor:
    """Draw the numbers that :func:`kmeans_plusplus` uses up.

    Args:
        keys: int64 [U], random stream of each neuron.
        k_max: Points to choose, > 0.
        restarts: Independent choices, > 0.

    Returns:
        float32 [U, restarts, 1 + (k_max - 1) TRIALS], uniform in (0, 1).
    """
    width = 1 + (k_max - 1) * TRIALS
    counter = torch.arange(restarts, device=keys.device).repeat(keys.shape[0])
    uniform = philox_uniform(keys.repeat_interleave(restarts), counter, width)
    return uniform.view(keys.shape[0], restarts, width)


def kmeans_plusplus(
    distance_to: Callable[[Tensor], Tensor], counts: Tensor, uniform: Tensor
) -> Tensor:
    """Choose starting points; see :func:`polylight.kernels.kmeans.reference.choose_seeds`.

    Args:
        distance_to: Maps int64 [U, M], indices of points, to float64 [U, M, N], their squared
            distances to all points, 0 for points that are not valid.
        counts: int64 [U], number of valid points, which come first.
        uniform: float32 [U, R, 1 + (k_max - 1) TRIALS], from :func:`kmeans_draws`.

    Returns:
        int64 [U, R, k_max], indices of points; an index repeats only where fewer distinct points
        exist.
    """
    num, restarts, width = uniform.shape
    uniform = uniform.double()
    pick = (uniform[..., 0] * counts[:, None]).long()  # [U, R]
    picks, nearest = [pick], distance_to(pick)
    for draws in uniform[..., 1:].reshape(num, restarts, width // TRIALS, TRIALS).unbind(2):
        cumulative = nearest.cumsum(-1)
        candidates = torch.searchsorted(cumulative, draws * cumulative[..., -1:])  # [U, R, T]
        # Only a NaN can point past the end.
        candidates = candidates.clamp_max(nearest.shape[-1] - 1)
        reach = distance_to(candidates.flatten(1)).view(*candidates.shape, nearest.shape[-1])
        reach = torch.minimum(reach, nearest[:, :, None])  # [U, R, T, N]
        left = reach.sum(-1)  # [U, R, T]
        good = left <= left.amin(-1, keepdim=True) + EQUAL * cumulative[..., -1:]
        best = good.byte().argmax(-1, keepdim=True)  # [U, R, 1], the first
        picks.append(candidates.gather(-1, best).squeeze(-1))
        nearest = reach.take_along_dim(best[..., None], dim=2).squeeze(2)
    return torch.stack(picks, dim=-1)
