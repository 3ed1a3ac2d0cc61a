"""What a network in memory expects of its images: given, found, or taken for ImageNet's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polylight.errors import InputError

_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET_SIZE = 224
# Sides that networks are trained at, the usual one first.
_SIDES = (_IMAGENET_SIZE, 32, 28, 64, 48, 96, 128, 160, 192, 240, 256, 288, 299, 384, 448, 512)


@dataclass(frozen=True)
class FoundPreprocessing:
    """What a network expects, and where that comes from.

    Attributes:
        mean: Of each channel, of images in [0, 1].
        std: Likewise.
        input_size: Side of the square images, in pixels.
        window: Height and width of their middle that the network sees; None for all.
        said: All of it in a line, for the log.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    window: tuple[int, int] | None
    said: str


def find_preprocessing(
    net: nn.Module,
    mean: float | Sequence[float] | None,
    std: float | Sequence[float] | None,
    input_size: int | None,
    example: Tensor | None,
) -> FoundPreprocessing:
    """Find out what a network expects of its images.

    Args:
        net: The network, frozen, on the CPU.
        mean: As :func:`polylight.networks.live.model_from_module` takes it, like the others.
        std: Likewise.
        input_size: Likewise.
        example: Likewise.

    Returns:
        What it expects.

    Raises:
        InputError: If what was given does not fit.
    """
    config, home = _config(net)
    channels = _channels(net, config, example)
    if (mean is None) != (std is None):
        raise InputError("give mean and std together, or neither of them.")
    if mean is not None and std is not None:
        values, source = (_each(mean, channels, "mean"), _each(std, channels, "std")), "as given"
    elif _normalises(net):
        values, source = ((0.0,) * channels, (1.0,) * channels), "as the network normalises itself"
    elif len(config.get("mean", ())) == len(config.get("std", ())) == channels:
        values, source = (tuple(config["mean"]), tuple(config["std"])), home
    elif channels == 3:
        values, source = _IMAGENET, "ImageNet's, as none was given"
    else:
        values, source = ((0.5,) * channels, (0.5,) * channels), "for [-1, 1], as none was given"
    if any(not math.isfinite(v) for v in values[0]) or any(not 0 < v < math.inf for v in values[1]):
        raise InputError(f"expected finite mean and std > 0, got {values[0]} and {values[1]}.")
    size, size_source = _input_size(net, config, home, channels, input_size, example)
    figures = [", ".join(f"{v:.3g}" for v in value) for value in values]
    window = _window(config, example, size)
    said = f"mean {figures[0]}; std {figures[1]} ({source}); {size} px ({size_source})"
    return FoundPreprocessing(*values, size, window, said)


def _config(net: nn.Module) -> tuple[Mapping[str, Any], str]:
    """What the network, or the first part of it that knows, says of its images; and who says so."""
    for path, module in net.named_modules():
        for key in ("pretrained_cfg", "default_cfg"):
            config = getattr(module, key, None)
            config = config.to_dict() if config and hasattr(config, "to_dict") else config
            if isinstance(config, Mapping) and ("mean" in config or "input_size" in config):
                return config, f"its {key}" if not path else f"{key} of {path}"
        if (weights := _torchvision_weights(module)) is not None:
            known = weights.transforms()
            size = (3, *known.crop_size * 2)[:3]
            config = {"mean": known.mean, "std": known.std, "input_size": size}
            return config, f"torchvision's {weights}"
    return {}, ""


def _torchvision_weights(net: nn.Module) -> Any:
    """The published weights of the classifier of torchvision that has the same parameters."""
    home = type(net).__module__
    if not home.startswith("torchvision.models."):
        return None
    from torchvision import models

    names = models.list_models(module=models)
    names = [n for n in names if models.get_model_builder(n).__module__ == home]
    shapes = {key: value.shape for key, value in net.state_dict().items()}

    def alike(name: str) -> int:
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            other = models.get_model(name, weights=None, **quick).state_dict()
        # A classifier of other classes makes no other architecture.
        same = [key for key, value in other.items() if shapes.get(key) == value.shape]
        return 2 * len(same) - len(other)

    if not names:
        return None
    best = max(names, key=alike) if len(names) > 1 else names[0]
    return models.get_model_weights(best).DEFAULT


