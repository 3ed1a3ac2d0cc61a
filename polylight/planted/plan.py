"""What a validation scores: the planted neurons of each layer of each subject, and repeats."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.embedding.embedder import on_grey
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.networks import Layer, Model, list_layers
from polylight.networks.subject import Subject
from polylight.planted.neurons import (
    PlantedNeuron,
    Sizes,
    Split,
    allowed_channels,
    plant_neurons,
)

_TEXTURES = 256
# Of a texture's spectrum: enough contrast to move every layer, hardly any pixel at its limit.
_CONTRAST = 1.0
# Correlation over the textures from which two channels do nearly the same.
_NEAR_DUPLICATES = 0.9


@dataclass(frozen=True, kw_only=True)
class SubjectPlan:
    """A network whose neurons are planted, and the networks that embed their images.

    Attributes:
        subject: Its name, as in ``polylight fit``.
        embedder: The network that embeds the images.
        layers: Layers whose channels are used; where they are classes, composites are of logits.
        subject_weights: ``pretrained``, ``random``, or the path of a checkpoint.
        embedder_weights: Likewise.
        subject_options: Keyword arguments of the subject's constructor; null for none.
        embedder_options: Likewise.
        second_embedder: Another network that embeds the same images, to see whether the scores
            agree; null for none.
        second_weights: Its weights, likewise.
    """

    subject: str
    embedder: str
    layers: list[str]
    subject_weights: str = "pretrained"
    embedder_weights: str = "pretrained"
    subject_options: dict[str, Any] | None = None
    embedder_options: dict[str, Any] | None = None
    second_embedder: str | None = None
    second_weights: str = "pretrained"


@dataclass(frozen=True, kw_only=True)
class Repeats:
    """What is scored again to see whether it comes out the same.

    Attributes:
        seeds: Seeds that the single channels are scored with, the first included, >= 1.
        calibration_neurons: Planted neurons of each layer whose intervals are checked.
        calibration_seeds: Seeds that these are scored with; 0 for no check, else >= 3.
    """

    seeds: int = 2
    calibration_neurons: int = 2
    calibration_seeds: int = 0

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.calibration_neurons < 0:
            raise InputError(
                "seeds has to be at least 1 and calibration_neurons at least 0, not "
                f"{self.seeds} and {self.calibration_neurons}."
            )
        if self.calibration_seeds < 0 or 0 < self.calibration_seeds < 3:
            raise InputError(
                "calibration_seeds has to be 0 for no check or at least 3, not "
                f"{self.calibration_seeds}."
            )


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The planted neurons of a layer.

    Attributes:
        layer: Its name.
        planted: The neurons.
        similarity: By neuron text, the correlation of the two components of a chosen pair.
        classes: Whether its channels are classes.
    """

    layer: str
    planted: Sequence[PlantedNeuron]
    similarity: Mapping[str, float]
    classes: bool


def plan_layers(
    model: Model,
    layers: Sequence[str],
    parametrization: Parametrization,
    canvas: int,
    sizes: Sizes,
    seed: int,
    split: Split,
    screened: Mapping[str, bool] | None = None,
) -> list[LayerPlan]:
    """Plant the neurons of some layers.

    Args:
        model: The subject.
        layers: Names of its layers.
        parametrization: What images are made from.
        canvas: Side that the subject sees images at, in pixels.
        sizes: How many neurons of each kind.
        seed: Of the random choice.
        split: Which channels are used.
        screened: By channel as text, whether photos show it to be among the more monosemantic half
            of its layer; None without photos.

    Returns:
        A plan for each layer.

    Raises:
        InputError: If a layer does not exist, or has too few channels.
    """
    taps = Subject(model, layers, canvas)
    known = {layer.name: layer for layer in list_layers(model, canvas)}
    for name in taps.layers:
        if name not in known:
            raise InputError(f"layer '{name}' only hands on what another layer returns; name that.")
    textures = _texture_activations(taps, parametrization, canvas)
    return [
        _plan_layer(known[name], activations, sizes, seed, split, screened)
        for name, activations in zip(taps.layers, textures, strict=True)
    ]


def _plan_layer(
    layer: Layer,
    activations: Tensor,
    sizes: Sizes,
    seed: int,
    split: Split,
    screened: Mapping[str, bool] | None,
) -> LayerPlan:
    if not activations.isfinite().all():
        raise InputError(
            f"layer '{layer.name}' has channels that are not finite; take another layer."
        )
    # A channel that no texture moves is dead, or nearly so.
    std = activations.std(0)
    constant = (std <= 1e-6 * std.max()).nonzero().flatten().tolist()
    channels = allowed_channels(layer.channels, exclude=constant, split=split)
    pairs = sizes.near_duplicates + sizes.dissimilar
    if len(channels) < sizes.singles + 2 * pairs:
        raise InputError(
            f"layer '{layer.name}' has {layer.channels} channels, of which {len(channels)} can be "
            f"used (split: {split}; {len(constant)} never move), but {sizes.singles} singles and "
            f"{pairs} pairs need {sizes.singles + 2 * pairs}; ask for fewer or take a wider layer."
        )
    similar, dissimilar = similar_and_dissimilar(
        activations, sizes.near_duplicates, sizes.dissimilar, channels=channels
    )
    near_duplicates = [pair for pair in similar if pair.correlation >= _NEAR_DUPLICATES]
    composites = [*dissimilar, *(pair for pair in similar if pair not in near_duplicates)]
    classes = layer.kind == "Linear" and not layer.size
    of_one_feature: Collection[int] | None = channels if classes else None
    if screened and not classes:
        of_one_feature = [c for c in channels if screened.get(f"{layer.name}:{c}")]
    planted = plant_neurons(
        layer.name,
        layer.channels,
        sizes,
        seed=seed,
        near_duplicates=[pair[:2] for pair in near_duplicates],
        dissimilar=[pair[:2] for pair in composites],
        screened=of_one_feature,
        exclude=constant,
        split=split,
        kind="logits" if classes else "max",
    )
    correlation: dict[tuple[int, ...], float] = {
        pair[:2]: pair.correlation for pair in (*similar, *dissimilar)
    }
    similarity = {
        str(p.neuron): correlation[p.channels] for p in planted if p.channels in correlation
    }
    return LayerPlan(layer=layer.name, planted=planted, similarity=similarity, classes=classes)


