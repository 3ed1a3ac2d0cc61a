"""How many images climb at once: what is fastest, and what fits."""

import logging
import time
from collections.abc import Callable

import torch

from polylight.ascent.objective import make_targets
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.pool import Pool
from polylight.ascent.settings import Slot
from polylight.neurons import Neuron

_logger = logging.getLogger(__name__)

# Multiples of 8: of other sizes, vectorised operations round the last images unlike the others.
_CANDIDATES = {"cpu": (8, 16, 32), "cuda": (32, 64, 128, 256, 512, 1024)}
_STEPS = 4
# A smaller pool ends sooner when the queue is empty, so a larger one has to be worth it.
_WORTH = 1.03
# Once this part of the best rate is lost, a larger pool is not going to be faster.
_LOST = 0.9


def choose_pool_size(build: Callable[[int], Pool], neuron: Neuron, most: int) -> int:
    """Measure a few pool sizes and pick the fastest, or a smaller one that is nearly as fast.

    Args:
        build: Makes a pool of a size on the device.
        neuron: What its slots climb; one of the deepest layer, as that takes most memory.
        most: Images that there are to make: a pool larger than that stays empty.

    Returns:
        Slots; of the sizes that fit into memory.

    Raises:
        torch.OutOfMemoryError: If not even the smallest fits.
    """
    best_size, best = 0, 0.0
    device = build(1).latents.device
    candidates = _CANDIDATES.get(device.type, _CANDIDATES["cpu"])
    for index, size in enumerate(candidates):
        try:
            rate = size / _seconds_per_step(build(size), neuron)
        except torch.OutOfMemoryError:
            if not index:
                raise
            break
        if rate > best * _WORTH:
            best_size, best = size, rate
        if rate < best * _LOST or size >= most:
            break
    return best_size


def build_fitting(build: Callable[[int], Pool], size: int, neuron: Neuron) -> Pool:
    """Build a pool; one of half the slots, and so on, where a GPU's memory is too small for it.

    Args:
        build: Makes a pool of a size on the device.
        size: Slots that are wished for.
        neuron: What its slots climb while it is tried.

    Returns:
        An empty pool.

    Raises:
        torch.OutOfMemoryError: If not even one slot fits.
    """
    wished = size
    while True:
        try:
            _seconds_per_step(build(size), neuron, steps=1)
            pool = build(size)
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size //= 2
            # What the failed try still holds would keep the next from fitting.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        if size < wished:
            _logger.warning(
                "%d images at a time do not fit into memory; going on with %d", wished, size
            )
        return pool


def _seconds_per_step(pool: Pool, neuron: Neuron, steps: int = _STEPS) -> float:
    """Seconds that a step of a full pool takes, the fastest of a few after one that warms up."""
    optimizer = ImageAdam.of(pool)
    slots = list(range(pool.size))
    # A component alone costs what a composite does, and needs no scale.
    alone = [Neuron((neuron.components[0],))] * pool.size
    targets = make_targets(alone, pool.subject.shapes, {}, pool.num_components)
    entries = [Slot(s, s, pool.ascent.max_steps, 0) for s in slots]
    optimizer.reset(pool.refill(slots, entries, targets))
    times = []
    for _ in range(1 + steps):
        _wait(pool)
        began = time.perf_counter()
        pool.climb()
        optimizer.step()
        _wait(pool)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def _wait(pool: Pool) -> None:
    device = pool.latents.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
