"""Networks so small that thousands of neurons are scored in minutes; their weights are random."""

import torch
from torch import nn

CHANNELS = 4096


def subject() -> nn.Module:
    """Two convolutions, and ``wide``, a third one of 4,096 channels."""
    net = nn.Sequential()
    net.add_module("stem", nn.Conv2d(3, 16, 3, 2, 1))
    net.add_module("stem_act", nn.ReLU())
    net.add_module("body", nn.Conv2d(16, 32, 3, 4, 1))
    net.add_module("body_act", nn.ReLU())
    net.add_module("wide", nn.Conv2d(32, CHANNELS, 1))
    return _seeded(net, 1)


def embedder() -> nn.Module:
    """Two convolutions to 64 pooled features, and a classifier."""
    net = nn.Sequential(
        nn.Conv2d(3, 32, 5, 2, 2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return _seeded(net, 2)


def _seeded(net: nn.Sequential, seed: int) -> nn.Module:
    """Weights of unit gain, the same on every call, for images of mean and deviation 0.5."""
    generator = torch.Generator().manual_seed(seed)
    for module in net:
        if isinstance(module, nn.Conv2d | nn.Linear):
            scale = (2 / module.weight[0].numel()) ** 0.5
            nn.init.normal_(module.weight, std=scale, generator=generator)
            for bias in (p for name, p in module.named_parameters() if name == "bias"):
                nn.init.zeros_(bias)
    half = (0.5, 0.5, 0.5)
    # Where models of timm say what they expect; nn.Module is typed to hold tensors only.
    vars(net)["pretrained_cfg"] = {"mean": half, "std": half, "input_size": (3, 32, 32)}
    return net
