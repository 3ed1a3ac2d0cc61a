"""Neurons in, finished neurons out: the pool, the queue and the embedder working together."""

from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from polylight.ascent.buffer import FinishedNeuron, ImageBuffer
from polylight.ascent.objective import Scale, Targets, make_targets
from polylight.ascent.pool import Pool
from polylight.ascent.precision import arithmetic
from polylight.ascent.scheduler import PROBE_IMAGES, ActiveNeuron, ImageTask, Scheduler
from polylight.ascent.settings import Slot
from polylight.ascent.transfer import HostCopy, to_device
from polylight.embedding.embedder import Embedder
from polylight.embedding.layer_input import LayerInput
from polylight.embedding.reference import Reference
from polylight.kernels import stream_key
from polylight.neurons import Neuron
from polylight.run.schema import StopReason
from polylight.stopwatch import Stopwatch


@dataclass(eq=False)
class _Report:
    """How the slots stood after a turn, on its way to the host."""

    turn: int
    tickets: list[ImageTask | None]
    copy: HostCopy  # running, broken, steps and start, [B] each
    slot_steps: int  # of the turn, while more images were waiting; else 0


@dataclass(eq=False)
class _Verdict:
    """What decides how a flight goes on after a round, on its way to the host."""

    turn: int
    flight: ActiveNeuron
    copy: HostCopy  # activations of the round [N], and the mean similarity of all images, []


