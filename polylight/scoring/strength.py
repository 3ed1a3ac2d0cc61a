"""How strongly an image drives its neuron, and which images are valid."""

import torch
from torch import Tensor

from polylight.errors import InputError
from polylight.kernels import needs_float64


@needs_float64
def relative_strength(activations: Tensor, valid: Tensor, baseline: Tensor | None = None) -> Tensor:
    r"""Gain of each image over the baseline, relative to the best gain of its neuron.

    .. math:: w_i = \max(0, a_i - b) / \max_j (a_j - b)

    What is ascended need not be positive: a neuron that is suppressed, or a pre-activation, may
    have its best image below 0, and ``activation / best`` then ranks backwards. The gain over the
    neuron's own start is positive whenever the ascent achieved something.

    Args:
        activations: float [U, N], objective of each image, in the neuron's own unit.
        valid: bool [U, N], images among which the best is looked for; the others get 0.
        baseline: float [U], objective of random start images, same unit; 0 if None.

    Returns:
        float64 [U, N] in [0, 1]; all 0 where no image gains anything; NaN for a neuron of which
        a valid activation is NaN.

    Raises:
        InputError: The shapes do not fit.
    """
    if activations.dim() != 2 or valid.shape != activations.shape or valid.dtype != torch.bool:
        raise InputError(
            "activations must be [neurons, images] with bool valid of the same shape, got "
            f"{list(activations.shape)} and {valid.dtype} {list(valid.shape)}"
        )
    gain = _gain(activations, valid, baseline)
    best = gain.amax(1, keepdim=True)
    return torch.where(best == 0, 0.0, gain / best)


@needs_float64
def strength_gate(
    activations: Tensor, finished: Tensor, baseline: Tensor | None = None, threshold: float = 0.5
) -> Tensor:
    """Find the images that drive their neuron about as much as its other images do.

    An image whose gain over the baseline is below ``threshold`` times the median gain did not find
    a feature of the neuron and says nothing about its features. The median is that of the images
    that gained anything: however many images failed, the rest is held against the rest. The best
    gain would be no measure, as one image that is driven unusually far would silence all others,
    and the more images there are the likelier is one.

    Args:
        activations: float [U, N], objective of each image, in the neuron's own unit.
        finished: bool [U, N], images that exist.
        baseline: float [U], objective of random start images, same unit; 0 if None, which is
            right where 0 means "not driven", as after a ReLU.
        threshold: Smallest gain of a valid image, relative to the median, in (0, 1].

    Returns:
        bool [U, N]; no image is valid where none gains anything, nor where an
        activation is not finite.

    Raises:
        InputError: The shapes do not fit or the threshold is out of range.
    """
    if not 0.0 < threshold <= 1.0:
        raise InputError(
            f"threshold must be in (0, 1], a share of the median gain, got {threshold}"
        )
    if activations.dim() != 2:
        raise InputError(f"activations must be [neurons, images], got {list(activations.shape)}")
    if finished.shape != activations.shape or finished.dtype != torch.bool:
        raise InputError(
            f"finished must be bool {list(activations.shape)}, one for each activation, got "
            f"{finished.dtype} {list(finished.shape)}"
        )
    gain = _gain(activations, finished & activations.isfinite(), baseline)
    usual = gain.masked_fill(gain == 0.0, torch.nan).nanquantile(0.5, dim=1, keepdim=True)
    return (gain > 0.0) & (gain >= threshold * usual)


def _gain(activations: Tensor, valid: Tensor, baseline: Tensor | None) -> Tensor:
    """float64 [U, N]: gain over the baseline, 0 where there is none or the image is invalid."""
    if baseline is not None and baseline.shape != activations.shape[:1]:
        raise InputError(
            f"baseline must be [{activations.shape[0]}], one for each neuron, got "
            f"{list(baseline.shape)}"
        )
    gain = activations.double()
    if baseline is not None:
        gain = gain - baseline.double()[:, None]
    return gain.masked_fill(~valid, 0.0).clamp_min(0.0)
