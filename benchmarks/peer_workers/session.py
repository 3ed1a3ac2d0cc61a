"""What a peer's worker serves: prepare an ascent, climb, hand the images over."""

import copy
import dataclasses
import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.peer_workers.pipe import Packed, pack, serve
from polylight.networks import Model, load_model

MODEL, LAYER = "efficientnet_lite0", "blocks.4"
SIZE = 128
"""Side of the images, and of what the network sees of them, in pixels."""
JITTER, ZOOM, ROTATE = 8, 0.1, 5
"""Shift either way in pixels, part of the size either way, degrees either way."""


class Renderer(Protocol):
    """How a peer is used."""

    def __call__(
        self, model: Model, channels: Sequence[int], steps: int, device: torch.device
    ) -> Tensor:
        """Climb from the start.

        Args:
            model: The network, on the device, and its preprocessing.
            channels: Channels of ``LAYER``, one for each image.
            steps: Steps, > 0.
            device: Where.

        Returns:
            Float [channels, 3, SIZE, SIZE] in [0, 1].
        """


class Session:
    """One peer's ascents, one after another.

    Args:
        renderers: Ways of using it, by name.
        device: Where.
    """

    def __init__(self, renderers: Mapping[str, Renderer], device: torch.device) -> None:
        self._renderers, self._device = renderers, device
        self._loaded: Model | None = None

    @property
    def tasks(self) -> dict[str, Callable[..., Any]]:
        """What is served."""
        return {t.__name__: t for t in (self.threads, self.prepare, self.climb, self.images)}

    def threads(self) -> int:
        """Threads that torch works with."""
        return torch.get_num_threads()

    def prepare(self, channels: list[int], renderer: str, frozen: bool) -> list[int]:
        """Get ready to climb.

        Args:
            channels: One for each image.
            renderer: How the peer is used.
            frozen: Whether the weights of the network need no gradient. Model libraries hand
                networks out with weights that do.

        Returns:
            The channels.
        """
        if self._loaded is None:
            self._loaded = load_model(MODEL)
        # A copy, as some peers leave their hooks behind, which the next call would pay for.
        net = copy.deepcopy(self._loaded.net).to(self._device).requires_grad_(not frozen)
        self._model = dataclasses.replace(self._loaded, net=net)
        self._channels, self._render = channels, self._renderers[renderer]
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002 - what the peers draw from
        torch.manual_seed(0)
        return channels

    def climb(self, steps: int) -> dict[str, float]:
        """Climb from the start.

        Returns:
            How many image-steps it was, and the seconds that they took.
        """
        began = time.perf_counter()
        images = self._render(self._model, self._channels, steps, self._device)
        self._images = images.detach().float().cpu()
        seconds = time.perf_counter() - began
        if self._images.shape != (len(self._channels), 3, SIZE, SIZE):
            raise RuntimeError(f"the peer made images of shape {list(self._images.shape)}")
        return {"image_steps": float(steps * len(self._channels)), "seconds": seconds}

    def images(self) -> Packed:
        """The images that were made last."""
        return pack(self._images.numpy())


def find_device() -> torch.device:
    """The GPU, where the process sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def serve_peer(**renderers: Renderer) -> None:
    """Serve the ways of using a peer until standard input ends."""
    serve(Session(renderers, find_device()).tasks)
