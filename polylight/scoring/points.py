"""What the scores share: checks, and sums and cosines of points."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from polylight.errors import InputError

Numbers = npt.NDArray[Any] | Tensor
"""An array of NumPy or a tensor."""


def as_tensor(values: Numbers | float, name: str) -> Tensor:
    """Take numbers of NumPy, of torch or of Python, without their gradients.

    Args:
        values: The numbers; those of NumPy share their memory with what is returned.
        name: What they are, for the message.

    Returns:
        A tensor of the same type, on its device, that autograd does not know.

    Raises:
        InputError: If they are no numbers.
    """
    if isinstance(values, Tensor):
        return values.detach()
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name} have to be numbers of NumPy or torch, got {array.dtype}")
    # torch knows no other byte order, no negative strides, and warns of what it must not write to.
    if not array.dtype.isnative or not array.flags.writeable or min(array.strides, default=1) < 0:
        array = array.astype(array.dtype.newbyteorder("="), copy=True)
    return torch.from_numpy(array)


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


def check_finite(values: Tensor, valid: Tensor, name: str) -> None:
    """Raise where values [U, N, ...] of valid images are not finite."""
    finite = values.isfinite().reshape(*valid.shape, -1).all(-1)
    if bool((valid & ~finite).any()):
        raise InputError(
            f"{name} of {int((valid & ~finite).sum())} of {int(valid.sum())} images are NaN or "
            "infinite; leave those images out"
        )
