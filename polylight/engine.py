"""Neurons in, finished neurons out: the pool, the queue and the embedder working together."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from polylight.ascent import Slot
from polylight.embedding import Embedder, Reference
from polylight.kernels import stream_key
from polylight.neurons import Neuron
from polylight.objective import Scale, Targets, make_targets
from polylight.pool import Pool
from polylight.queue import Flight, NeuronQueue, Ticket
from polylight.rows import StopReason


@dataclass(eq=False, kw_only=True)
class FinishedNeuron:
    """The images of a neuron that is through, on the device they were made on.

    Attributes:
        neuron: The neuron.
        images: uint8 [N, 3, H, W].
        embeddings: float32 [N, D], raw.
        activations: float32 [N], of the stored images; NaN where an image became non-finite.
        baseline: Mean activation of the random images that the ascents started from.
        asleep: bool [N], where the neuron's rectifier gives zero everywhere.
        steps: Ascent steps that the images took together.
        stop_reason: ``elbow`` or ``max_images``.
    """

    neuron: Neuron
    images: Tensor
    embeddings: Tensor
    activations: Tensor
    baseline: float
    asleep: Tensor
    steps: int
    stop_reason: StopReason


@dataclass(eq=False)
class _Gathered:
    """What the images of a flight have given so far: of the round, by index; then of all."""

    round: dict[int, tuple[Tensor, float, bool]] = field(default_factory=dict)
    images: list[Tensor] = field(default_factory=list)
    embeddings: list[Tensor] = field(default_factory=list)
    activations: list[Tensor] = field(default_factory=list)
    asleep: list[Tensor] = field(default_factory=list)
    starts: list[float] = field(default_factory=list)
    steps: int = 0


class Stopwatch:
    """Seconds by stage; what is timed inside a stage does not count for the outer one.

    Attributes:
        seconds: By stage.
        started: When the watch was made, by ``time.perf_counter``.
    """

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of the block for a stage."""
        start = time.perf_counter()
        self._inner.append(0.0)
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[stage] += elapsed - self._inner.pop()
            self._inner[-1] += elapsed


