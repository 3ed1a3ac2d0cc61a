"""Neurons in, finished neurons out: the scheduler, the pool and the judge working together."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from polylight.ascent.buffer import FinishedNeuron
from polylight.ascent.judge import Judge
from polylight.ascent.objective import Scale, Targets, make_targets
from polylight.ascent.pool import Pool
from polylight.ascent.precision import arithmetic
from polylight.ascent.scheduler import ActiveNeuron, ImageTask, Scheduler
from polylight.ascent.settings import Slot
from polylight.ascent.transfer import HostCopy
from polylight.kernels import stream_key
from polylight.neurons import Neuron
from polylight.run.schema import StopReason
from polylight.stopwatch import Stopwatch


class Optimizer(Protocol):
    """Moves the latents of a pool."""

    def step(self) -> object:
        """Move every slot that is moving once along its gradient."""

    def reset(self, slots: Tensor) -> object:
        """Forget the moments of some slots."""


@dataclass
class Counters:
    """What an engine has done.

    Attributes:
        neurons: Neurons that are finished.
        probes: Components whose scale is known.
        images: Images that are finished.
        image_steps: Ascent steps that moved an image.
        slot_steps: Ascent steps of the pool times its slots.
    """

    neurons: int = 0
    probes: int = 0
    images: int = 0
    image_steps: int = 0
    slot_steps: int = 0


@dataclass(eq=False)
class _SlotStatus:
    """How the slots stood after a turn, on its way to the host."""

    turn: int
    tasks: list[ImageTask | None]
    copy: HostCopy  # running, broken, steps and start, [B] each


@dataclass(eq=False)
class _RoundResult:
    """What a neuron's round gave, on its way to the host."""

    turn: int
    active: ActiveNeuron
    copy: HostCopy  # activations of the round [N], and the mean similarity of all images, []


