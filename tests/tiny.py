"""Networks small enough to score in a second; named in configurations as ``tiny:subject``."""

import torch
from torch import nn

PREPROCESSING = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "input_size": (3, 32, 32)}


def _seeded(net: nn.Module, seed: int) -> nn.Module:
    """Weights of unit gain, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            module.weight.data.normal_(0, (2 / fan_in) ** 0.5, generator=generator)
            module.bias.data.zero_()
    net.pretrained_cfg = PREPROCESSING
    return net


def subject() -> nn.Module:
    """Three convolutions, the last rectified, and a classifier."""
    layers = [
        ("conv1", nn.Conv2d(3, 8, 3, 2, 1)),
        ("act1", nn.ReLU()),
        ("conv2", nn.Conv2d(8, 16, 3, 2, 1)),
        ("act2", nn.ReLU()),
        ("conv3", nn.Conv2d(16, 24, 3, 1, 1)),
        ("act3", nn.ReLU(inplace=True)),
        ("pool", nn.AdaptiveAvgPool2d(1)),
        ("flatten", nn.Flatten()),
        ("fc", nn.Linear(24, 10)),
    ]
    net = nn.Sequential()
    for name, layer in layers:
        net.add_module(name, layer)
    return _seeded(net, 1)


def dying() -> nn.Module:
    """A subject with a rectified channel that can wake, one that cannot, and one that is NaN.

    Channel 0 of ``act`` is on for bright images only, channel 1 never, channel 2 is NaN for
    half of all images, channel 3 always.
    """
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 4, 3, 1, 1))
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    _seeded(net, 2)
    with torch.no_grad():
        net.conv.weight[0] = 1 / 27
        net.conv.bias[0] = -0.4
        net.conv.weight[1] = 1 / 27
        net.conv.bias[1] = -5.0
    return net


def embedder() -> nn.Module:
    """Two convolutions to 20 pooled features."""
    net = nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 5),
    )
    return _seeded(net, 3)
