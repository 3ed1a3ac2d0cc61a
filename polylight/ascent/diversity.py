"""What keeps the images of a neuron apart while they explore: its finished ones repel them."""

from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor, nn

from polylight.ascent.objective import Targets

# Part of a finished image's way that others are pushed to the other side.
_BEYOND = 0.25


class PreviousOptima(nn.Module):
    """The finished images of the active neurons, and what a new image pays for being like them.

    Args:
        channels: Of each layer of the subject.
        feature_start: float32 [layers, C], mean of the pooled activations of each layer over start
            images.
        feature_std: float32 [layers, C], their deviation over finished images.
        channel_std: float32 [layers, N], that of each channel, or vector, that a neuron may be.
        max_active: Active neurons at most.
        max_images: Images of a neuron at the most; 0 where nothing repels.
    """

    feature_start: Tensor
    feature_std: Tensor
    channel_std: Tensor
    # One entry an active neuron: directions of the neuron's finished images, how far they are from
    # the start, and how many there are.
    directions: Tensor
    lengths: Tensor
    num_optima: Tensor

    def __init__(
        self,
        channels: Sequence[int],
        feature_start: Tensor,
        feature_std: Tensor,
        channel_std: Tensor,
        max_active: int,
        max_images: int,
    ) -> None:
        super().__init__()
        self.channels = tuple(channels)
        self.num_features = feature_start.shape[1]
        self._taken = [0] * max_active
        self.register_buffer("feature_start", feature_start, persistent=False)
        self.register_buffer("feature_std", feature_std, persistent=False)
        self.register_buffer("channel_std", channel_std, persistent=False)
        width = self.num_features if max_images else 0
        places = torch.zeros(max_active, max_images, width)
        self.register_buffer("directions", places, persistent=False)
        self.register_buffer("lengths", torch.zeros(max_active, max_images), persistent=False)
        counts = torch.zeros(max_active, dtype=torch.int64)
        self.register_buffer("num_optima", counts, persistent=False)

    def penalty(
        self,
        features: Tensor,
        targets: Targets,
        active_index: Tensor,
        weight: Tensor,
        layers: Collection[int],
    ) -> Tensor:
        """What each image pays for being like its neuron's finished images.

        ``weight * sigma * sqrt(mean_j max(0, z . u_j + |z_j| / 4)^2)`` with z the pooled
        activations of the neuron's layer as deviations from what random start images give, z_j
        those of finished image j and u_j its direction. ``sigma`` is the objective's share of one
        standard deviation of its channel, so the weight has no unit.

        What an image is like is measured from where it starts: measured from the mean of other
        images it would pay nothing until it has almost become the finished one. It is even pushed
        a quarter of the finished one's way to the other side, so that a weaker feature can come
        first. The price of a direction is linear: a square would vanish where the image chooses
        its feature. Over the finished images it is a root mean square: the mean would repel the
        less, the more features have been found, and the maximum would not tell a feature that
        most have from one that is rare. Only rounds that are over count, so what an image meets
        does not depend on when the others run.

        Args:
            features: float32 [B, C], pooled activations of the layer of the first component.
            targets: The neurons.
            active_index: int64 [B], that of each neuron.
            weight: float32 [B], >= 0.
            layers: Those that some target reads.

        Returns:
            float32 [B], in units of the objective, differentiable in the features.
        """
        layer = targets.compared
        with torch.no_grad():
            deviation = self.channel_std[targets.layer, targets.channel] / targets.gain
            sigma = torch.where(targets.sign != 0, deviation, torch.inf).amin(1)
            factor = weight * sigma * self.num_optima[active_index].clamp_min(1).rsqrt()
            previous = self.directions[active_index]  # [B, N, C]
        shared = torch.zeros_like(previous[:, :, 0])
        for index, scores in self._z_scores(features, layers):
            units = previous[:, :, : scores.shape[1]].contiguous()
            product = (units @ scores[:, :, None].contiguous()).squeeze(2)
            shared = torch.where((layer == index)[:, None], product, shared)
        shared = (shared + _BEYOND * self.lengths[active_index]).clamp_min(0)
        # A norm has a gradient of zero, not NaN, where there is no optimum.
        price: Tensor = factor * torch.linalg.vector_norm(shared, dim=1)
        return price

    def remember(
        self,
        active_index: int,
        features: Tensor,
        targets: Targets,
        alive: Tensor,
        layers: Collection[int],
    ) -> None:
        """Let later images of a neuron be repelled by finished ones.

        Args:
            active_index: The neuron's.
            features: float32 [M, C], of its images.
            targets: Of the neuron, a row for each of the images.
            alive: bool [M], which of them repel.
            layers: Those that the neuron reads.
        """
        if not self.directions.shape[1]:
            return
        layer = targets.compared
        units, lengths = torch.zeros_like(features), torch.zeros_like(features[:, 0])
        for index, scores in self._z_scores(features, layers):
            unit = nn.functional.normalize(scores, dim=1)
            unit = nn.functional.pad(unit, (0, units.shape[1] - unit.shape[1]))
            units = torch.where((layer == index)[:, None], unit, units)
            lengths = torch.where(layer == index, scores.norm(dim=1), lengths)
        first, count = self._taken[active_index], len(features)
        # One that does not repel keeps a place of zeros: counting the others would make the host
        # wait for the device.
        self.directions[active_index, first : first + count] = torch.where(alive[:, None], units, 0)
        self.lengths[active_index, first : first + count] = torch.where(alive, lengths, 0)
        self.num_optima[active_index] += alive.sum()
        self._taken[active_index] += count

    def forget(self, active_index: int) -> None:
        """Forget the optima of a neuron that is finished."""
        self.directions[active_index] = self.lengths[active_index] = 0
        self.num_optima[active_index] = 0
        self._taken[active_index] = 0

    def _z_scores(self, features: Tensor, layers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Z-score pooled activations [B, C] by each of some layers: [B, channels of the layer].

        Sums then run over the layer's own channels: how far features are padded depends on which
        other layers are read, and a longer sum adds in another order.
        """
        for index in layers:
            width = self.channels[index]
            start, deviation = self.feature_start[index, :width], self.feature_std[index, :width]
            scores = (features[:, :width] - start) / deviation
            # A neuron can do without a channel of its layer that is not finite.
            yield index, torch.where(scores.isfinite(), scores, 0)
