"""From embeddings to centred Gram matrices, the points in an order of their own."""

import torch
from torch import Tensor

# Points closer than this part of their squared norm differ by float32 rounding alone.
SAME = 1e-12


def centre(embeddings: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Centre each neuron's voting points and put them first, the farthest first.

    The order by distance makes the seeds, and so the clusters, independent of the order in which
    the images came. Centring changes no distance and spares the Gram matrix the cancellation.

    Args:
        embeddings: float [U, N, D]; those without a vote are not looked at.
        votes: bool [U, N].

    Returns:
        float64 [U, N, D], centred, the points without a vote last and 0; int64 [U, N], which
        image each point is.
    """
    points = embeddings.double().masked_fill(~votes[..., None], 0.0)
    raw = points.square().sum((1, 2))
    mean = points.sum(1) / votes.sum(1, keepdim=True).clamp_min(1)
    points = (points - mean[:, None]).masked_fill_(~votes[..., None], 0.0)
    norms = points.square().sum(-1)
    points.masked_fill_((norms.sum(-1) <= SAME * raw)[:, None, None], 0.0)
    order = norms.masked_fill(~votes, -1.0).argsort(dim=1, descending=True, stable=True)
    return points.take_along_dim(order[..., None], 1), order


def centred_gram(embeddings: Tensor, votes: Tensor) -> tuple[Tensor, Tensor]:
    """Work out the inner products of each neuron's centred points; see :func:`centre`.

    Args:
        embeddings: float [U, N, D]; those without a vote are not looked at.
        votes: bool [U, N].

    Returns:
        float64 [U, N, N], 0 for points without a vote, which come last; int64 [U, N], which image
        each point is.
    """
    points, order = centre(embeddings, votes)
    return torch.bmm(points, points.mT), order