class Engine:
    """Runs the neurons of a queue through a pool.

    On a GPU the host stays a turn ahead of the device: how slots stand and how similar images
    have become is looked at a turn after it was asked for, when it has long arrived. What a
    neuron gets does not depend on that.

    Args:
        pool: The slots.
        queue: The neurons.
        embedder: Embeds finished images.
        layer_input: Shows them as the layer below their neuron sees them.
        reference: What the elbow compares images by; this and ``below`` are None where rounds do
            not matter.
        seed: Seed of the run.
        watch: Where the time goes.
        lag: Turns between asking and looking; None for 1 on a GPU, else 0.
    """

    def __init__(
        self,
        pool: Pool,
        queue: Scheduler,
        embedder: Embedder,
        layer_input: LayerInput | None,
        reference: Reference | None,
        seed: int,
        watch: Stopwatch,
        lag: int | None = None,
    ) -> None:
        self.pool, self.queue, self.embedder, self.layer_input = pool, queue, embedder, layer_input
        self.reference, self.seed, self.watch = reference, seed, watch
        self.lag = int(pool.latents.is_cuda) if lag is None else lag
        self._tickets: list[ImageTask | None] = [None] * pool.size
        self._counted = [0] * pool.size  # steps of each slot's image that are counted
        self._gathered: dict[ActiveNeuron, ImageBuffer] = defaultdict(ImageBuffer)
        self._reports: deque[_Report] = deque()
        self._verdicts: deque[_Verdict] = deque()
        self._turn = 0
        self.neurons = self.probes = self.images = self.image_steps = 0
        # Until the queue has nothing more to give: steps that moved an image, and all there were.
        self.busy_steps = self.slot_steps = 0

    @property
    def occupancy(self) -> float:
        """Part of the slots that did useful work, until the queue had nothing more to give."""
        return self.busy_steps / self.slot_steps if self.slot_steps else 1.0

    @property
    def progress(self) -> float:
        """Part of the images that are made, in [0, 1], as if every neuron took all it may."""
        most = self.queue.rounds.max_images
        done = self.neurons * most + self.probes * PROBE_IMAGES
        done += sum(flight.earlier for flight in self._gathered)
        return done / max(self.queue.total * most + self.queue.total_probes * PROBE_IMAGES, 1)

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
        self._turn += 1
        with self.watch("refill"):
            self._refill()
        if any(self._tickets):
            with self.watch("ascent"):
                for _ in range(num_steps):
                    step(self.pool.ascend)
                self._report(num_steps)
        with self.watch("harvest"):
            return self._harvest()

    def _refill(self) -> None:
        free = [slot for slot, ticket in enumerate(self._tickets) if ticket is None]
        tickets = self.queue.take(len(free))
        if not tickets:
            return
        slots = free[: len(tickets)]
        for slot, ticket in zip(slots, tickets, strict=True):
            self._tickets[slot], self._counted[slot] = ticket, 0
        self.pool.refill(slots, [self._entry(t) for t in tickets], self._targets(tickets))

    def _entry(self, ticket: ImageTask) -> Slot:
        flight, ascent = ticket.flight, self.pool.ascent
        image = flight.earlier + ticket.index
        stream = "probe" if flight.probe else "image"
        return Slot(
            key=stream_key(self.seed, flight.neuron, stream, image, ticket.attempt),
            active_index=flight.active_index,
            max_steps=ascent.max_steps,
            # Nothing repels the first images.
            explore_steps=ascent.explore_steps if flight.earlier else 0,
        )

    def _targets(self, tickets: list[ImageTask]) -> Targets:
        subject = self.pool.subject
        neurons = [t.flight.neuron for t in tickets]
        return make_targets(
            neurons, subject.layers, subject.sizes, self.queue.scales, self.pool.num_components
        )

    def _report(self, num_steps: int) -> None:
        """Ask how the slots stand after the steps of a turn."""
        pool = self.pool
        copy = HostCopy(pool.running, pool.broken, pool.steps, pool.start)
        slot_steps = num_steps * pool.size if self.queue.waiting else 0
        self._reports.append(_Report(self._turn, list(self._tickets), copy, slot_steps))

    @torch.no_grad()
    def _harvest(self) -> list[FinishedNeuron]:
        """Empty the slots that are through; embed the rounds and end the neurons that are."""
        # With nothing left to climb there is nothing to be ahead of.
        due = self._turn - (self.lag if any(self._tickets) else 0)
        with arithmetic("float32", self.pool.latents.device):
            while self._reports and self._reports[0].turn <= due:
                complete = self._empty(self._reports.popleft())
                with self.watch("embed"):
                    for flight in complete:
                        self._close_round(flight)
            finished = []
            while self._verdicts and self._verdicts[0].turn <= due:
                finished.append(self._decide(self._verdicts.popleft()))
        return [neuron for neuron in finished if neuron is not None]

    def _empty(self, report: _Report) -> list[ActiveNeuron]:
        """Take the images that are through from their slots; the flights whose round they end."""
        running, broken, steps, starts = (value.tolist() for value in report.copy.get())
        # A slot that was emptied since has another image, or none.
        there = [
            (slot, ticket)
            for slot, ticket in enumerate(report.tickets)
            if ticket is not None and ticket is self._tickets[slot]
        ]
        useful = sum(steps[slot] - self._counted[slot] for slot, _ in there)
        for slot, _ in there:
            self._counted[slot] = steps[slot]
        self.image_steps += useful
        self.slot_steps += report.slot_steps
        self.busy_steps += useful if report.slot_steps else 0
        done = [(slot, ticket) for slot, ticket in there if not running[slot]]
        complete: list[ActiveNeuron] = []
        if done:
            decoded = _quantise(self.pool.decoder(self.pool.latents))
        for slot, ticket in done:
            self._tickets[slot] = None
            gathered = self._gathered[ticket.flight]
            # A retried image overwrites what its broken try left.
            gathered.round[ticket.index] = (decoded[slot], starts[slot], broken[slot])
            gathered.steps += steps[slot]
            if self.queue.give_back(ticket, broken=broken[slot]):
                complete.append(ticket.flight)
        return complete

    def _close_round(self, flight: ActiveNeuron) -> None:
        """Judge and embed the images of a round, and ask for what decides how it goes on."""
        pool, gathered = self.pool, self._gathered[flight]
        device, count = pool.latents.device, flight.round_size
        stored, starts, broken = zip(*(gathered.round[i] for i in range(count)), strict=True)
        images = torch.stack(stored)
        # Every round of a neuron is a batch of one size: the same arithmetic in any batch.
        size = max(self.queue.rounds.round_size, count)
        batch = torch.zeros(size, *images.shape[1:], device=device)
        batch[:count] = images / 255.0
        still = pool.augmentation.still(len(batch), pool.parametrization.size, device)
        targets = self._targets([ImageTask(flight, 0)] * len(batch)).to(device)
        index = pool.subject.layers.index
        layers = {index(component.layer) for component in flight.neuron.components}
        readings = pool.see(batch, still, targets, layers)
        lost = to_device(torch.tensor(broken), device)
        value = torch.where(lost, torch.nan, readings.value[:count])
        inactive = readings.inactive[:count]
        self.images += count
        gathered.round.clear()
        gathered.starts += [s for s, b in zip(starts, broken, strict=True) if not b]
        similarity = value.new_ones(())
        if not flight.probe:
            alive = value.isfinite() & ~inactive
            features = readings.features[:count]
            rows = Targets(*(t[:count] for t in targets))
            pool.previous.remember(flight.active_index, features, rows, alive, layers)
            gathered.images.append(images)
            gathered.embeddings.append(self.embedder(batch)[:count])
            gathered.activations.append(value)
            gathered.inactive.append(inactive)
            gathered.component.append(readings.component[:count])
            gathered.layer_input.append(self._see_below(batch, flight.neuron)[:count])
            if self.reference is not None:
                views = torch.cat(gathered.embeddings), torch.cat(gathered.layer_input)
                similarity = mean_pairwise_cosine(self.reference.join(*views))
        self._verdicts.append(_Verdict(self._turn, flight, HostCopy(value, similarity)))

    def _see_below(self, images: Tensor, neuron: Neuron) -> Tensor:
        """Layer input of a neuron's first component, [B, C]; [B, 0] where nothing compares."""
        if self.layer_input is None or self.reference is None:
            return images.new_zeros(len(images), 0)
        seen: Tensor = self.layer_input(images, neuron.components[0].layer, self.reference)
        return seen

    def _decide(self, verdict: _Verdict) -> FinishedNeuron | None:
        """End a neuron whose images are enough, or send it on another round."""
        flight = verdict.flight
        value, similarity = verdict.copy.get()
        if flight.probe:
            self._end_probe(flight, value)
            return None
        flight.similarities.append(similarity.item())
        reason = self._stop_reason(flight)
        if not reason:
            self.queue.next_round(flight)
            return None
        gathered = self._gathered.pop(flight)
        self.pool.previous.forget(flight.active_index)
        self.queue.land(flight)
        self.neurons += 1
        return gathered.finish(flight.neuron, reason)

    def _stop_reason(self, flight: ActiveNeuron) -> StopReason | None:
        """Why the neuron is through after this round; None where it is not."""
        rounds = self.queue.rounds
        if flight.total >= rounds.max_images:
            return "max_images"
        if self.reference is None or flight.total < rounds.min_images:
            return None
        return "elbow" if rounds.elbow(flight.similarities) else None

    def _end_probe(self, flight: ActiveNeuron, value: Tensor) -> None:
        """Note the scale of a component: from what random images give to the median of its ascents.

        Where one ascent in three goes far higher than the others, the best would make the component
        too weak against its partners.
        """
        offset = self._gathered.pop(flight).baseline
        reached = value[value.isfinite()]
        gain = reached.median().item() - offset if len(reached) else 0.0
        # A component that cannot be moved keeps its own units; in a max it then never wins.
        scale = Scale(offset, gain if gain > 0 else 1.0)
        self.queue.set_scale(flight.neuron.components[0], scale)
        self.queue.land(flight)
        self.probes += 1


def mean_pairwise_cosine(units: Tensor) -> Tensor:
    """Mean cosine over the pairs of unit vectors [N, A]: float64 []; 1 where there is no pair."""
    count = units.shape[0]
    if count < 2:
        return units.new_ones((), dtype=torch.float64)
    return (units.double().sum(0).square().sum() - count) / (count * (count - 1))


def _quantise(images: Tensor) -> Tensor:
    """Images in [0, 1] as uint8: what is stored is what is scored."""
    return (images * 255.0).round().to(torch.uint8)