def _normalises(net: nn.Module) -> bool:
    """Whether a part of the network takes a mean away and divides by a deviation."""
    for module in net.modules():
        kind = type(module).__name__.lower()
        if "normali" in kind and hasattr(module, "mean") and hasattr(module, "std"):
            return True
    return False


def _channels(net: nn.Module, config: Mapping[str, Any], example: Tensor | None) -> int:
    """Channels of the images."""
    if example is not None:
        if example.ndim != 4:
            raise InputError(f"example has to be [B, C, H, W], got {list(example.shape)}.")
        return int(example.shape[1])
    if len(config.get("input_size", ())) == 3:
        return int(config["input_size"][0])
    first = _first(net)
    if isinstance(first, nn.Conv2d):
        return first.in_channels
    if isinstance(first, nn.Linear):
        return 1 if math.isqrt(first.in_features) ** 2 == first.in_features else 3
    return 3


def _first(net: nn.Module) -> nn.Module | None:
    """The first layer of the network that has a say in the shape of its input."""
    return next((m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear)), None)


def _input_size(
    net: nn.Module,
    config: Mapping[str, Any],
    home: str,
    channels: int,
    given: int | None,
    example: Tensor | None,
) -> tuple[int, str]:
    """Side of the images, in pixels, and where that comes from."""
    if given is not None:
        if given < 1:
            raise InputError(f"input_size has to be at least 1 pixel, got {given}.")
        return given, "as given"
    if example is not None:
        return max(example.shape[-2:]), "of the example"
    for module in net.modules():
        # Vision transformers of timm, of torchvision, of transformers: they take no other size.
        known = (module, getattr(module, "patch_embed", None), getattr(module, "config", None))
        for holder, key in zip(known, ("image_size", "img_size", "image_size"), strict=True):
            size = getattr(holder, key, None)
            size = max(size) if isinstance(size, tuple | list) and size else size
            if isinstance(size, int) and size > 0:
                return size, f"{key} of {type(module).__name__}"
    if len(config.get("input_size", ())) == 3:
        return int(max(config["input_size"][1:])), home
    first = _first(net)
    if isinstance(first, nn.Linear):
        side = math.isqrt(first.in_features // channels)
        if channels * side * side == first.in_features:
            return side, f"what its first layer reads, {first.in_features} numbers"
    works = next((side for side in _SIDES if _runs(net, channels, side)), None)
    if works is None:
        return _IMAGENET_SIZE, "as none was given"
    return works, "as none was given" if works == _IMAGENET_SIZE else "the first size that it takes"


def _window(config: Mapping[str, Any], example: Tensor | None, size: int) -> tuple[int, int] | None:
    """Height and width of an input that is not square, at the size of its longer side."""
    shape = config.get("input_size", ()) if example is None else example.shape[1:]
    if len(shape) != 3 or shape[1] == shape[2]:
        return None
    height, width = (round(side * size / max(shape[1:])) for side in shape[1:])
    return height, width


def _runs(net: nn.Module, channels: int, side: int) -> bool:
    """Whether the network takes an image of a size."""
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            net(torch.full((1, channels, side, side), 0.5))
    # Whatever a third party's forward raises of a size that it does not take.
    except Exception:
        return False
    return True


def _each(value: float | Sequence[float], channels: int, name: str) -> tuple[float, ...]:
    """One number for each channel."""
    values = tuple(map(float, value)) if isinstance(value, Sequence) else (float(value),) * channels
    if len(values) != channels:
        raise InputError(
            f"{name} has {len(values)} numbers, but the images have {channels} channels; give one "
            "for each, or a single one."
        )
    return values
