"""The hot path: a pool of slots, each climbing its own neuron at its own step."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polylight.augment import Augmentation, apply_maps
from polylight.errors import InputError
from polylight.images import Painter, Parametrization
from polylight.objective import Readings, Targets, read
from polylight.optimizer import SlotAdam
from polylight.subject import Subject

_SMOOTHING = 0.9  # of the objective, whose value jumps with every random map


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """How an image climbs.

    Attributes:
        max_steps: Steps of an image at the most, > 0.
        learning_rate: Adam's, in units of the latent.
        explore: Part of the steps in which an image is repelled by its neuron's finished ones,
            in [0, 1).
        repulsion: Weight of the repulsion, >= 0; it falls linearly to zero over the explored
            steps. At 1 and more an image that has all its activation in common with the
            finished ones is pushed back.
        tolerance: An image has converged when its smoothed objective has risen by less than
            this part of its gain for ``patience`` steps, > 0.
        patience: Steps, >= 0; 0 never stops an image early.
        stride: Convergence is looked at every so many steps, > 0; slots that become free then
            become free together, when they can be refilled.
    """

    max_steps: int = 128
    learning_rate: float = 0.05
    explore: float = 0.4
    repulsion: float = 2.0
    tolerance: float = 0.01
    patience: int = 16
    stride: int = 4

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise InputError(f"max_steps has to be at least 1, not {self.max_steps}.")
        if not 0 <= self.explore < 1:
            raise InputError(f"explore is a part of the steps in [0, 1), not {self.explore}.")
        if self.repulsion < 0 or self.learning_rate <= 0 or self.tolerance <= 0:
            raise InputError(
                "repulsion has to be >= 0, learning_rate and tolerance > 0, not "
                f"{self.repulsion}, {self.learning_rate}, {self.tolerance}."
            )
        if self.patience < 0 or self.stride < 1:
            raise InputError(
                "patience has to be at least 0, which never stops an image early, and stride at "
                f"least 1, not {self.patience} and {self.stride}."
            )

    @property
    def explore_steps(self) -> int:
        """Steps in which an image is repelled by its neuron's finished images."""
        return int(self.explore * self.max_steps) if self.repulsion > 0 else 0


@dataclass(frozen=True)
class Slot:
    """What enters a slot: one image of one neuron.

    Attributes:
        key: Random stream of the image.
        seat: Which of the pool's places for neurons in flight its neuron has.
        max_steps: Steps at the most.
        explore_steps: Steps in which it is repelled.
    """

    key: int
    seat: int
    max_steps: int
    explore_steps: int


