"""Lucent: ``render_vis``, with a batch as a sum of channels, as its notebooks have it.

Its transforms are drawn once for the whole batch, and its jitter does not crop: the image with
its border, a little larger, is resized to what the network sees.
"""

from collections.abc import Sequence

import torch
from lucent.optvis import objectives, param, render, transform
from torch import Tensor

from benchmarks.peer_workers.session import JITTER, LAYER, ROTATE, SIZE, ZOOM, serve_peer
from polylight.networks import Model

_BORDER = 12
"""Width of the border that the standard transforms add, in pixels."""


def render_equal(model: Model, channels: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Transforms and size as polylight has them."""
    moves = [
        transform.pad(JITTER, mode="constant", constant_value=0.5),
        transform.jitter(2 * JITTER),
        transform.random_scale([1 + ZOOM * (i - 5) / 5 for i in range(11)]),
        transform.random_rotate(list(range(-ROTATE, ROTATE + 1))),
    ]
    return _render(model, channels, steps, moves, SIZE)


def render_defaults(
    model: Model, channels: Sequence[int], steps: int, device: torch.device
) -> Tensor:
    """All defaults, so the network sees images enlarged to 224 pixels."""
    return _render(model, channels, steps, transform.standard_transforms, None)


def render_to_scale(
    model: Model, channels: Sequence[int], steps: int, device: torch.device
) -> Tensor:
    """All defaults, but nothing is enlarged: the network sees the image and its border as is."""
    return _render(model, channels, steps, transform.standard_transforms, SIZE + 2 * _BORDER)


def _render(
    model: Model, channels: Sequence[int], steps: int, moves: list[object], seen: int | None
) -> Tensor:
    """The network's own preprocessing takes the place of Lucent's, which is another network's."""
    layer = LAYER.replace(".", "_")
    parts = [objectives.channel(layer, c, batch=i) for i, c in enumerate(channels)]
    (images,) = render.render_vis(
        model.net,
        objectives.Objective.sum(parts),
        lambda: param.image(SIZE, batch=len(channels)),
        transforms=[*moves, model.preprocess],
        preprocess=False,
        thresholds=(steps,),
        progress=False,
        show_image=False,
        fixed_image_size=seen,
    )
    return torch.from_numpy(images).permute(0, 3, 1, 2)


if __name__ == "__main__":
    serve_peer(equal=render_equal, defaults=render_defaults, to_scale=render_to_scale)
