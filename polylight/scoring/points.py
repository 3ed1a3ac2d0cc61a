"""What the scores share: checks, and sums and cosines of points."""

import torch
from torch import Tensor

from polylight.errors import InputError


def cluster_sums(values: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sum values [U, N, D] over clusters: float64 [U, K, D], and cluster sizes [U, K]."""
    member = labels[:, None] == torch.arange(k, device=labels.device)[:, None]
    member = member.to(values.dtype)
    return member @ values, member.sum(-1)


def cosines(vectors: Tensor) -> Tensor:
    """Cosines of vectors [U, K, D]: float64 [U, K, K], exactly 1 on the diagonal."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    cosine = unit @ unit.mT
    # A vector of norm 0 has no direction, but it is like itself.
    eye = torch.eye(vectors.shape[1], dtype=torch.bool, device=vectors.device)
    return torch.where(eye & ~cosine.isnan(), 1.0, cosine)


def coordinates(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Describe each neuron's points in a basis of what they span, so that few numbers do.

    Lengths and angles stay the same, up to the rounding of float64.

    Args:
        embeddings: float [U, N, D]; invalid ones are ignored.
        valid: bool [U, N].

    Returns:
        float64 [U, N, min(N, D)], 0 where invalid.
    """
    points = embeddings.double().masked_fill(~valid[..., None], 0.0)
    # X^T = Q R: the columns of R are the points in the basis Q.
    triangle: Tensor = torch.linalg.qr(points.mT, mode="r").R
    return triangle.mT


def unit_points(embeddings: Tensor, valid: Tensor) -> Tensor:
    """Unit embeddings float64 [U, N, D], 0 where invalid."""
    unit = torch.nn.functional.normalize(embeddings.double(), dim=-1)
    return unit.masked_fill(~valid[..., None], 0.0)


def check_images(embeddings: Tensor, valid: Tensor) -> None:
    """Raise where embeddings are not [U, N, D] or valid not bool [U, N]."""
    if embeddings.dim() != 3 or 0 in embeddings.shape[1:]:
        raise InputError(
            "embeddings must be [neurons, images >= 1, dimensions >= 1], got "
            f"{list(embeddings.shape)}; a single neuron is a batch of one: embeddings[None]"
        )
    if valid.dtype != torch.bool or valid.shape != embeddings.shape[:2]:
        raise InputError(
            f"valid must be bool {list(embeddings.shape[:2])}, one for each image, got "
            f"{valid.dtype} {list(valid.shape)}"
        )


def check_each(values: Tensor, valid: Tensor, name: str) -> None:
    """Raise where values are not one for each image."""
    if values.shape != valid.shape:
        raise InputError(
            f"{name} must be {list(valid.shape)}, one for each image, got {list(values.shape)}"
        )
