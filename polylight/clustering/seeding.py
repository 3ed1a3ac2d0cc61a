"""Where k-means starts: k-means++ for all neurons and restarts at once."""

from collections.abc import Callable

import torch
from torch import Tensor

from polylight.kernels.philox import philox_uniform

TRIALS = 4


def seed(
    distance_to: Callable[[Tensor], Tensor],
    sizes: Tensor,
    keys: Tensor,
    k_max: int,
    restarts: int,
) -> Tensor:
    """Choose starting points by greedy k-means++.

    A point is drawn with probability proportional to its squared distance from the nearest point
    chosen so far (Arthur & Vassilvitskii 2007); of four such draws the one that lowers the
    inertia most is kept. The first K choices are a start for K clusters.

    Args:
        distance_to: Maps int64 [U, M], indices of points, to float64 [U, M, N], their squared
            distances to all points, 0 for points without a vote.
        sizes: int64 [U], number of voting points, which come first.
        keys: int64 [U], random stream of each neuron.
        k_max: Points to choose, > 0.
        restarts: Independent choices, > 0.

    Returns:
        int64 [U, restarts, k_max], indices of points; an index repeats only where fewer distinct
        points exist.
    """
    num, width = sizes.shape[0], 1 + (k_max - 1) * TRIALS
    counter = torch.arange(restarts, device=keys.device).repeat(num)
    uniform = philox_uniform(keys.repeat_interleave(restarts), counter, width).double()
    uniform = uniform.view(num, restarts, width)
    pick = (uniform[..., 0] * sizes[:, None]).long()  # [U, R]
    picks, nearest = [pick], distance_to(pick)
    for draws in uniform[..., 1:].reshape(num, restarts, k_max - 1, TRIALS).unbind(2):
        cumulative = nearest.cumsum(-1)
        candidates = torch.searchsorted(cumulative, draws * cumulative[..., -1:])  # [U, R, T]
        # Only a NaN can point past the end.
        candidates = candidates.clamp_max(nearest.shape[-1] - 1)
        reach = distance_to(candidates.flatten(1)).view(*candidates.shape, nearest.shape[-1])
        reach = torch.minimum(reach, nearest[:, :, None])  # [U, R, T, N]
        best = reach.sum(-1).argmin(-1, keepdim=True)  # [U, R, 1]
        picks.append(candidates.gather(-1, best).squeeze(-1))
        nearest = reach.take_along_dim(best[..., None], dim=2).squeeze(2)
    return torch.stack(picks, dim=-1)
