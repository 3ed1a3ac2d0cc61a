"""What the images of a neuron give as they come, and the finished neuron."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from polylight.ascent.objective import Scale
from polylight.embedding.lpips import MeanDistance
from polylight.networks.images import picture
from polylight.neurons import Neuron
from polylight.run.schema import StopReason


@dataclass(eq=False, kw_only=True)
class FinishedNeuron:
    """All images of a neuron, on the device they were made on.

    Attributes:
        neuron: The neuron.
        images: uint8 [N, channels, H, W], as the subject sees them.
        embeddings: float32 [N, D], raw.
        layer_input: float32 [N, C], what the neuron's layer reads, in standard deviations
            (:class:`polylight.embedding.layer_input.LayerInput`).
        activations: float32 [N], of the stored images; NaN where an image became non-finite.
        baseline: Mean activation of the random images that the ascents started from.
        inactive: bool [N], where the neuron's rectifier gives zero everywhere.
        component: int64 [N], which component of a composite each image drives most, in units of
            its scale.
        scales: Range of each component; a plain neuron keeps its own units.
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
    scales: tuple[Scale, ...]
    steps: int
    stop_reason: StopReason

    @property
    def pictures(self) -> Tensor:
        """The images as they are embedded and stored: uint8 [N, 3, H, W]."""
        return picture(self.images)


@dataclass(eq=False, kw_only=True)
class JudgedRound:
    """What the finished images of a round give.

    Attributes:
        images: uint8 [N, channels, H, W]; the others hold what :class:`FinishedNeuron` has of the
            same name.
    """

    images: Tensor
    embeddings: Tensor
    layer_input: Tensor
    activations: Tensor
    inactive: Tensor
    component: Tensor


@dataclass(eq=False)
class ImageBuffer:
    """What the images of a neuron have given so far.

    Attributes:
        current: Of the round under way, by index: the image, the activation that it started from,
            and whether it became non-finite.
        rounds: The finished rounds.
        starts: Activations that the images of finished rounds started from.
        steps: Ascent steps of all images.
        mean_distance: Of the images of finished rounds, where LPIPS compares them.
    """

    current: dict[int, tuple[Tensor, float, bool]] = field(default_factory=dict)
    rounds: list[JudgedRound] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    steps: int = 0
    mean_distance: MeanDistance | None = None

    @property
    def baseline(self) -> float:
        """Mean activation of the random images that the ascents started from; 0 without any."""
        return sum(self.starts) / max(len(self.starts), 1)

    def joined(self, name: str) -> Tensor:
        """One attribute of all finished rounds, in the order in which the images were made."""
        return torch.cat([getattr(judged, name) for judged in self.rounds])

    def take_round(self, count: int) -> tuple[Tensor, Tensor]:
        """Empty the round under way.

        Args:
            count: Its images, all of which are there.

        Returns:
            The images, uint8 [N, channels, H, W], and which became non-finite, bool [N] on the CPU.
        """
        images, starts, broken = zip(*(self.current[i] for i in range(count)), strict=True)
        self.starts += [s for s, b in zip(starts, broken, strict=True) if not b]
        self.current.clear()
        return torch.stack(images), torch.tensor(broken)

    def finish(
        self, neuron: Neuron, scales: tuple[Scale, ...], reason: StopReason
    ) -> FinishedNeuron:
        """Put the rounds together.

        Args:
            neuron: The neuron.
            scales: Of its components.
            reason: Why it is finished.

        Returns:
            All its images, in the order in which they were made.
        """
        names = ("images", "embeddings", "layer_input", "activations", "inactive", "component")
        return FinishedNeuron(
            neuron=neuron,
            **{name: self.joined(name) for name in names},
            baseline=self.baseline,
            scales=scales,
            steps=self.steps,
            stop_reason=reason,
        )
