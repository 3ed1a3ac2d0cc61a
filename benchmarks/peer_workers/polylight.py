"""polylight: a pool as the engine runs it, and the judge of everybody's images."""

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.ascent import ascent, build_pool
from benchmarks.peer_workers.pipe import Packed, pack, serve, unpack
from benchmarks.peer_workers.session import LAYER, MODEL, SIZE, find_device
from polylight.ascent.allocator import keep_freed_memory
from polylight.ascent.augmentation import identity
from polylight.ascent.objective import make_targets
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.pool import Pool
from polylight.ascent.presets import PRESETS
from polylight.ascent.settings import Slot
from polylight.kernels import stream_key
from polylight.networks import load_model
from polylight.networks.subject import Subject
from polylight.neurons import Component, Neuron

_PRESET = PRESETS["fast"]


class Session:
    """Ascents of pools, and looks at images.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._subject = Subject(load_model(MODEL), [LAYER], SIZE).to(self._device)
        self._pools: dict[int, tuple[Pool, Callable[[int], float], Callable[[], None]]] = {}

    @property
    def tasks(self) -> dict[str, Callable[..., Any]]:
        """What is served."""
        named = (self.threads, self.prepare, self.climb, self.images, self.judge, self.follow)
        return {t.__name__: t for t in named}

    def threads(self) -> int:
        """Threads that torch works with."""
        return torch.get_num_threads()

    def prepare(self, channels: list[int], renderer: str, frozen: bool) -> list[int]:
        """Fill a pool of as many slots as there are channels with new images.

        Its neurons are always those of the benchmark of the ascent, its weights always frozen.

        Returns:
            The channel of each slot.
        """
        size = len(channels)
        if size not in self._pools:
            pool = self._new_pool(size)
            self._pools[size] = (pool, *ascent(pool))
        self._pool, self._climb, refill = self._pools[size]
        refill()
        return [int(c) for c in self._pool.target_channel[:, 0].tolist()]

    def climb(self, steps: int) -> dict[str, float]:
        """Go on climbing.

        Args:
            steps: A multiple of four.

        Returns:
            How many image-steps it was, and the seconds that they took.
        """
        began = time.perf_counter()
        image_steps = self._climb(steps)
        return {"image_steps": image_steps, "seconds": time.perf_counter() - began}

    @torch.no_grad()
    def images(self) -> Packed:
        """The images of the pool that was prepared last."""
        return pack(self._pool.decoder(self._pool.latents).cpu().numpy())

    @torch.no_grad()
    def judge(self, images: Packed, channels: list[int]) -> list[float]:
        """Look at clean images.

        Args:
            images: Float32 [B, 3, SIZE, SIZE] in [0, 1].
            channels: One for each.

        Returns:
            The mean activation of each image's channel.
        """
        shown = torch.from_numpy(unpack(images)).to(self._device)
        return self._look(shown, torch.tensor(channels, device=self._device))

    def follow(self, channels: list[int], first: int, stride: int) -> dict[str, Any]:
        """Climb until all images of a pool have stopped, with looks that are not timed.

        Args:
            channels: One for each slot.
            first: Number of the first image; other numbers start from other latents.
            stride: Steps between two looks.

        Returns:
            ``seconds`` of a step; ``steps`` and ``activation`` at each look, [looks][slots].
        """
        pool = self._new_pool(len(channels))
        optimizer = ImageAdam.of(pool)
        neurons = [Neuron((Component(LAYER, c),)) for c in channels]
        entries = [
            Slot(
                key=stream_key("peers", neuron, first + slot),
                active_index=slot,
                max_steps=pool.ascent.max_steps,
                explore_steps=pool.ascent.explore_steps,
            )
            for slot, neuron in enumerate(neurons)
        ]
        targets = make_targets(neurons, pool.subject.shapes, {}, 1)
        optimizer.reset(pool.refill(range(len(channels)), entries, targets))
        at = pool.target_channel[:, 0]
        seconds, steps, activation = 0.0, [], []
        while bool(pool.running.any()):
            began = time.perf_counter()
            for _ in range(stride):
                pool.climb()
                optimizer.step()
            steps.append([int(s) for s in pool.steps.tolist()])  # waits for a GPU
            seconds += time.perf_counter() - began
            with torch.no_grad():
                activation.append(self._look(pool.decoder(pool.latents), at))
        return {
            "seconds": seconds / (stride * len(steps)),
            "steps": steps,
            "activation": activation,
        }

    def _new_pool(self, size: int) -> Pool:
        return build_pool(self._subject, _PRESET, size).to(self._device)

    def _look(self, images: torch.Tensor, channels: torch.Tensor) -> list[float]:
        fixed = identity(len(images), self._device)
        seen = self._subject.look(images, fixed)[0].post
        rows = torch.arange(len(images), device=self._device)
        return [float(v) for v in seen[rows, channels].flatten(1).mean(1).tolist()]


if __name__ == "__main__":
    keep_freed_memory()
    serve(Session(find_device()).tasks)
