"""What a validation scores: the planted neurons of each layer of each subject."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.embedding.embedder import on_grey
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.networks import Layer, Model, list_layers
from polylight.networks.subject import Subject
from polylight.planted.planted import Planted, allowed_channels, draw_planted
from polylight.planted.similarity import Pair, similar_and_dissimilar

_TEXTURES = 256
# Of a texture's spectrum: enough contrast to move every layer, hardly any pixel at its limit.
_CONTRAST = 1.0
# Correlation over the textures from which two channels do nearly the same.
_TWINS = 0.9


@dataclass(frozen=True, kw_only=True)
class SubjectPlan:
    """A network whose neurons are planted, and what looks at their images.

    Attributes:
        subject: Its name, as in ``polylight fit``.
        embedder: The network that embeds the images.
        layers: Layers whose channels are used; where they are classes, composites are of logits.
        subject_weights: ``pretrained``, ``random``, or the path of a checkpoint.
        embedder_weights: Likewise.
        second_embedder: Another network that embeds the same images, to see whether the scores
            agree; null for none.
        second_weights: Its weights, likewise.
    """

    subject: str
    embedder: str
    layers: list[str]
    subject_weights: str = "pretrained"
    embedder_weights: str = "pretrained"
    second_embedder: str | None = None
    second_weights: str = "pretrained"


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How many neurons of each kind a layer gives.

    Attributes:
        singles: Channels, of which all but the pairs are made.
        composites: For each number of components, how many maxima of so many channels.
        screened: For each number of components, how many further maxima of so many channels that
            photos show to be among the more monosemantic half of their layer, or of classes. Every
            other single is then such a channel. Without photos there are none but of classes.
        minima: Minima of two channels, which have one feature: a control.
        copies: Maxima of a channel and itself: a control.
        twins: Pairs of the channels that are most alike, scored as single neurons, too. Those that
            correlate by less than .9 are no control: they count as composites of two.
        unlike: Pairs of the channels that are least alike, likewise: composites of two.
    """

    singles: int = 12
    composites: dict[int, int] = field(default_factory=lambda: {2: 6, 3: 4, 4: 3})
    screened: dict[int, int] = field(default_factory=dict)
    minima: int = 3
    copies: int = 3
    twins: int = 2
    unlike: int = 2

    def __post_init__(self) -> None:
        by_components = ("composites", "screened")
        counts = {
            f.name: getattr(self, f.name) for f in fields(self) if f.name not in by_components
        }
        for name in by_components:
            counts |= {f"{name} of {m}": count for m, count in getattr(self, name).items()}
        for name, count in counts.items():
            if count < 0:
                raise InputError(f"sizes cannot be negative, but {name} is {count}.")


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """The planted neurons of a layer.

    Attributes:
        layer: Its name.
        planted: The neurons.
        similarity: By neuron text, the correlation of the two components of a pair.
        classes: Whether its channels are classes.
    """

    layer: str
    planted: Sequence[Planted]
    similarity: Mapping[str, float]
    classes: bool


def plan_layers(
    model: Model,
    layers: Sequence[str],
    parametrization: Parametrization,
    canvas: int,
    sizes: Sizes,
    seed: int,
    half: Literal["all", "tune", "report"],
    screened: Mapping[str, bool] | None = None,
) -> list[LayerPlan]:
    """Draw the planted neurons of some layers.

    Args:
        model: The subject.
        layers: Names of its layers.
        parametrization: What images are made from.
        canvas: Side that the subject sees images at, in pixels.
        sizes: How many neurons of each kind.
        seed: Of the draw.
        half: Which half of the channels is used.
        screened: By channel as text, whether photos show it to be among the more monosemantic half
            of its layer; None without photos.

    Returns:
        A plan for each layer.

    Raises:
        InputError: If a layer does not exist, or has too few channels.
    """
    cut = Subject(model, layers, canvas)
    known = {layer.name: layer for layer in list_layers(model, canvas)}
    features = _texture_features(cut, parametrization, canvas)
    for name in cut.layers:
        if name not in known:
            raise InputError(f"layer '{name}' only hands on what another layer returns; name that.")
    return [
        _plan_layer(known[name], features[index], sizes, seed, half, screened or {})
        for index, name in enumerate(cut.layers)
    ]


def _plan_layer(
    layer: Layer,
    features: Tensor,
    sizes: Sizes,
    seed: int,
    half: Literal["all", "tune", "report"],
    screened: Mapping[str, bool],
) -> LayerPlan:
    if not features.isfinite().all():
        raise InputError(
            f"layer '{layer.name}' has channels that are not finite; take another layer."
        )
    # A channel that no texture moves is dead, or nearly so.
    still = (features.std(0) <= 1e-6 * features.std(0).max()).nonzero().flatten().tolist()
    channels = allowed_channels(layer.channels, exclude=still, only=half)
    pairs = 2 * (sizes.twins + sizes.unlike)
    if len(channels) < sizes.singles + pairs:
        raise InputError(
            f"layer '{layer.name}' has {layer.channels} channels, of which {len(channels)} can be "
            f"used (half: {half}; {len(still)} never move), but {sizes.singles} singles and "
            f"{pairs // 2} pairs need {sizes.singles + pairs}; ask for fewer or take a wider layer."
        )
    alike, unlike = similar_and_dissimilar(features, sizes.twins, sizes.unlike, channels=channels)
    classes = layer.kind == "Linear" and not layer.size
    one_feature = [c for c in channels if classes or screened.get(f"{layer.name}:{c}")]
    planted = draw_planted(
        layer.name,
        layer.channels,
        seed=seed,
        singles=sizes.singles,
        composites=sizes.composites,
        minima=sizes.minima,
        copies=sizes.copies,
        twins=[_channels(pair) for pair in alike if pair.correlation >= _TWINS],
        unlike=[
            _channels(pair)
            for pair in (*unlike, *alike)
            if pair in unlike or pair.correlation < _TWINS
        ],
        screened=one_feature,
        screened_composites=sizes.screened if screened or classes else None,
        exclude=still,
        only=half,
        kind="logits" if classes else "max",
    )
    by_channels = {_channels(pair): pair.correlation for pair in (*alike, *unlike)}
    similarity = {}
    for p in planted:
        channels_of = tuple(sorted(component.channel for component in p.components))
        if p.kind in ("twins", "max", "logits") and channels_of in by_channels:
            similarity[str(p.neuron)] = by_channels[channels_of]
    return LayerPlan(layer=layer.name, planted=planted, similarity=similarity, classes=classes)


def _channels(pair: Pair) -> tuple[int, int]:
    return min(pair.first, pair.second), max(pair.first, pair.second)


@torch.no_grad()
def _texture_features(cut: Subject, parametrization: Parametrization, canvas: int) -> list[Tensor]:
    """Show a subject random textures: pooled activations [images, C] of each layer.

    Textures have the spectrum of natural images and random colours, so no photos are needed.
    """
    keys = torch.tensor([stream_key("texture", i) for i in range(_TEXTURES)])
    latents = parametrization.initial_latents(keys) * (_CONTRAST / parametrization.sd)
    pooled: list[list[Tensor]] = [[] for _ in cut.layers]
    for batch in ImageDecoder(parametrization)(latents).split(16):
        for index, activation in cut(on_grey(batch, canvas)).items():
            # Before the rectifier: a channel that textures do not wake is not dead.
            pre = activation.pre
            pooled[index].append(pre.flatten(2).mean(2) if pre.ndim > 2 else pre)
    return [torch.cat(components) for components in pooled]
