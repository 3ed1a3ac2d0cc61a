"""How alike the channels of a layer are: their correlation over reference images."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from polylight.errors import InputError


class Pair(NamedTuple):
    """Two channels and the correlation of what they do, in [-1, 1]."""

    first: int
    second: int
    correlation: float


def channel_correlations(features: Tensor) -> Tensor:
    """Correlate every channel with every other one over images (Pearson).

    Args:
        features: float [images, C], pooled activations of a layer, at least 3 images.

    Returns:
        float64 [C, C] in [-1, 1]; NaN for a channel that is the same for all images.

    Raises:
        InputError: If the shape is another, or a value is not finite.
    """
    if features.dim() != 2 or len(features) < 3 or not features.isfinite().all():
        raise InputError(
            "features must be finite and [images, channels] with at least 3 images, got "
            f"{list(features.shape)}"
        )
    centred = features.double() - features.double().mean(0)
    # A mean is rounded, so a constant channel may be off it by a few units in the last place.
    constant = (features == features[:1]).all(0)
    unit = (centred / centred.norm(dim=0)).masked_fill(constant, torch.nan)
    correlation: Tensor = (unit.mT @ unit).clamp(-1.0, 1.0)
    return correlation


def similar_and_dissimilar(
    features: Tensor, similar: int, dissimilar: int, *, channels: Sequence[int] | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Find pairs of channels that are most and least alike, no channel in two pairs.

    The max of two channels has to score higher the less alike they are.

    Args:
        features: float [images, C], pooled activations of reference images.
        similar: Pairs that are most alike, >= 0.
        dissimilar: Pairs that are least alike, >= 0.
        channels: Which channels to look at; None for all.

    Returns:
        The most alike by falling correlation, and the least alike by rising correlation.

    Raises:
        InputError: If there are too few channels, or the features are unfit.
    """
    taken: set[int] = set()
    alike = _disjoint(_ranked(features, channels, falling=True), similar, taken)
    return alike, _disjoint(_ranked(features, channels, falling=False), dissimilar, taken)


def _ranked(features: Tensor, channels: Sequence[int] | None, *, falling: bool) -> Iterator[Pair]:
    """Go through all pairs by correlation, but for those of constant channels."""
    chosen = list(range(features.shape[-1])) if channels is None else sorted(set(channels))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < features.shape[-1]:
        raise InputError(
            f"channels {chosen[0]} to {chosen[-1]} are asked for, but the features are of "
            f"{features.shape[-1]}: 0 to {features.shape[-1] - 1}."
        )
    correlation = channel_correlations(features[..., chosen]).cpu()
    first, second = torch.triu_indices(len(chosen), len(chosen), 1)
    values = correlation[first, second]
    defined = values.isfinite().nonzero().flatten()
    order = defined[values[defined].argsort(descending=falling, stable=True)]
    # A wide layer has millions of pairs, of which few are looked at: no list of them is made.
    columns = (first[order].numpy(), second[order].numpy(), values[order].numpy())
    for a, b, value in zip(*columns, strict=True):
        yield Pair(chosen[a], chosen[b], float(value))


def _disjoint(ranked: Iterator[Pair], count: int, taken: set[int]) -> list[Pair]:
    """Take the first pairs that share no channel; ``taken`` is added to."""
    pairs: list[Pair] = []
    for pair in ranked:
        if len(pairs) == count:
            break
        if pair.first not in taken and pair.second not in taken:
            pairs.append(pair)
            taken.update(pair[:2])
    if len(pairs) < count:
        raise InputError(
            f"{count} pairs of different channels that vary are asked for, but only {len(pairs)} "
            "are left; ask for fewer or take a wider layer."
        )
    return pairs
