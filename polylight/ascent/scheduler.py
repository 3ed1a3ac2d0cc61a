"""Which image of which neuron enters next: rounds, retries, and when a neuron is through."""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from polylight.ascent.objective import Scale
from polylight.errors import InputError
from polylight.neurons import Component, Neuron

# Ascents that the scale of a component is taken from, as their median: one may end far off.
PROBE_IMAGES = 3


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """How many images a neuron gets.

    Images come in rounds. After each, the mean pairwise similarity of the neuron's images is
    taken; the neuron is through when it has changed by less than ``tolerance`` for ``patience``
    rounds (the elbow), or at ``max_images``.

    Attributes:
        round_size: Images of a round, > 0.
        min_images: Images of a neuron at least.
        max_images: Images of a neuron at the most, >= ``min_images``.
        tolerance: Change of the mean cosine similarity that still counts as none, >= 0.
        patience: Rounds, > 0.
        retries: How often an image that became non-finite starts again from another seed, >= 0.
    """

    round_size: int = 1
    min_images: int = 12
    max_images: int = 32
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

    def elbow(self, similarities: Sequence[float]) -> bool:
        """Whether the mean similarity after each round so far has stopped changing."""
        recent = similarities[-self.patience - 1 :]
        changes = [abs(b - a) for a, b in itertools.pairwise(recent)]
        return len(changes) == self.patience and max(changes) < self.tolerance


@dataclass(eq=False)
class ActiveNeuron:
    """A neuron in flight, from its first image to its last.

    Attributes:
        neuron: The neuron.
        active_index: Its place among the neurons in flight.
        probe: Whether it is the component of a composite whose scale is wanted, not a score.
        round_size: Images of the round under way.
        earlier: Images that earlier rounds finished.
        similarities: Mean pairwise similarity after each round.
    """

    neuron: Neuron
    active_index: int
    probe: bool
    round_size: int
    earlier: int = 0
    similarities: list[float] = field(default_factory=list)
    waiting: int = 0

    @property
    def total(self) -> int:
        """Images, those of the round under way included."""
        return self.earlier + self.round_size


@dataclass(frozen=True)
class ImageTask:
    """One image of a flight on its way through a slot: the attempt-th try at it."""

    flight: ActiveNeuron
    index: int
    attempt: int = 0


class Scheduler:
    """Hands out the images of the neurons, and takes them back.

    A composite waits until each of its components has been probed for its scale.

    Args:
        neurons: The neurons, each once.
        rounds: How many images each gets.
        max_active: Neurons in flight at the most; as many as there are slots always suffice.
    """

    def __init__(self, neurons: Iterable[Neuron], rounds: Rounds, max_active: int) -> None:
        self.rounds = rounds
        self.scales: dict[Component, Scale] = {}
        self._backlog = list(neurons)
        self.total = len(self._backlog)
        components = dict.fromkeys(p for n in self._backlog if n.operation for p in n.components)
        self._probes = deque(Neuron((component,)) for component in components)
        self.total_probes = len(components)
        self._free_indices = list(reversed(range(max_active)))
        self._tickets: deque[ImageTask] = deque()
        self._in_flight = 0

    @property
    def drained(self) -> bool:
        """Whether every neuron is through."""
        return not (self._backlog or self._probes or self._in_flight)

    @property
    def waiting(self) -> bool:
        """Whether there is work that has not entered a slot."""
        return bool(self._tickets or self._backlog or self._probes)

    def take(self, count: int) -> list[ImageTask]:
        """Take up to ``count`` images, those of neurons in flight first."""
        taken: list[ImageTask] = []
        while len(taken) < count and (self._tickets or self._admit()):
            taken.append(self._tickets.popleft())
        return taken

    def give_back(self, ticket: ImageTask, *, broken: bool) -> bool:
        """Take an image back from its slot.

        Args:
            ticket: The image.
            broken: Whether it became non-finite; then it is tried again, as often as allowed.

        Returns:
            Whether its round is complete.
        """
        if broken and ticket.attempt < self.rounds.retries:
            again = ImageTask(ticket.flight, ticket.index, ticket.attempt + 1)
            self._tickets.appendleft(again)
            return False
        ticket.flight.waiting -= 1
        return ticket.flight.waiting == 0

    def next_round(self, flight: ActiveNeuron) -> None:
        """Send a flight whose round is complete on another one."""
        flight.earlier += flight.round_size
        self._begin(flight)

    def land(self, flight: ActiveNeuron) -> None:
        """End a flight."""
        self._free_indices.append(flight.active_index)
        self._in_flight -= 1

    def set_scale(self, component: Component, scale: Scale) -> None:
        """Note the scale of a component; composites that have all of theirs can start."""
        self.scales[component] = scale

    def _begin(self, flight: ActiveNeuron) -> None:
        left = self.rounds.max_images - flight.earlier
        size = PROBE_IMAGES if flight.probe else min(self.rounds.round_size, left)
        flight.round_size = flight.waiting = size
        self._tickets.extend(ImageTask(flight, index) for index in range(flight.round_size))

    def _admit(self) -> bool:
        """Start the next neuron that can start; False where there is none."""
        if not self._free_indices:
            return False
        if self._probes:
            neuron, probe = self._probes.popleft(), True
        else:
            ready = (i for i, n in enumerate(self._backlog) if self._ready(n))
            index = next(ready, None)
            if index is None:
                return False
            neuron, probe = self._backlog.pop(index), False
        self._in_flight += 1
        self._begin(ActiveNeuron(neuron, self._free_indices.pop(), probe, 0))
        return True

    def _ready(self, neuron: Neuron) -> bool:
        return not neuron.operation or all(
            component in self.scales for component in neuron.components
        )
