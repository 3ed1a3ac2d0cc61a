"""How unlike images look: LPIPS, for the elbow of Alic et al. (2025)."""

import logging
from typing import Any

import torch
from torch import Tensor, nn

from polylight.errors import InputError

SMALLEST = 31
"""Side in pixels of the smallest images that AlexNet takes."""

_logger = logging.getLogger(__name__)
_EPSILON = 1e-8


class Lpips(nn.Module):
    """Learned perceptual image patch similarity (Zhang et al. 2018), in two halves.

    An image's features are worked out once, however many images it is compared with. Distances
    are those of :func:`torchmetrics.functional.image.learned_perceptual_image_patch_similarity`.

    Args:
        net: The network in ``LearnedPerceptualImagePatchSimilarity`` of torchmetrics.
    """

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.backbone: nn.Module = net.net
        self.scaling: nn.Module = net.scaling_layer
        self.weights = nn.ModuleList(net.lins)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def features(self, images: Tensor) -> list[Tensor]:
        """Look at images.

        Args:
            images: float32 [B, 3, H, W] in [0, 1].

        Returns:
            Of each layer, float32 [B, C, H, W], of length 1 at each place.
        """
        maps = self.backbone(self.scaling(2 * images - 1))
        return [x / (x.square().sum(1, keepdim=True) + _EPSILON).sqrt() for x in maps]

    @torch.no_grad()
    def distances(self, one: list[Tensor], others: list[Tensor]) -> Tensor:
        """Compare an image with others.

        Args:
            one: Features of the image, [1, C, H, W] of each layer.
            others: Those of the others, [M, C, H, W].

        Returns:
            float32 [M], >= 0; the larger, the less alike.
        """
        by_layer = [
            weigh((a - b).square()).mean((1, 2, 3))
            for weigh, a, b in zip(self.weights, one, others, strict=True)
        ]
        return torch.stack(by_layer).sum(0)


class MeanDistance:
    """Mean LPIPS over the pairs of images so far: only pairs with a new image are worked out.

    Args:
        lpips: Compares images.
    """

    def __init__(self, lpips: Lpips) -> None:
        self._lpips = lpips
        self._features: list[Tensor] = []
        self._total: Tensor | None = None
        self._count = 0

    def add(self, images: Tensor, count: int) -> Tensor:
        """Add images.

        Args:
            images: float32 [B, 3, H, W] in [0, 1].
            count: How many of them are added, the first ones.

        Returns:
            The mean over all pairs, float32 []; 0 where there is none.
        """
        features = self._lpips.features(images)
        total = images.new_zeros(()) if self._total is None else self._total
        for i in range(count):
            new = [layer[i : i + 1] for layer in features]
            if self._features:
                total = total + self._lpips.distances(new, self._features).sum()
                new = [torch.cat(both) for both in zip(self._features, new, strict=True)]
            self._features = new
        self._total, self._count = total, self._count + count
        return total / max(self._count * (self._count - 1) // 2, 1)


def load_lpips(size: int) -> Lpips | None:
    """Load LPIPS by AlexNet; its backbone is downloaded once, as torchvision's networks are.

    Args:
        size: Side in pixels of the images that it will compare.

    Returns:
        LPIPS on the CPU; None, with a warning, where the backbone cannot be had.

    Raises:
        InputError: If the images are too small for AlexNet.
    """
    if size < SMALLEST:
        raise InputError(
            f"LPIPS compares images of at least {SMALLEST} pixels, not of {size}; take a larger "
            "image_size, or elbow 'cosine'."
        )
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    try:
        return Lpips(LearnedPerceptualImagePatchSimilarity(net_type="alex").net)
    # A download fails as the first, a damaged file as the second.
    except (OSError, RuntimeError) as error:
        _logger.warning(
            "the elbow is that of cosine similarities: LPIPS needs the weights of torchvision's "
            "alexnet, which cannot be had (%s)",
            error,
        )
        return None