@torch.no_grad()
def _texture_activations(
    taps: Subject, parametrization: Parametrization, canvas: int
) -> list[Tensor]:
    """Show a subject random textures: pooled activations [images, C] of each layer.

    Textures have the spectrum of natural images and random colours, so no photos are needed.
    """
    keys = torch.tensor([stream_key("texture", i) for i in range(_TEXTURES)])
    latents = parametrization.initial_latents(keys) * (_CONTRAST / parametrization.sd)
    pooled: list[list[Tensor]] = [[] for _ in taps.layers]
    for batch in ImageDecoder(parametrization)(latents).split(16):
        for index, activation in taps(on_grey(batch, canvas)).items():
            # Before the rectifier: a channel that textures do not activate is not dead.
            pre = activation.pre
            pooled[index].append(pre.flatten(2).mean(2) if pre.ndim > 2 else pre)
    return [torch.cat(batches) for batches in pooled]


class ChannelPair(NamedTuple):
    """Two channels, the lower first, and the correlation of their activations, in [-1, 1]."""

    first: int
    second: int
    correlation: float


def channel_correlations(activations: Tensor) -> Tensor:
    """Correlate every channel with every other one over images (Pearson).

    Args:
        activations: float [images, C], pooled activations of a layer, at least 3 images.

    Returns:
        float64 [C, C] in [-1, 1]; NaN for a channel that is the same for all images.

    Raises:
        InputError: If the shape is another, or a value is not finite.
    """
    if activations.dim() != 2 or len(activations) < 3 or not activations.isfinite().all():
        raise InputError(
            "activations must be finite and [images, channels] with at least 3 images, got "
            f"{list(activations.shape)}"
        )
    centred = activations.double() - activations.double().mean(0)
    # A mean is rounded, so a constant channel may be off it by a few units in the last place.
    constant = (activations == activations[:1]).all(0)
    unit = (centred / centred.norm(dim=0)).masked_fill(constant, torch.nan)
    correlation: Tensor = (unit.mT @ unit).clamp(-1.0, 1.0)
    return correlation


def similar_and_dissimilar(
    activations: Tensor, similar: int, dissimilar: int, *, channels: Sequence[int] | None = None
) -> tuple[list[ChannelPair], list[ChannelPair]]:
    """Find the most and the least similar pairs of channels, no channel in two pairs.

    The max of two channels has to score higher the less similar they are.

    Args:
        activations: float [images, C], pooled activations of a layer.
        similar: Most similar pairs to find, >= 0.
        dissimilar: Least similar pairs to find, >= 0.
        channels: Which channels to look at; None for all.

    Returns:
        The most similar by falling correlation, and the least similar by rising correlation.

    Raises:
        InputError: If there are too few channels, or the activations are unfit.
    """
    taken: set[int] = set()
    most = _disjoint(_ranked(activations, channels, falling=True), similar, taken)
    return most, _disjoint(_ranked(activations, channels, falling=False), dissimilar, taken)


def _ranked(
    activations: Tensor, channels: Sequence[int] | None, *, falling: bool
) -> Iterator[ChannelPair]:
    """Go through all pairs by correlation, but for those of constant channels."""
    width = activations.shape[-1]
    chosen = list(range(width)) if channels is None else sorted(set(channels))
    if chosen and not 0 <= chosen[0] <= chosen[-1] < width:
        raise InputError(
            f"channels {chosen[0]} to {chosen[-1]} are asked for, but there are activations of "
            f"{width}: 0 to {width - 1}."
        )
    correlation = channel_correlations(activations[..., chosen]).cpu()
    first, second = torch.triu_indices(len(chosen), len(chosen), 1)
    values = correlation[first, second]
    defined = values.isfinite().nonzero().flatten()
    order = defined[values[defined].argsort(descending=falling, stable=True)]
    # A wide layer has millions of pairs, of which few are looked at: no list of them is made.
    columns = (first[order].numpy(), second[order].numpy(), values[order].numpy())
    for a, b, value in zip(*columns, strict=True):
        yield ChannelPair(chosen[a], chosen[b], float(value))


def _disjoint(ranked: Iterator[ChannelPair], count: int, taken: set[int]) -> list[ChannelPair]:
    """Take the first pairs that share no channel; ``taken`` is added to."""
    pairs: list[ChannelPair] = []
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
