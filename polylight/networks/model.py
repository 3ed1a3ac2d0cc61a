"""A frozen network and what it expects of its images."""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polylight.networks.images import crop


@dataclass(frozen=True, eq=False)
class Model:
    """A frozen network, what it expects of its images, and which weights it has."""

    name: str
    """The name that it was loaded by."""
    net: nn.Module
    """The network, in eval mode, without gradients on its weights; it is called with images."""
    mean: tuple[float, ...]
    """Mean of each channel, of images in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, of images in [0, 1]."""
    input_size: int
    """Side of the square images that it was trained with, in pixels: the longer side of what it
    sees."""
    weights_hash: str
    """Hex digest of the names and bytes of all weights."""
    source: str
    """Where the weights come from: packaged, torchvision, timm, local-dir, hf-hub, hub, checkpoint,
    random, factory or live."""
    window: tuple[int, int] | None = None
    """Height and width of what it sees of images of ``input_size``: their middle. None for all."""
    options: str = ""
    """Keyword arguments that it was built with, as JSON; empty for none."""

    @property
    def channels(self) -> int:
        """Number of channels of its images."""
        return len(self.mean)

    def window_at(self, image_size: int) -> tuple[int, int] | None:
        """Say what the network sees of images of any size.

        Args:
            image_size: Side of the square images, in pixels.

        Returns:
            Height and width of the middle that it sees; None for all.
        """
        if self.window is None or self.window[0] == self.window[1]:
            return None
        height, width = (round(side * image_size / self.input_size) for side in self.window)
        return height, width

    def identity(self) -> dict[str, str]:
        """Name, source, hash of the weights, and options if any, for the record of a run."""
        record = {"name": self.name, "source": self.source, "weights_hash": self.weights_hash}
        return {**record, "options": self.options} if self.options else record

    def preprocess(self, images: Tensor) -> Tensor:
        """Cut out what the network sees, and normalise it; nothing is resized.

        Args:
            images: Float [B, channels, H, H] in [0, 1].

        Returns:
            (images - mean) / std, of the same dtype; of the same shape but for a ``window``.
        """
        mean = images.new_tensor(self.mean)[:, None, None]
        std = images.new_tensor(self.std)[:, None, None]
        return (crop(images, self.window_at(images.shape[-1])) - mean) / std


def hash_weights(net: nn.Module) -> str:
    """Hash the weights of a network.

    Args:
        net: Any network, on any device.

    Returns:
        A hex digest of 16 bytes of the names, dtypes, shapes and bytes of its state dict, the
        same on every machine of the same byte order.
    """
    digest = hashlib.blake2b(digest_size=16)
    for key, tensor in net.state_dict().items():
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


def append_arguments(net: nn.Module, further: tuple[Any, ...]) -> None:
    """Let a network that takes more than images be called with images alone.

    Args:
        net: The network; changed in place, as are its later copies.
        further: Positional arguments of its forward after the first. A tensor has a batch axis of
            1, and is repeated for every image.
    """
    if further:
        net.register_forward_pre_hook(_Further(further))


class _Further:
    """A forward hook that appends arguments."""

    def __init__(self, values: tuple[Any, ...]) -> None:
        self.values = values
        # A copy to a GPU for each forward would wait for it.
        self.there: dict[tuple[torch.device, torch.dtype], tuple[Any, ...]] = {}

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        images = args[0]
        place = images.device, images.dtype
        if place not in self.there:
            self.there[place] = tuple(_like(value, images) for value in self.values)
        batch = len(images)
        values = [
            v.expand(batch, *v.shape[1:]) if isinstance(v, Tensor) else v for v in self.there[place]
        ]
        return (*args, *values)


def _like(value: Any, images: Tensor) -> Any:
    """A tensor on the device of the images and, where it is of floating point, of their type."""
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(images.device, images.dtype if value.is_floating_point() else None)
