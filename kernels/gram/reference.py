"""Centred Gram matrices in plain torch, the points in an order of their own."""

import torch
from torch import Tensor

# Points closer than this part of their squared norm differ by float32 rounding alone.
SAME = 1e-12


def centre(embeddings: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Centre each neuron's valid points and put them first, the farthest first.

    The order by distance makes the seeds, and so the clusters, independent of the order in which
    the images came. Centring changes no distance and spares the Gram matrix the cancellation.

    Args:
        embeddings: float [U, N, D]; those that are not valid are not read.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U, N, D], centred, the points that are not valid last and 0; int64 [U, N], which
        image each point is.
    """
    points = embeddings.double().masked_fill(~valid[..., None], 0.0)
    raw = points.square().sum((1, 2))
    mean = points.sum(1) / valid.sum(1, keepdim=True).clamp_min(1)
    points = (points - mean[:, None]).masked_fill_(~valid[..., None], 0.0)
    norms = points.square().sum(-1)
    points.masked_fill_((norms.sum(-1) <= SAME * raw)[:, None, None], 0.0)
    order = norms.masked_fill(~valid, -1.0).argsort(dim=1, descending=True, stable=True)
    return points.take_along_dim(order[..., None], 1), order


def centred_gram(embeddings: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Work out the inner products of each neuron's centred points; see :func:`centre`.

    Args:
        embeddings: float [U, N, D]; those that are not valid are not read.
        valid: bool [U, N], which images count.

    Returns:
        float64 [U, N, N], 0 for points that are not valid, which come last; int64 [U, N], which
        image each point is.
    """
    points, order = centre(embeddings, valid)
    return torch.bmm(points, points.mT), order
