"""Random jitter, scale and rotation: one affine map an image, one sampling pass."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from polylight.errors import InputError
from polylight.kernels import Backend, philox_uniform

_DRAWS = 6
# Side in pixels of the images that jitter is meant for, and of larger ones.
_FULL_SIZE = 128


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How an image is moved about before the subject sees it, at every step.

    The image is shifted, scaled, rotated and shifted again at random, as in Lucid; here these are
    one affine map, sampled once. What comes in from outside is grey. The subject sees a picture as
    large as the image, as the size that is given is the size that a network is shown.

    Attributes:
        jitter: Width of the random shift's play before scaling, pixels; the shift is uniform in
            ± jitter / 2.
        scale: Smallest and largest factor of the size, > 0.
        rotate: Largest angle either way, degrees.
        jitter_after: Like ``jitter``, after the rotation.
    """

    jitter: int = 16
    scale: tuple[float, float] = (0.9, 1.1)
    rotate: float = 5.0
    jitter_after: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise InputError(f"augment scale has to be 0 < smallest <= largest, not {self.scale}.")
        if min(self.jitter, self.jitter_after, self.rotate) < 0:
            raise InputError(f"augment settings cannot be negative: {self}.")

    def at(self, size: int) -> "Augmentation":
        """The same for images of a side: jitter shrinks with those that are smaller than 128 px."""
        part = min(size, _FULL_SIZE)
        return replace(
            self,
            jitter=self.jitter * part // _FULL_SIZE,
            jitter_after=self.jitter_after * part // _FULL_SIZE,
        )

    def maps(self, keys: Tensor, steps: Tensor, size: int, backend: Backend = "torch") -> Tensor:
        """Draw the affine maps of some steps.

        Args:
            keys: int64 [B], the random stream of each image.
            steps: int64 [B], the step of each image.
            size: Side of the image in pixels.
            backend: Which implementation of the kernels runs.

        Returns:
            float32 [B, 2, 3], from what is seen to the image, as ``affine_grid`` takes them
            (:func:`polylight.kernels.sample`).
        """
        u = 2.0 * philox_uniform(keys, steps, _DRAWS, backend=backend) - 1.0  # [B, 6] in (-1, 1)
        low, high = self.scale
        zoom = 0.5 * (low + high) + 0.5 * (high - low) * u[:, 0]
        angle = math.radians(self.rotate) * u[:, 1]
        before = self.jitter / size * u[:, 2:4]  # half the play, in units of half the image
        after = self.jitter_after / size * u[:, 4:6]
        return _compose(zoom, angle, before, after)


def identity(count: int, device: torch.device) -> Tensor:
    """The maps that move nothing: float32 [count, 2, 3]."""
    zero = torch.zeros(count, device=device)
    return _compose(zero + 1, zero, zero[:, None].expand(-1, 2), zero[:, None])


def _compose(zoom: Tensor, angle: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Image point = Rotate(angle) (seen point + after) / zoom + before."""
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    matrix = torch.stack([cos, -sin, sin, cos], dim=1).view(-1, 2, 2)
    shift = (matrix * after[:, None, :]).sum(2) + before
    return torch.cat([matrix, shift[:, :, None]], dim=2)
