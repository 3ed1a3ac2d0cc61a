"""DreamLens: ``maximize_channels``, one image a channel; moves are drawn once for the batch."""

from collections.abc import Sequence

import torch
from dreamlens import FeatureVisualizer, RenderConfig, TransformConfig
from torch import Tensor

from benchmarks.peer_workers.session import JITTER, LAYER, ROTATE, SIZE, ZOOM, serve_peer
from polylight.networks import Model


def render_equal(model: Model, channels: Sequence[int], steps: int, device: torch.device) -> Tensor:
    """Transforms and size as polylight has them; shifts count in halves of the image."""
    visualizer = FeatureVisualizer(
        model.net, quiet=True, device=device, preprocess=model.preprocess
    )
    shift = 2 * JITTER / SIZE
    config = RenderConfig(
        width=SIZE,
        height=SIZE,
        steps=steps,
        transform=TransformConfig(
            rotate_degrees=ROTATE,
            scale_min=1 - ZOOM,
            scale_max=1 + ZOOM,
            translate_x=shift,
            translate_y=shift,
        ),
    )
    images: Tensor = visualizer.maximize_channels(LAYER, channels, config=config).image.as_nchw()
    return images


if __name__ == "__main__":
    serve_peer(equal=render_equal)
