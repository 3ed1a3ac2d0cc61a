"""What finished images are: how far they drive their neuron, and what they look like."""

from dataclasses import dataclass

import torch
from torch import Tensor

from polylight.ascent.augmentation import identity
from polylight.ascent.buffer import JudgedRound
from polylight.ascent.objective import Targets, make_targets
from polylight.ascent.pool import Pool
from polylight.ascent.scheduler import ActiveNeuron
from polylight.ascent.transfer import to_device
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.embedding.lpips import Lpips, MeanDistance
from polylight.embedding.reference import Reference
from polylight.kernels import needs_float64
from polylight.networks.images import picture


@dataclass(frozen=True, eq=False)
class Judge:
    """Reads, embeds and remembers the images of a round, in float32 and without augmentation.

    Attributes:
        pool: Its subject is the neuron's; it remembers the optima.
        embedder: Embeds images.
        layer_input: Shows them as the neuron's layer reads them; None for the embedder's view
            alone.
        reference: What both are centred and scaled by; None where images are not compared.
        lpips: What the elbow compares images by; None for the cosine of both views.
    """

    pool: Pool
    embedder: Embedder
    layer_input: LayerInput | None
    reference: Reference | None
    lpips: Lpips | None = None

    def judge(self, active: ActiveNeuron, size: int) -> tuple[Tensor, Tensor]:
        """Judge the images of the round that a neuron has just completed.

        Args:
            active: The neuron; what its images give goes into its buffer.
            size: Images of a batch. It is the same for every round of a neuron, so that the
                arithmetic does not depend on the other neurons.

        Returns:
            The activations of the round, float32 [N], NaN where an image became non-finite; and
            the mean pairwise similarity of all images of the neuron, or their mean LPIPS, [].
        """
        pool, count = self.pool, active.round_size
        device = pool.latents.device
        images, broken = active.buffer.take_round(count)
        batch = torch.zeros(max(size, count), *images.shape[1:], device=device)
        batch[:count] = images / 255.0
        pictures = torch.zeros(len(batch), 3, *images.shape[2:], device=device)
        pictures[:count] = picture(images) / 255.0
        targets = self._targets(active, len(batch)).to(device)
        layers = {pool.subject.layers.index(c.layer) for c in active.neuron.components}
        readings = pool.see(batch, identity(len(batch), device), targets, layers)
        value = torch.where(to_device(broken, device), torch.nan, readings.value[:count])
        if active.is_probe:
            return value, value.new_ones(())
        inactive = readings.inactive[:count]
        is_optimum = value.isfinite() & ~inactive
        rows = Targets(*(t[:count] for t in targets))
        features = readings.features[:count]
        pool.previous_optima.remember(active.index, features, rows, is_optimum, layers)
        judged = JudgedRound(
            images=images,
            embeddings=self.embedder(pictures)[:count],
            layer_input=self._layer_input(batch, active)[:count],
            activations=value,
            inactive=inactive,
            component=readings.component[:count],
        )
        active.buffer.rounds.append(judged)
        return value, self._similarity(active, pictures)

    def _targets(self, active: ActiveNeuron, count: int) -> Targets:
        neuron = active.neuron
        scales = dict(zip(neuron.components, active.scales, strict=True))
        shapes, width = self.pool.subject.shapes, self.pool.num_components
        return make_targets([neuron] * count, shapes, scales, width)

    def _layer_input(self, images: Tensor, active: ActiveNeuron) -> Tensor:
        """What the neuron's layer reads of each image, [B, C]; [B, 0] where nothing compares."""
        if self.layer_input is None or self.reference is None:
            return images.new_zeros(len(images), 0)
        layer = active.neuron.deepest_layer(self.pool.subject.shapes)
        seen: Tensor = self.layer_input(images, layer, self.reference)
        return seen

    def _similarity(self, active: ActiveNeuron, pictures: Tensor) -> Tensor:
        buffer = active.buffer
        if self.lpips is not None:
            buffer.mean_distance = buffer.mean_distance or MeanDistance(self.lpips)
            return buffer.mean_distance.add(pictures, active.round_size)
        if self.reference is None:
            return buffer.rounds[-1].activations.new_ones(())
        views = buffer.joined("embeddings"), buffer.joined("layer_input")
        return mean_pairwise_cosine(self.reference.join(*views))


@needs_float64
def mean_pairwise_cosine(units: Tensor) -> Tensor:
    """Mean cosine over the pairs of unit vectors [N, A]: float64 []; 1 where there is no pair."""
    count = units.shape[0]
    if count < 2:
        return units.new_ones((), dtype=torch.float64)
    return (units.double().sum(0).square().sum() - count) / (count * (count - 1))
