"""What the images of a neuron give, gathered as they come, and handed on once it is through."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polylight.neurons import Neuron
from polylight.run.schema import StopReason


@dataclass(eq=False, kw_only=True)
class FinishedNeuron:
    """The images of a neuron that is through, on the device they were made on.

    Attributes:
        neuron: The neuron.
        images: uint8 [N, 3, H, W].
        embeddings: float32 [N, D], raw.
        layer_input: float32 [N, C], what the layer of the first component reads, in standard
            deviations (:class:`polylight.embedding.layer_input.LayerInput`).
        activations: float32 [N], of the stored images; NaN where an image became non-finite.
        baseline: Mean activation of the random images that the ascents started from.
        inactive: bool [N], where the neuron's rectifier gives zero everywhere.
        component: int64 [N], which component of a composite each image drives most, in units of its
        scale.
        steps: Ascent steps that the images took together.
        stop_reason: ``elbow`` or ``max_images``.
    """

    neuron: Neuron
    images: Tensor
    embeddings: Tensor
    layer_input: Tensor
    activations: Tensor
    baseline: float
    inactive: Tensor
    component: Tensor
    steps: int
    stop_reason: StopReason


@dataclass(eq=False)
class ImageBuffer:
    """What the images of a neuron have given so far.

    Attributes:
        round: Of the round under way, by index: the image, the activation that it started from,
            and whether it became non-finite.
        images: Of each round that is through uint8 [N, 3, H, W]; the lists after it hold what
            :class:`FinishedNeuron` has of the same name.
        starts: Activations that the images of finished rounds started from.
        steps: Ascent steps of all images.
    """

    round: dict[int, tuple[Tensor, float, bool]] = field(default_factory=dict)
    images: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    layer_input: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    inactive: list[Tensor] = field(default_factory=list)
    component: list[Tensor] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    steps: int = 0

    @property
    def baseline(self) -> float:
        """Mean activation of the random images that the ascents started from; 0 without any."""
        return sum(self.starts) / max(len(self.starts), 1)

    def finish(self, neuron: Neuron, reason: StopReason) -> FinishedNeuron:
        """Put the rounds together.

        Args:
            neuron: The neuron.
            reason: Why it is through.

        Returns:
            All its images, in the order in which they were made.
        """
        return FinishedNeuron(
            neuron=neuron,
            images=torch.cat(self.images),
            embeddings=torch.cat(self.embeddings),
            layer_input=torch.cat(self.layer_input),
            activations=torch.cat(self.activations),
            baseline=self.baseline,
            inactive=torch.cat(self.inactive),
            component=torch.cat(self.component),
            steps=self.steps,
            stop_reason=reason,
        )
