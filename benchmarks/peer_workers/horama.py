"""Horama: ``fourier``, which makes one image at a time.

Its batch are crops of that image, two at least: as large as the image, zoomed as with the others,
shifted with a standard deviation of 15 % of its side, which cannot be changed, and never rotated.
Each crop is counted as an image-step, though a step makes but one image better.
"""

from collections.abc import Sequence

import torch
from horama import fourier
from torch import Tensor

from benchmarks.peer_workers.session import LAYER, SIZE, ZOOM, serve_peer
from polylight.networks import Model


def render_equal(model: Model, channels: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Zoom and size as polylight has them, no noise; the same channel for each crop."""
    channel = channels[0]
    caught: list[Tensor] = []
    layer = model.net.get_submodule(LAYER)
    handle = layer.register_forward_hook(lambda module, given, output: caught.append(output))

    def objective(images: Tensor) -> Tensor:
        model.net(model.preprocess(images))
        return caught.pop()[:, channel].mean()

    image: Tensor
    image, _ = fourier(
        objective,
        total_steps=steps,
        image_size=SIZE,
        model_input_size=SIZE,
        noise=0.0,
        values_range=(0.0, 1.0),
        crops_per_iteration=len(channels),
        # Its crops are drawn from b .. b + (b - a), for a box_size of (a, b).
        box_size=(1 - 3 * ZOOM, 1 - ZOOM),
        device=device,
    )
    handle.remove()
    return image.expand(len(channels), -1, -1, -1)


if __name__ == "__main__":
    serve_peer(equal=render_equal)
