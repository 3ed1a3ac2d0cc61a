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


def flat() -> nn.Module:
    """A classifier that reads its maps place by place, without averaging them."""
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 6, 5, 8, 2))
    net.add_module("act", nn.ReLU())
    net.add_module("flatten", nn.Flatten())
    net.add_module("fc", nn.Linear(6 * 16, 4))
    return _seeded(net, 6)


def normed() -> nn.Module:
    """A subject with batch norms that are far from the identity."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, 1, 1),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 6),
    )
    _seeded(net, 4)
    generator = torch.Generator().manual_seed(4)
    for norm in (net[1], net[4]):
        norm.weight.data.uniform_(0.5, 2.0, generator=generator)
        norm.running_var.uniform_(0.2, 3.0, generator=generator)
        norm.bias.data.normal_(0, 0.5, generator=generator)
        norm.running_mean.normal_(0, 0.5, generator=generator)
    return net


class Fragile(nn.Module):
    """Turns channel 2 of an image to NaN where its mean is below zero, and channel 4 always."""

    def forward(self, x):
        lost = torch.zeros_like(x[:, :, :1, :1], dtype=torch.bool)
        lost[:, 2] = (x[:, 2].mean((1, 2)) < 0)[:, None, None]
        lost[:, 4] = True
        return x.masked_fill(lost, torch.nan)


def dying() -> nn.Module:
    """A subject whose rectified channels can wake, cannot, and turn non-finite.

    Channel 0 of ``act`` is on for bright images only, channel 1 never, channel 2 is NaN for
    half of all images, channel 3 is as usual, channel 4 always NaN.
    """
    net = nn.Sequential()
    net.add_module("conv", nn.Conv2d(3, 5, 3, 1, 1))
    net.add_module("fragile", Fragile())
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 2)))
    _seeded(net, 2)
    with torch.no_grad():
        net.conv.weight[0] = 1 / 27
        net.conv.bias[0] = -0.1
        net.conv.weight[1] = 1 / 27
        net.conv.bias[1] = -5.0
    return net


def spoilt() -> nn.Module:
    """A subject whose last convolution overflows both ways, so nothing of it is finite."""
    net = subject()
    nn.init.constant_(net.conv3.weight, 3e38)
    net.conv3.weight.data[:, ::2] *= -1
    return net


def headless() -> nn.Module:
    """A network without a classifier; its linear layer reads maps, not one vector an image."""
    return _seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Linear(30, 5)), 5)


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