class Engine:
    """Runs neurons through a pool.

    On a GPU the host stays a turn ahead of the device: how slots stand and how similar images
    have become is read a turn after it was asked for, when it has long arrived. What a neuron
    gets does not depend on that.

    Args:
        pool: The slots.
        scheduler: Which image enters next.
        judge: Looks at finished images.
        seed: Seed of the run.
        watch: Where the time goes.
        lag: Turns between asking and reading; None for 1 on a GPU, else 0.
    """

    def __init__(
        self,
        pool: Pool,
        scheduler: Scheduler,
        judge: Judge,
        seed: int,
        watch: Stopwatch,
        lag: int | None = None,
    ) -> None:
        self.pool, self.scheduler, self.judge = pool, scheduler, judge
        self.seed, self.watch = seed, watch
        self.lag = int(pool.latents.is_cuda) if lag is None else lag
        self.counters = Counters()
        self._tasks: list[ImageTask | None] = [None] * pool.size
        self._counted = [0] * pool.size  # steps of each slot's image that are counted
        self._by_depth = [False] * pool.size  # whether its image has met its own layers only
        self._statuses: deque[_SlotStatus] = deque()
        self._results: deque[_RoundResult] = deque()
        self._turn = 0

    @property
    def idle(self) -> bool:
        """Whether every neuron drawn so far is finished."""
        return self.scheduler.idle

    def progress(self, num_neurons: int) -> float:
        """Part of the images that are made, in [0, 1], as if every neuron took all it may."""
        most = self.scheduler.rounds.max_images
        earlier = sum(active.earlier for active in self.scheduler.active)
        return (self.counters.neurons * most + earlier) / max(num_neurons * most, 1)

    def turn(
        self, neurons: Iterator[Neuron], num_steps: int, optimizer: Optimizer
    ) -> list[FinishedNeuron]:
        """Refill the pool, climb, and take out what is finished.

        Args:
            neurons: Where neurons are drawn from as there is room for them.
            num_steps: Steps of the pool, > 0.
            optimizer: Moves the latents.

        Returns:
            The neurons that are finished.
        """
        self._turn += 1
        with self.watch("refill"):
            self._refill(neurons, optimizer)
        if any(self._tasks):
            with self.watch("ascent"):
                for _ in range(num_steps):
                    self.pool.climb()
                    optimizer.step()
                self._ask_status()
            self.counters.slot_steps += num_steps * self.pool.size
        with self.watch("harvest"):
            return self._harvest()

    def run(
        self, neurons: Sequence[Neuron], num_steps: int, optimizer: Optimizer
    ) -> Iterator[FinishedNeuron]:
        """Take turns until neurons are finished, without a trainer.

        Args:
            neurons: Each once.
            num_steps: Steps of the pool in a turn, > 0.
            optimizer: Moves the latents.

        Yields:
            The neurons, in the order in which they finish.
        """
        source, last = iter(neurons), self.counters.neurons + len(neurons)
        while self.counters.neurons < last:
            yield from self.turn(source, num_steps, optimizer)

    def _refill(self, neurons: Iterator[Neuron], optimizer: Optimizer) -> None:
        free = [slot for slot, task in enumerate(self._tasks) if task is None]
        tasks = self.scheduler.take(len(free), neurons)
        if not tasks:
            return
        slots = free[: len(tasks)]
        for slot, task in zip(slots, tasks, strict=True):
            self._tasks[slot], self._counted[slot] = task, 0
            self._by_depth[slot] = self.pool.by_depth
        entries = [self._entry(task) for task in tasks]
        optimizer.reset(self.pool.refill(slots, entries, self._targets(tasks)))

    def _entry(self, task: ImageTask) -> Slot:
        active, ascent = task.active, self.pool.ascent
        image = active.earlier + task.index
        stream = "probe" if active.is_probe else "image"
        return Slot(
            key=stream_key(self.seed, active.neuron, stream, image, task.attempt),
            active_index=active.index,
            max_steps=ascent.max_steps,
            # Nothing repels the first images.
            explore_steps=ascent.explore_steps if active.earlier else 0,
        )

    def _targets(self, tasks: list[ImageTask]) -> Targets:
        pool, scales = self.pool, self.scheduler.scales
        neurons = [task.active.neuron for task in tasks]
        return make_targets(neurons, pool.subject.shapes, scales, pool.num_components)

    def _ask_status(self) -> None:
        pool = self.pool
        copy = HostCopy(pool.running, pool.broken, pool.steps, pool.start)
        self._statuses.append(_SlotStatus(self._turn, list(self._tasks), copy))

    @torch.no_grad()
    def _harvest(self) -> list[FinishedNeuron]:
        """Empty the slots that are done; judge the rounds that are, end the neurons that are."""
        # With nothing left to climb there is nothing to be ahead of.
        due = self._turn - (self.lag if any(self._tasks) else 0)
        finished = []
        with arithmetic("float32", self.pool.latents.device):
            while self._statuses and self._statuses[0].turn <= due:
                complete = self._empty_slots(self._statuses.popleft())
                with self.watch("embed"):
                    for active in complete:
                        self._judge_round(active)
            while self._results and self._results[0].turn <= due:
                finished.append(self._decide(self._results.popleft()))
        return [neuron for neuron in finished if neuron is not None]

    def _empty_slots(self, status: _SlotStatus) -> list[ActiveNeuron]:
        """Take finished images from their slots; the neurons whose round they complete."""
        running, broken, steps, starts = (value.tolist() for value in status.copy.get())
        # A slot that was emptied since has another image, or none.
        there = [
            (slot, task)
            for slot, task in enumerate(status.tasks)
            if task is not None and task is self._tasks[slot]
        ]
        for slot, _ in there:
            self.counters.image_steps += steps[slot] - self._counted[slot]
            self._counted[slot] = steps[slot]
        done = [(slot, task) for slot, task in there if not running[slot]]
        complete: list[ActiveNeuron] = []
        if done:
            decoded = _quantise(self.pool.decoder(self.pool.latents))
        for slot, task in done:
            self._tasks[slot] = None
            if broken[slot] and not self._by_depth[slot] and len(self.pool.subject.layers) > 1:
                # It may have been broken by a layer that only others read.
                self.pool.by_depth = True
                self.scheduler.repeat(task)
                continue
            buffer = task.active.buffer
            # A retried image overwrites what its broken try left.
            buffer.current[task.index] = (decoded[slot], starts[slot], broken[slot])
            buffer.steps += steps[slot]
            if self.scheduler.give_back(task, is_broken=broken[slot]):
                complete.append(task.active)
        return complete

    def _judge_round(self, active: ActiveNeuron) -> None:
        judged = self.judge.judge(active, self.scheduler.rounds.round_size)
        self.counters.images += active.round_size
        self._results.append(_RoundResult(self._turn, active, HostCopy(*judged)))

    def _decide(self, result: _RoundResult) -> FinishedNeuron | None:
        """End a neuron whose images are enough, or ask for another round of it."""
        active = result.active
        value, similarity = result.copy.get()
        if active.is_probe:
            self._end_probe(active, value)
            return None
        active.similarities.append(similarity.item())
        reason = self._stop_reason(active)
        if not reason:
            self.scheduler.next_round(active)
            return None
        self.pool.previous_optima.forget(active.index)
        self.scheduler.finish(active)
        self.counters.neurons += 1
        return active.buffer.finish(active.neuron, active.scales, reason)

    def _stop_reason(self, active: ActiveNeuron) -> StopReason | None:
        """Why the neuron is finished after this round; None where it is not."""
        rounds = self.scheduler.rounds
        if active.num_images >= rounds.max_images:
            return "max_images"
        if self.judge.reference is None or active.num_images < rounds.min_images:
            return None
        return "elbow" if rounds.elbow(active.similarities) else None

    def _end_probe(self, active: ActiveNeuron, value: Tensor) -> None:
        """Note the scale of a component: from random images to the median of its ascents.

        Where one ascent in three goes far higher than the others, the best would make the
        component too weak against its partners.
        """
        offset = active.buffer.baseline
        reached = value[value.isfinite()]
        gain = reached.median().item() - offset if len(reached) else 0.0
        # A component that cannot be moved keeps its own units; in a max it then never wins.
        scale = Scale(offset, gain if gain > 0 else 1.0)
        self.scheduler.set_scale(active.neuron.components[0], scale)
        self.scheduler.finish(active)
        self.counters.probes += 1


def _quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: what is stored is what is scored."""
    return (images * 255.0).round().to(torch.uint8)
