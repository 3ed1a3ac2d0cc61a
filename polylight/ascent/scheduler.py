"""Which image of which neuron enters next: rounds, retries, and when a neuron is finished."""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from polylight.ascent.buffer import ImageBuffer
from polylight.ascent.objective import Scale
from polylight.errors import InputError
from polylight.neurons import Component, Neuron

# Ascents that the scale of a component is taken from, as their median: one may end far off.
PROBE_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many images a neuron gets.

    Images come in rounds. After each, the mean pairwise similarity of the neuron's images is
    taken, or their mean pairwise LPIPS. The neuron is finished when it has changed by less than
    ``tolerance`` for ``patience`` rounds (the elbow), or at ``max_images``.

    Attributes:
        round_size: Images of a round, > 0.
        min_images: Images of a neuron at least.
        max_images: Images of a neuron at most, >= ``min_images``; the elbow decides between the
            two, and nothing where they are equal.
        tolerance: Change of the mean that still counts as none, >= 0.
        patience: Rounds, > 0.
        retries: How often an image that became non-finite starts again from another seed, >= 0.
    """

    round_size: int = 1
    min_images: int = 16
    max_images: int = 16
    tolerance: float = 0.02
    patience: int = 6
    retries: int = 3

    def __post_init__(self) -> None:
        if self.round_size < 1 or self.patience < 1 or self.retries < 0 or self.tolerance < 0:
            raise InputError(
                "round_size and patience have to be at least 1, retries and tolerance at least 0, "
                f"not {self.round_size}, {self.patience}, {self.retries}, {self.tolerance}."
            )
        if not 1 <= self.min_images <= self.max_images:
            raise InputError(
                "min_images has to be between 1 and max_images, not "
                f"{self.min_images} with max_images {self.max_images}."
            )

    @property
    def has_elbow(self) -> bool:
        """Whether the number of images is left to the elbow."""
        return self.min_images < self.max_images

    def elbow(self, similarities: Sequence[float]) -> bool:
        """Whether the mean after each round so far has stopped changing."""
        recent = similarities[-self.patience - 1 :]
        changes = [abs(b - a) for a, b in itertools.pairwise(recent)]
        return len(changes) == self.patience and max(changes) < self.tolerance


@dataclass(eq=False)
class ActiveNeuron:
    """A neuron from its first image to its last.

    Attributes:
        neuron: The neuron.
        index: Its number among the active neurons, under which the pool keeps its optima.
        is_probe: Whether only the scale of a composite's component is wanted, not a score.
        scales: Range of each of its components; of a plain neuron, its own units.
        round_size: Images of the round under way.
        earlier: Images that earlier rounds finished.
        waiting: Images of the round under way that are not finished.
        similarities: Mean pairwise similarity, or LPIPS, after each round.
        buffer: What its images have given so far.
    """

    neuron: Neuron
    index: int
    is_probe: bool
    scales: tuple[Scale, ...]
    round_size: int = 0
    earlier: int = 0
    waiting: int = 0
    similarities: list[float] = field(default_factory=list)
    buffer: ImageBuffer = field(default_factory=ImageBuffer)

    @property
    def num_images(self) -> int:
        """Images, those of the round under way included."""
        return self.earlier + self.round_size


@dataclass(frozen=True)
class ImageTask:
    """A request for one image of an active neuron.

    Attributes:
        active: The neuron.
        index: The image, counted within the round.
        attempt: How often it has become non-finite before.
    """

    active: ActiveNeuron
    index: int
    attempt: int = 0


class Scheduler:
    """Draws neurons as there is room for them, and hands out their images.

    A composite waits until each of its components has been probed for its scale.

    Args:
        rounds: How many images each neuron gets.
        max_active: Neurons that are active at most; as many as there are slots always suffice.
    """

    def __init__(self, rounds: Rounds, max_active: int) -> None:
        self.rounds = rounds
        self.scales: dict[Component, Scale] = {}
        self.active: list[ActiveNeuron] = []
        self._free = list(reversed(range(max_active)))
        self._tasks: deque[ImageTask] = deque()
        self._composites: deque[Neuron] = deque()  # whose scales are not all known
        self._probes: deque[Neuron] = deque()
        self._asked: set[Component] = set()  # for which a probe was ever made

    @property
    def idle(self) -> bool:
        """Whether every neuron drawn so far is finished."""
        return not (self.active or self._composites or self._probes)

    def take(self, count: int, neurons: Iterator[Neuron]) -> list[ImageTask]:
        """Take up to ``count`` images, those of active neurons first.

        Args:
            count: Images that there is room for.
            neurons: Where further neurons are drawn from, only as many as are needed.

        Returns:
            What enters next; fewer where nothing else can start.
        """
        taken: list[ImageTask] = []
        while len(taken) < count and (self._tasks or self._activate(neurons)):
            taken.append(self._tasks.popleft())
        return taken

    def give_back(self, task: ImageTask, *, is_broken: bool) -> bool:
        """Take an image back from its slot.

        Args:
            task: The image.
            is_broken: Whether it became non-finite; then it is tried again, as often as allowed.

        Returns:
            Whether its round is complete.
        """
        if is_broken and task.attempt < self.rounds.retries:
            self._tasks.appendleft(ImageTask(task.active, task.index, task.attempt + 1))
            return False
        task.active.waiting -= 1
        return task.active.waiting == 0

    def repeat(self, task: ImageTask) -> None:
        """Ask for an image again, as it was."""
        self._tasks.appendleft(task)

    def next_round(self, active: ActiveNeuron) -> None:
        """Ask for another round of a neuron whose round is complete."""
        active.earlier += active.round_size
        self._begin(active)

    def finish(self, active: ActiveNeuron) -> None:
        """Give up the place of a neuron that is finished."""
        self.active.remove(active)
        self._free.append(active.index)

    def set_scale(self, component: Component, scale: Scale) -> None:
        """Note the scale of a component; composites that have all of theirs can start."""
        self.scales[component] = scale

    def _begin(self, active: ActiveNeuron) -> None:
        left = self.rounds.max_images - active.earlier
        size = PROBE_IMAGES if active.is_probe else min(self.rounds.round_size, left)
        active.round_size = active.waiting = size
        self._tasks.extend(ImageTask(active, index) for index in range(size))

    def _activate(self, neurons: Iterator[Neuron]) -> bool:
        """Start the next neuron that can start; False where there is none."""
        if not self._free:
            return False
        found = self._next(neurons)
        if found is None:
            return False
        neuron, is_probe = found
        own = Scale(0.0, 1.0)
        scales = tuple(self.scales[c] if neuron.operation else own for c in neuron.components)
        active = ActiveNeuron(neuron, self._free.pop(), is_probe, scales)
        self.active.append(active)
        self._begin(active)
        return True

    def _next(self, neurons: Iterator[Neuron]) -> tuple[Neuron, bool] | None:
        """The next neuron that can start, and whether it is a probe."""
        while True:
            ready = (n for n in self._composites if self.scales.keys() >= set(n.components))
            if (neuron := next(ready, None)) is not None:
                self._composites.remove(neuron)
                return neuron, False
            if self._probes:
                return self._probes.popleft(), True
            if (neuron := next(neurons, None)) is None:
                return None
            if not neuron.operation:
                return neuron, False
            unknown = [c for c in dict.fromkeys(neuron.components) if c not in self._asked]
            self._asked.update(unknown)
            self._probes.extend(Neuron((component,)) for component in unknown)
            self._composites.append(neuron)