class Pool(nn.Module):
    """A fixed number of images that climb together, each for itself.

    Every slot has its own neuron, step, random stream and moments; nothing that a slot computes
    depends on what the other slots hold; finished images of its own neuron repel it while it
    explores (:meth:`_repulsion`).

    Args:
        subject: The network that is climbed.
        parametrization: What the images are made from.
        augmentation: How they are moved about at each step.
        ascent: How they climb.
        size: Slots, > 0.
        num_parts: Parts of the largest composite.
        max_images: Images of a neuron at the most.
        feature_mean: float32 [layers, C], of the pooled activations of each layer.
        feature_std: float32 [layers, C].
    """

    # One entry a slot, [B].
    key: Tensor
    seat: Tensor
    steps: Tensor
    max_steps: Tensor
    explore_steps: Tensor
    start: Tensor
    smooth: Tensor
    best: Tensor
    stalled: Tensor
    running: Tensor
    broken: Tensor
    target_layer: Tensor
    target_channel: Tensor
    target_sign: Tensor
    target_gain: Tensor
    feature_mean: Tensor
    feature_std: Tensor
    # One entry a seat: unit features of the neuron's finished images, and how many there are.
    rivals: Tensor
    num_rivals: Tensor

    def __init__(
        self,
        subject: Subject,
        parametrization: Parametrization,
        augmentation: Augmentation,
        ascent: Ascent,
        *,
        size: int,
        num_parts: int,
        max_images: int,
        feature_mean: Tensor,
        feature_std: Tensor,
    ) -> None:
        super().__init__()
        self.subject, self.painter = subject, Painter(parametrization)
        self.parametrization, self.augmentation, self.ascent = parametrization, augmentation, ascent
        self.size, self.num_parts, self.num_features = size, num_parts, feature_mean.shape[1]
        self.latents = nn.Parameter(torch.zeros(size, *parametrization.latent_shape))
        self._live: frozenset[int] = frozenset()  # layers that some slot reads

        def state(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        parts = (size, num_parts)
        integers, numbers = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
        for name in ("key", "seat", "steps", "max_steps", "explore_steps"):
            state(name, integers.clone())
        for name in ("start", "smooth", "best", "stalled"):
            state(name, numbers.clone())
        for name in ("running", "broken"):
            state(name, torch.zeros(size, dtype=torch.bool))
        for name in ("layer", "channel", "position"):
            state(f"target_{name}", torch.zeros(parts, dtype=torch.int64))
        for name in ("sign", "offset", "gain"):
            state(f"target_{name}", torch.ones(parts))
        state("target_operation", integers.clone())
        state("feature_mean", feature_mean)
        state("feature_std", feature_std)
        width = self.num_features if ascent.explore_steps else 0
        state("rivals", torch.zeros(size, max_images, width))
        state("num_rivals", integers.clone())

    def configure_optimizer(self) -> SlotAdam:
        """Make the optimizer of the latents; call it once the pool is on its device."""
        self.optimizer = SlotAdam(self.latents, self.running, self.ascent.learning_rate)
        return self.optimizer

    @property
    def targets(self) -> Targets:
        """The neurons in the slots."""
        return Targets(*(getattr(self, f"target_{name}") for name in Targets._fields))

    @torch.no_grad()
    def refill(self, slots: Sequence[int], entries: Sequence[Slot], targets: Targets) -> None:
        """Let new images enter.

        Args:
            slots: Which slots, all of them free.
            entries: What enters each of them.
            targets: Their neurons, one a row.
        """
        device = self.latents.device
        where = torch.tensor(slots, device=device)
        for name in ("key", "seat", "max_steps", "explore_steps"):
            values = torch.tensor([getattr(e, name) for e in entries], device=device)
            getattr(self, name)[where] = values
        for name, value in zip(Targets._fields, targets, strict=True):
            getattr(self, f"target_{name}")[where] = value.to(device)
        for name in ("steps", "start", "smooth", "best", "stalled", "broken"):
            getattr(self, name)[where] = 0
        self.latents[where] = self.parametrization.initial_latents(self.key[where])
        self.optimizer.reset(where)
        self.running[where] = True
        self._live = frozenset(self.target_layer[self.running].flatten().tolist())

    def draw(self, num_steps: int) -> Tensor:
        """Draw the random maps of the next steps at once: float32 [num_steps, B, 2, 3]."""
        steps = self.steps + torch.arange(num_steps, device=self.steps.device)[:, None]
        keys = self.key.expand_as(steps)
        size = self.parametrization.size
        maps = self.augmentation.maps(keys.flatten(), steps.flatten(), size)
        return maps.view(num_steps, self.size, 2, 3)

    def climb(self, maps: Tensor) -> None:
        """Leave the gradient of one step in ``latents.grad`` and take stock; no host sync.

        Args:
            maps: float32 [B, 2, 3], how each image is moved about at this step.
        """
        images = self.painter(self.latents)
        readings = self.see(images, maps)
        with torch.no_grad():
            self._measure(readings.value.detach())
        goal = readings.value
        if self.ascent.explore_steps:
            goal = goal - self._repulsion(readings.features)
        # A sum, not a mean: the gradient of an image is its own.
        (gradient,) = torch.autograd.grad(-goal.sum(), self.latents)
        with torch.no_grad():
            finite = gradient.isfinite().flatten(1).all(1) & goal.isfinite()
            self.broken |= self.running & ~finite
            keep = (finite & self.running).view(-1, *(1,) * (gradient.ndim - 1))
            self.latents.grad = torch.where(keep, gradient, 0)

    def advance(self) -> None:
        """Count the step that the optimizer has just taken, and stop the slots that are through."""
        self.steps += self.running
        settled = (self.steps >= self.explore_steps + self.ascent.patience) & (
            self.stalled >= self.ascent.patience
        )
        settled &= self.steps % self.ascent.stride == 0
        converged = settled if self.ascent.patience else torch.zeros_like(settled)
        over = (self.steps >= self.max_steps) | converged | self.broken
        self.running &= ~over

    def see(self, images: Tensor, maps: Tensor, targets: Targets | None = None) -> Readings:
        """Show images to the subject and read what each does to its neuron.

        Args:
            images: float32 [B, 3, H, W] in [0, 1].
            maps: float32 [B, 2, 3].
            targets: Their neurons; by default, those of the slots.

        Returns:
            Readings.
        """
        if targets is None:
            live, targets = self._live, self.targets
        else:
            live = frozenset(targets.layer.flatten().tolist())
        canvas = self.augmentation.canvas(self.parametrization.size)
        activations = self.subject(apply_maps(images, maps, canvas), live)
        return read(activations, targets, self.num_features)

    def remember(self, seat: int, readings: Readings, targets: Targets, images: Tensor) -> None:
        """Let later images of a neuron be repelled by finished ones.

        Args:
            seat: The neuron's.
            readings: Of its images.
            targets: Of the neuron, a row for each of the images.
            images: int64 [M], which of them repel.
        """
        if not self.ascent.explore_steps:
            return
        layer = targets.layer[:, 0]
        units = torch.zeros_like(readings.features)
        for index, scores in self._z_scores(readings.features, set(layer.tolist())):
            unit = nn.functional.normalize(scores, dim=1)
            unit = nn.functional.pad(unit, (0, units.shape[1] - unit.shape[1]))
            units = torch.where((layer == index)[:, None], unit, units)
        first = int(self.num_rivals[seat])
        self.rivals[seat, first : first + len(images)] = units[images]
        self.num_rivals[seat] += len(images)

    def forget(self, seat: int) -> None:
        """Clear the seat of a neuron that is through."""
        self.rivals[seat] = 0
        self.num_rivals[seat] = 0

    def _measure(self, value: Tensor) -> None:
        """Follow each slot's objective: smoothed, best so far, steps without a rise."""
        first = self.steps == 0
        self.start.copy_(torch.where(first, value, self.start))
        smooth = torch.where(first, value, torch.lerp(value, self.smooth, _SMOOTHING))
        # Exploring pays with activation: what counts as a rise begins with settling.
        anew = first | (self.steps == self.explore_steps)
        threshold = self.best + self.ascent.tolerance * (self.best - self.start).abs()
        rise = anew | (smooth > threshold)
        self.smooth.copy_(smooth)
        self.best.copy_(torch.where(rise, smooth, self.best))
        self.stalled.copy_(torch.where(rise, 0, self.stalled + 1))

    def _repulsion(self, features: Tensor) -> Tensor:
        """What an image pays for being like its neuron's finished images, [B].

        ``repulsion * (1 - step / explore_steps) * sigma * mean_j max(0, z . u_j)`` with z the
        z-scored pooled activations of the neuron's layer and u_j those of finished image j at
        unit length. ``sigma`` is the objective's share of one standard deviation of its channel,
        so the weight has no unit. The penalty is linear: a square would vanish at the start of
        the ascent, where the image chooses its feature. Only rounds that are over count, so what
        an image meets does not depend on when the others run.
        """
        layer = self.target_layer[:, 0]
        with torch.no_grad():
            exploring = (self.steps < self.explore_steps) & self.running
            fade = 1 - self.steps / self.explore_steps.clamp_min(1)
            deviation = self.feature_std[self.target_layer, self.target_channel] / self.target_gain
            sigma = torch.where(self.target_sign != 0, deviation, torch.inf).amin(1)
            count = self.num_rivals[self.seat].clamp_min(1)
            weight = self.ascent.repulsion * fade * exploring * sigma / count
            rivals = self.rivals[self.seat]  # [B, N, C]
        shared = torch.zeros_like(rivals[:, :, 0])
        for index, scores in self._z_scores(features, self._live):
            units = rivals[:, :, : scores.shape[1]].contiguous()
            product = (units @ scores[:, :, None].contiguous()).squeeze(2)
            shared = torch.where((layer == index)[:, None], product, shared)
        return weight * shared.clamp_min(0).sum(1)

    def _z_scores(self, features: Tensor, layers: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        """Z-score pooled activations [B, C] by each of some layers: [B, channels of the layer].

        Sums then run over the layer's own channels: how far features are padded depends on which
        other layers are read, and a longer sum adds in another order.
        """
        for index in layers:
            width = self.subject.channels[index]
            mean, deviation = self.feature_mean[index, :width], self.feature_std[index, :width]
            scores = (features[:, :width] - mean) / deviation
            # A neuron can do without a channel of its layer that is not finite.
            yield index, torch.where(scores.isfinite(), scores, 0)