class Engine:
    """Runs the neurons of a queue through a pool.

    Args:
        pool: The slots.
        queue: The neurons.
        embedder: Embeds finished images.
        reference: The frame that the elbow compares images in; None where rounds do not matter.
        seed: Seed of the run.
        watch: Where the time goes.
    """

    def __init__(
        self,
        pool: Pool,
        queue: NeuronQueue,
        embedder: Embedder,
        reference: Reference | None,
        seed: int,
        watch: Stopwatch,
    ) -> None:
        self.pool, self.queue, self.embedder = pool, queue, embedder
        self.reference, self.seed, self.watch = reference, seed, watch
        self._tickets: list[Ticket | None] = [None] * pool.size
        self._gathered: dict[Flight, _Gathered] = defaultdict(_Gathered)
        self.neurons = self.images = self.image_steps = 0
        # Until the queue has nothing more to give: steps that moved an image, and all there were.
        self.busy_steps = self.slot_steps = 0

    @property
    def occupancy(self) -> float:
        """Part of the slots that did useful work, until the queue had nothing more to give."""
        return self.busy_steps / self.slot_steps if self.slot_steps else 1.0

    @property
    def progress(self) -> float:
        """Part of the work that is done, in [0, 1], as if every neuron took all its images."""
        flying = sum(f.earlier for f in self._gathered) / self.queue.rounds.max_images
        return (self.neurons + flying) / max(self.queue.total, 1)

    def turn(
        self, num_steps: int, step: Callable[[Callable[[], None]], object]
    ) -> list[FinishedNeuron]:
        """Refill the pool, climb, and harvest.

        Args:
            num_steps: Steps of the pool, > 0.
            step: Of the pool's optimizer, which takes a step of the pool as its closure.

        Returns:
            The neurons that came through.
        """
        with self.watch("refill"):
            self._refill()
        occupied = sum(ticket is not None for ticket in self._tickets)
        if not occupied:
            return []
        pool, draining = self.pool, not self.queue.waiting
        with self.watch("ascent"):
            before = pool.steps.sum()
            for _ in range(num_steps):
                step(pool.ascend)
            useful = int(pool.steps.sum() - before)
        self.image_steps += useful
        if not draining:
            self.busy_steps += useful
            self.slot_steps += num_steps * pool.size
        with self.watch("harvest"):
            return self._harvest()

    def _refill(self) -> None:
        free = [slot for slot, ticket in enumerate(self._tickets) if ticket is None]
        tickets = self.queue.take(len(free))
        if not tickets:
            return
        slots = free[: len(tickets)]
        for slot, ticket in zip(slots, tickets, strict=True):
            self._tickets[slot] = ticket
        self.pool.refill(slots, [self._entry(t) for t in tickets], self._targets(tickets))

    def _entry(self, ticket: Ticket) -> Slot:
        flight, ascent = ticket.flight, self.pool.ascent
        image = flight.earlier + ticket.index
        stream = "probe" if flight.probe else "image"
        return Slot(
            key=stream_key(self.seed, flight.neuron, stream, image, ticket.attempt),
            seat=flight.seat,
            # A probe only finds the scale of a part, which half an ascent tells.
            max_steps=-(-ascent.max_steps // 2) if flight.probe else ascent.max_steps,
            # Nothing repels the first images.
            explore_steps=ascent.explore_steps if flight.earlier else 0,
        )

    def _targets(self, tickets: list[Ticket]) -> Targets:
        subject = self.pool.subject
        neurons = [t.flight.neuron for t in tickets]
        return make_targets(
            neurons, subject.layers, subject.sizes, self.queue.scales, self.pool.num_parts
        )

    @torch.no_grad()
    def _harvest(self) -> list[FinishedNeuron]:
        """Empty the slots that are through; embed the rounds and end the neurons that are."""
        pool = self.pool
        running, broken = pool.running.tolist(), pool.broken.tolist()
        done = [s for s, t in enumerate(self._tickets) if t is not None and not running[s]]
        if not done:
            return []
        painted = _quantise(pool.painter(pool.latents))
        starts, steps = pool.start.tolist(), pool.steps.tolist()
        complete: list[Flight] = []
        for slot in done:
            ticket = self._tickets[slot]
            if ticket is None:
                continue
            self._tickets[slot] = None
            gathered = self._gathered[ticket.flight]
            # A retried image overwrites what its broken try left.
            gathered.round[ticket.index] = (painted[slot], starts[slot], broken[slot])
            gathered.steps += steps[slot]
            if self.queue.give_back(ticket, broken=broken[slot]):
                complete.append(ticket.flight)
        with self.watch("embed"):
            finished = [self._end_round(flight) for flight in complete]
        return [neuron for neuron in finished if neuron is not None]

    def _end_round(self, flight: Flight) -> FinishedNeuron | None:
        """Look at the images of a round, and end the neuron or send it on another one."""
        pool, gathered = self.pool, self._gathered[flight]
        count = flight.round_size
        stored, starts, broken = zip(*(gathered.round[i] for i in range(count)), strict=True)
        images = torch.stack(stored)
        # The batch is always the round's, so that its arithmetic is the same in any company.
        batch = torch.zeros(self.queue.rounds.round_size, *images.shape[1:], device=images.device)
        batch[:count] = images / 255.0
        size = pool.parametrization.size
        still = pool.augmentation.still(len(batch), size, batch.device)
        targets = self._targets([Ticket(flight, 0)] * len(batch)).to(batch.device)
        index = pool.subject.layers.index
        layers = {index(part.layer) for part in flight.neuron.parts}
        readings = pool.see(batch, still, targets, layers)
        lost = torch.tensor(broken, device=batch.device)
        value = torch.where(lost, torch.nan, readings.value[:count])
        self.images += count
        if flight.probe:
            usable = [s for s, b in zip(starts, broken, strict=True) if not b]
            self._end_probe(flight, value, usable)
            return None
        alive = value.isfinite() & ~readings.asleep[:count]
        features = readings.features[:count]
        rows = Targets(*(t[:count] for t in targets))
        pool.rivals.remember(flight.seat, features, rows, alive, layers)
        gathered.round.clear()
        gathered.images.append(images)
        gathered.embeddings.append(self.embedder(batch)[:count])
        gathered.activations.append(value)
        gathered.asleep.append(readings.asleep[:count])
        gathered.starts += [s for s, b in zip(starts, broken, strict=True) if not b]
        reason = self._stop_reason(flight, torch.cat(gathered.embeddings))
        if not reason:
            self.queue.next_round(flight)
            return None
        pool.rivals.forget(flight.seat)
        self.queue.land(flight)
        del self._gathered[flight]
        self.neurons += 1
        return FinishedNeuron(
            neuron=flight.neuron,
            images=torch.cat(gathered.images),
            embeddings=torch.cat(gathered.embeddings),
            activations=torch.cat(gathered.activations),
            baseline=sum(gathered.starts) / max(len(gathered.starts), 1),
            asleep=torch.cat(gathered.asleep),
            steps=gathered.steps,
            stop_reason=reason,
        )

    def _stop_reason(self, flight: Flight, embeddings: Tensor) -> StopReason | None:
        """Why the neuron is through after this round; None where it is not."""
        rounds = self.queue.rounds
        if self.reference is not None:
            similarity = mean_pairwise_cosine(self.reference.frame(embeddings))
            flight.similarities.append(similarity)
        if flight.total >= rounds.max_images:
            return "max_images"
        enough = flight.total >= rounds.min_images and rounds.elbow(flight.similarities)
        return "elbow" if enough else None

    def _end_probe(self, flight: Flight, value: Tensor, starts: list[float]) -> None:
        """Note the scale of a part: from what random images give to the best of its ascent."""
        best = value.nan_to_num(-torch.inf).max().item()
        offset = sum(starts) / max(len(starts), 1)
        gain = best - offset
        # A part that cannot be moved keeps its own units; in a max it then never wins.
        scale = Scale(offset, gain if gain > 0 and gain < float("inf") else 1.0)
        self.queue.set_scale(flight.neuron.parts[0], scale)
        self.queue.land(flight)
        del self._gathered[flight]


def mean_pairwise_cosine(units: Tensor) -> float:
    """Mean cosine over the pairs of unit vectors [N, A]; 1 where there is no pair."""
    count = units.shape[0]
    if count < 2:
        return 1.0
    total = units.double().sum(0).square().sum().item()
    return (total - count) / (count * (count - 1))


def _quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: what is stored is what is scored."""
    return (images * 255.0).round().to(torch.uint8)
