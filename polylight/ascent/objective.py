"""What each image climbs: the objective of a batch of neurons, read off in one gather a layer."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from polylight.ascent.transfer import to_device
from polylight.networks.subject import LayerActivation
from polylight.neurons import OPERATIONS, Component, LayerShape, Neuron

_MAX, _MIN = OPERATIONS.index("max"), OPERATIONS.index("min")


class Scale(NamedTuple):
    """The range of a component: what random images give, and what its own ascents gain."""

    offset: float
    gain: float


class Targets(NamedTuple):
    """The neurons of a batch as tensors; axis P is the components, padded."""

    layer: Tensor  # int64 [B, P], index into the subject's layers
    channel: Tensor  # int64 [B, P]
    position: Tensor  # int64 [B, P], in the flattened map; -1 for the mean over it
    sign: Tensor  # float32 [B, P], 1 or -1; 0 for padding
    offset: Tensor  # float32 [B, P]
    gain: Tensor  # float32 [B, P]
    operation: Tensor  # int64 [B], index into OPERATIONS
    compared: Tensor  # int64 [B], layer whose pooled activations images are compared by

    def to(self, device: torch.device) -> "Targets":
        """The same targets on another device."""
        return Targets(*(to_device(t, device) for t in self))


class Readings(NamedTuple):
    """What a batch of images does to its neurons."""

    value: Tensor  # float32 [B], the objective
    inactive: Tensor  # bool [B], the neuron is rectified to zero: its pre-activation is climbed
    features: Tensor  # float32 [B, C], pooled activations of the deepest layer that is read
    component: Tensor  # int64 [B], which component is driven most, in units of its own scale


def make_targets(
    neurons: Sequence[Neuron],
    layers: Mapping[str, LayerShape],
    scales: Mapping[Component, Scale],
    num_components: int,
) -> Targets:
    """Lay neurons out as tensors.

    Args:
        neurons: The neurons, one a row.
        layers: The subject's layers, in the order of their indices.
        scales: Range of every component of a composite; a lone component keeps its own units.
        num_components: Parts to pad to, >= those of any of the neurons.

    Returns:
        Targets on the CPU.
    """
    index = {name: i for i, name in enumerate(layers)}
    rows = []
    for neuron in neurons:
        components: list[tuple[float, ...]] = []
        for component in neuron.components:
            scale = scales[component] if neuron.operation else Scale(0.0, 1.0)
            layer = index[component.layer]
            place = component.flat_position(layers[component.layer])
            components.append((layer, component.channel, place, component.sign, *scale))
        components += [(components[0][0], 0, -1, 0, 0.0, 1.0)] * (num_components - len(components))
        rows.append(components)
    table = torch.tensor(rows, dtype=torch.float64)  # [B, P, 6]
    operation = torch.tensor([OPERATIONS.index(n.operation) for n in neurons])
    compared = torch.tensor([index[n.deepest_layer(layers)] for n in neurons])
    return Targets(
        layer=table[..., 0].long(),
        channel=table[..., 1].long(),
        position=table[..., 2].long(),
        sign=table[..., 3].float(),
        offset=table[..., 4].float(),
        gain=table[..., 5].float(),
        operation=operation,
        compared=compared,
    )


def read(
    activations: Mapping[int, LayerActivation], targets: Targets, num_features: int
) -> Readings:
    """Read the objective of each image.

    A component reads its channel's mean (or its position). A channel that its rectifier holds at
    zero everywhere has no gradient, so there the pre-activation is read: it is below zero, so the
    objective stays ordered, and the image climbs until the channel wakes. A negated component reads
    the pre-activation always. Composites take the max, min or mean of ``(component - offset) /
    gain``.

    Args:
        activations: By layer index, those of the layers that the targets read, channels second.
        targets: The neurons of the batch.
        num_features: Channels of the widest layer, which features are padded to.

    Returns:
        Readings, differentiable in value and features.
    """
    value = torch.zeros_like(targets.gain)  # [B, P]
    inactive = torch.zeros_like(targets.sign, dtype=torch.bool)
    features = targets.gain.new_zeros(targets.gain.shape[0], num_features)
    for index, activation in activations.items():
        here = targets.layer == index  # [B, P]
        channel = torch.where(here, targets.channel, 0)
        post = _exact(_Pick.apply(activation.post, channel))  # [B, P, S]
        positions = torch.arange(post.shape[2], device=post.device)
        mean = targets.position < 0
        pooled = 1.0 / (post.shape[2] - activation.prefix)
        everywhere = torch.where(positions >= activation.prefix, pooled, 0.0)
        weight = torch.where(
            mean[..., None], everywhere, (targets.position[..., None] == positions).float()
        )
        component = (post * weight).sum(2)
        if activation.pre is not activation.post:
            silent = ((post <= 0) | (weight == 0)).all(2)
            below = (_exact(_Pick.apply(activation.pre, channel)) * weight).sum(2)
            component = torch.where(silent | (targets.sign < 0), below, component)
            inactive = inactive | (silent & here & (targets.sign > 0))
        value = torch.where(here, component * targets.sign, value)
        seen = activation.pooled()
        seen = torch.nn.functional.pad(seen, (0, num_features - seen.shape[1]))
        features = torch.where((targets.compared == index)[:, None], seen, features)
    value = (value - targets.offset) / targets.gain
    used = targets.sign != 0
    # A running sum adds in order, so padding changes no bit; a plain sum adds as its length bids.
    combined = torch.where(used, value, 0).cumsum(1)[:, -1] / used.sum(1)
    highest, component = torch.where(used, value, -torch.inf).max(1)
    lowest = torch.where(used, value, torch.inf).amin(1)
    combined = torch.where(targets.operation == _MAX, highest, combined)
    combined = torch.where(targets.operation == _MIN, lowest, combined)
    all_inactive = (inactive | ~used).all(1)
    inactive = torch.where(targets.operation == _MIN, inactive.any(1), all_inactive)
    return Readings(combined, inactive, features, component)


def _exact(activation: Tensor) -> Tensor:
    """At least float32: values and features are compared, and small differences count."""
    return activation.to(_exact_type(activation))


def _exact_type(activation: Tensor) -> torch.dtype:
    return torch.promote_types(activation.dtype, torch.float32)


class _Pick(torch.autograd.Function):
    """Pick channels of a [B, C, ...] activation: [B, P, S]; the gradient keeps its layout.

    An index's own gradient would come back contiguous, and the convolutions behind it would run
    their slow, and bitwise different, path.
    """

    @staticmethod
    def forward(ctx: Any, activation: Tensor, channel: Tensor) -> Tensor:
        ctx.save_for_backward(channel)
        ctx.like = activation
        rows = torch.arange(channel.shape[0], device=channel.device)[:, None]
        return (
            activation.flatten(2)[rows, channel]
            if activation.ndim > 2
            else (activation[rows, channel][..., None])
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (channel,) = ctx.saved_tensors
        result = torch.zeros_like(ctx.like)
        # A loop over the components, of which there are one to four: adding is then in a fixed
        # order.
        rows = torch.arange(channel.shape[0], device=channel.device)
        for component in range(channel.shape[1]):
            result[rows, channel[:, component]] += grad[:, component].reshape(result[:, 0].shape)
        return result, None
