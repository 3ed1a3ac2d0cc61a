"""The hot path: a pool of slots, each climbing its own neuron at its own step."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.cuda_graph import StepGraph
from polylight.ascent.diversity import PreviousOptima
from polylight.ascent.objective import Readings, Targets, read
from polylight.ascent.parametrization import ImageDecoder, Parametrization
from polylight.ascent.precision import Precision, arithmetic
from polylight.ascent.settings import Ascent, Slot
from polylight.ascent.transfer import to_device
from polylight.kernels import Backend, Kernels, resolve_kernels
from polylight.networks.subject import Subject

_SMOOTHING = 0.9  # of the objective, whose value jumps with every random map
# Steps whose random maps are drawn at once: as many small operations as for one.
_DRAWN_AHEAD = 4


class _Pass(NamedTuple):
    """A forward and a backward of all images."""

    layers: frozenset[int]  # that are read
    deepest: int  # layer of the images whose gradient is taken from it; -1 for all


class Pool(nn.Module):
    """A fixed number of images that climb together, each for itself.

    Every slot has its own neuron, step, random stream and moments; nothing that a slot computes
    depends on what the other slots hold; finished images of its own neuron repel it while it
    explores (:class:`polylight.ascent.diversity.PreviousOptima`).

    Args:
        subject: The network whose neurons are ascended.
        parametrization: What the images are made from.
        augmentation: How they are moved about at each step.
        ascent: How they climb.
        size: Slots, > 0.
        num_components: Components of the largest composite.
        max_images: Images of a neuron at the most.
        feature_start: float32 [layers, C], mean of the pooled activations of each layer over start
            images.
        feature_std: float32 [layers, C], their deviation over finished images.
        precision: How the subject is computed while images climb.
        kernels: Which implementation of the kernels runs.
        cuda_graph: Whether a step on a GPU is captured and replayed.
    """

    # One entry a slot, [B].
    key: Tensor
    active_index: Tensor
    steps: Tensor
    max_steps: Tensor
    explore_steps: Tensor
    start: Tensor
    smooth: Tensor
    best: Tensor
    stalled: Tensor
    running: Tensor
    moving: Tensor
    broken: Tensor
    target_layer: Tensor
    target_channel: Tensor
    target_sign: Tensor
    target_gain: Tensor

    def __init__(
        self,
        subject: Subject,
        parametrization: Parametrization,
        augmentation: Augmentation,
        ascent: Ascent,
        *,
        size: int,
        num_components: int,
        max_images: int,
        feature_start: Tensor,
        feature_std: Tensor,
        precision: Precision = "float32",
        kernels: Kernels = "auto",
        cuda_graph: bool = True,
    ) -> None:
        super().__init__()
        self.subject, self.decoder = subject, ImageDecoder(parametrization)
        # Finished images are judged by the exact one.
        self.climbed = subject if precision != "bfloat16" else subject.cast(torch.bfloat16)
        self.parametrization, self.augmentation, self.ascent = parametrization, augmentation, ascent
        self.precision, self.kernels, self.cuda_graph = precision, kernels, cuda_graph
        self.size, self.num_components = size, num_components
        self.latents = nn.Parameter(torch.zeros(size, *parametrization.latent_shape))
        # Layers that each slot reads; a finished slot keeps its own until it is refilled.
        self._reads: list[frozenset[int]] = [frozenset()] * size
        self._deepest = [0] * size
        self._live: frozenset[int] = frozenset()
        self.by_depth = False
        """Whether images of different deepest layers are climbed in passes of their own. A layer
        that is not finite makes the gradient of all that lies before it so, also for images that
        do not read it: nothing times infinity is NaN."""
        self._drawn: list[Tensor] = []  # maps of the next steps
        self._graphs: dict[tuple[_Pass, ...], StepGraph] = {}

        def state(name: str, value: Tensor) -> None:
            self.register_buffer(name, value, persistent=False)

        components = (size, num_components)
        integers, numbers = torch.zeros(size, dtype=torch.int64), torch.zeros(size)
        for name in ("key", "active_index", "steps", "max_steps", "explore_steps"):
            state(name, integers.clone())
        for name in ("start", "smooth", "best", "stalled"):
            state(name, numbers.clone())
        for name in ("running", "moving", "broken"):
            state(name, torch.zeros(size, dtype=torch.bool))
        for name in ("layer", "channel", "position"):
            state(f"target_{name}", torch.zeros(components, dtype=torch.int64))
        for name in ("sign", "offset", "gain"):
            state(f"target_{name}", torch.ones(components))
        for name in ("operation", "compared"):
            state(f"target_{name}", integers.clone())
        places = max_images if ascent.explore_steps else 0
        channel_std = subject.deviations(feature_std)
        self.previous_optima = PreviousOptima(
            subject.channels, feature_start, feature_std, channel_std, size, places
        )

    @property
    def backend(self) -> Backend:
        """Which implementation of the kernels runs on the pool's device."""
        return resolve_kernels(self.kernels, self.latents.device)

    @property
    def targets(self) -> Targets:
        """The neurons in the slots."""
        return Targets(*(getattr(self, f"target_{name}") for name in Targets._fields))

    @torch.no_grad()
    def refill(self, slots: Sequence[int], entries: Sequence[Slot], targets: Targets) -> Tensor:
        """Let new images enter.

        Args:
            slots: Which slots, all of them free.
            entries: What enters each of them.
            targets: Their neurons, one a row, on the CPU.

        Returns:
            The slots on the pool's device, int64, for the optimizer to reset.
        """
        device = self.latents.device
        where = to_device(torch.tensor(slots), device)
        for name in ("key", "active_index", "max_steps", "explore_steps"):
            values = to_device(torch.tensor([getattr(e, name) for e in entries]), device)
            getattr(self, name)[where] = values
        for name, value in zip(Targets._fields, targets, strict=True):
            getattr(self, f"target_{name}")[where] = to_device(value, device)
        for name in ("steps", "start", "smooth", "best", "stalled", "broken"):
            getattr(self, name).index_fill_(0, where, 0)
        keys = self.key[where]
        self.latents[where] = self.parametrization.initial_latents(keys, self.backend)
        self.running.index_fill_(0, where, True)
        self._drawn.clear()
        compared = targets.compared.tolist()
        for slot, layers, deepest in zip(slots, targets.layer.tolist(), compared, strict=True):
            self._reads[slot], self._deepest[slot] = frozenset(layers), deepest
        self._live = frozenset().union(*self._reads)
        return where

    def draw(self, num_steps: int) -> Tensor:
        """Draw the random maps of the next steps at once: float32 [num_steps, B, 2, 3]."""
        steps = self.steps + torch.arange(num_steps, device=self.steps.device)[:, None]
        keys = self.key.expand_as(steps)
        size, backend = self.parametrization.size, self.backend
        maps = self.augmentation.maps(keys.flatten(), steps.flatten(), size, backend)
        return maps.view(num_steps, self.size, 2, 3)

    def climb(self) -> None:
        """Leave the gradient of one step in ``latents.grad`` and take stock of every slot.

        The optimizer then moves the slots that are ``moving``. Nothing waits for the device.
        """
        device = self.latents.device
        with arithmetic(self.precision, device):
            if device.type == "cuda" and self.cuda_graph:
                passes = self._passes()
                if passes not in self._graphs:
                    state = list(self.buffers(recurse=False))
                    self._graphs[passes] = StepGraph(lambda: self._step(self.draw(1)[0]), state)
                self.latents.grad = self._graphs[passes]()
                return
            if not self._drawn:
                self._drawn = list(self.draw(_DRAWN_AHEAD).flip(0))
            self.latents.grad = self._step(self._drawn.pop())

    def _step(self, maps: Tensor) -> Tensor:
        """Gradient of the latents for maps float32 [B, 2, 3]; counts the step."""
        gradient, finite = self._gradient(maps)
        with torch.no_grad():
            lost = self.running & ~finite
            self.broken |= lost
            self.steps += lost
            self.running &= finite
            self.moving.copy_(self.running)
            self._advance()
        return gradient

    def _gradient(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient of the loss of each image, and where it is finite, bool [B]."""
        first, *others = self._passes()
        value, goal, gradient = self._pass(maps, first.layers)
        for other in others:
            mine = self.targets.compared.eq(other.deepest)
            found = self._pass(maps, other.layers)
            value, goal = torch.where(mine, found[0], value), torch.where(mine, found[1], goal)
            gradient = torch.where(mine.view(-1, *[1] * (gradient.ndim - 1)), found[2], gradient)
        with torch.no_grad():
            self._measure(value)
            # A value that is not finite makes the sum so.
            return gradient, gradient.flatten(1).sum(1).isfinite() & goal.isfinite()

    def _passes(self) -> tuple[_Pass, ...]:
        """What a step runs: all layers at once, or each depth by itself."""
        if not self.by_depth:
            return (_Pass(self._live, -1),)
        reads: dict[int, frozenset[int]] = {}
        for layers, deepest in zip(self._reads, self._deepest, strict=True):
            if layers:
                reads[deepest] = reads.get(deepest, frozenset()) | layers
        return tuple(_Pass(reads[deepest], deepest) for deepest in sorted(reads))

    def _pass(self, maps: Tensor, layers: frozenset[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Objective [B], the same less what repels [B], and the gradient of the loss."""
        readings = self._look(self.climbed, self.decoder(self.latents), maps, self.targets, layers)
        goal = readings.value
        if self.ascent.explore_steps:
            goal = goal - self._repulsion(readings.features, layers)
        # A sum, not a mean: the gradient of an image is its own.
        (gradient,) = torch.autograd.grad(-goal.sum(), self.latents)
        return readings.value.detach(), goal.detach(), gradient

    def _advance(self) -> None:
        """Count the step that the optimizer is about to take; stop the slots that end with it."""
        self.steps += self.running
        settled = (self.steps >= self.explore_steps + self.ascent.patience) & (
            self.stalled >= self.ascent.patience
        )
        settled &= self.steps % self.ascent.stride == 0
        converged = settled if self.ascent.patience else torch.zeros_like(settled)
        self.running &= ~((self.steps >= self.max_steps) | converged)

    def see(
        self, images: Tensor, maps: Tensor, targets: Targets, layers: Collection[int]
    ) -> Readings:
        """Show images to the exact subject and read what each does to its neuron.

        Args:
            images: float32 [B, channels, H, W] in [0, 1].
            maps: float32 [B, 2, 3].
            targets: Their neurons.
            layers: Those that the neurons read.

        Returns:
            Readings.
        """
        return self._look(self.subject, images, maps, targets, layers)

    def _look(
        self,
        subject: Subject,
        images: Tensor,
        maps: Tensor,
        targets: Targets,
        layers: Collection[int],
    ) -> Readings:
        seen = subject.look(images, maps, layers, backend=self.backend)
        return read(seen, targets, self.previous_optima.num_features)

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

    def _repulsion(self, features: Tensor, layers: frozenset[int]) -> Tensor:
        """What an image pays for being like its neuron's finished images, [B]."""
        with torch.no_grad():
            exploring = (self.steps < self.explore_steps) & self.running
            fade = 1 - self.steps / self.explore_steps.clamp_min(1)
            weight = self.ascent.repulsion * fade * exploring
        return self.previous_optima.penalty(
            features, self.targets, self.active_index, weight, layers
        )
