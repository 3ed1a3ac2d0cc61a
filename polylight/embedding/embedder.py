"""Finished images to embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polylight.errors import InputError
from polylight.networks import Model, list_layers
from polylight.networks.images import from_picture
from polylight.networks.layers import Layer, noise
from polylight.networks.subject import Subject
from polylight.networks.tracing import elements
from polylight.neurons import Address

# Of the second view of an image: its side, as a part of the whole, on grey.
_FAR = 0.625


class Embedder(nn.Module):
    """Embeds images by what a network hands to its classifier: its last maps, pooled.

    The maps are pooled by their root mean square, not by their mean: a feature counts where it
    is, and a large background for less (generalized-mean pooling; Radenović, Tolias & Chum 2019).
    A network that does not end by averaging maps gives what its classifier reads.

    It looks twice, from near and, mirrored, from farther off, and gives the mean: what two images
    of one feature differ in by chance counts for less.

    A plain one looks once, and gives what the classifier reads: of a ResNet, its last maps pooled
    by their mean.

    A network without a classifier, such as a vision transformer that was trained without labels,
    gives the vector that it returns.

    Args:
        model: A network that ends with a linear layer or a 1x1 convolution that reads one vector an
            image, or that returns one.
        plain: Whether it is a plain one.

    Raises:
        InputError: If the network has no such vector.
    """

    def __init__(self, model: Model, *, plain: bool = False) -> None:
        super().__init__()
        self.size, self.channels, self.plain = model.input_size, model.channels, plain
        layers = list_layers(model, self.size)
        head = _classifier(model.net, layers)
        if head is None:
            model = replace(model, net=_Headless(model.net))
            layers = list_layers(model, self.size)
            head = layers[-1].name if layers else ""
            if head != _Headless.HEAD or layers[-1].size:
                raise InputError(
                    f"'{model.name}' cannot embed images: an embedder ends with a layer that reads "
                    "one vector an image, or returns one. Take a network such as resnet18 or "
                    "efficientnet_lite2."
                )
        maps = [x.name for x in layers if len(x.size) == 2 and min(x.size) > 1]
        self.net = Subject(model, [*maps[-1:], head], self.size, climbed=False)
        self.net.net.get_submodule(head).register_forward_pre_hook(self._catch)
        self._caught: list[Tensor] = []
        self._pools = len(self.net.layers) == 2 and self._averages()

    def _catch(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        self._caught.append(_vector(given[0]))

    def _averages(self) -> bool:
        """Whether what the classifier reads is the mean over the last maps."""
        last, read = self._look(noise(self.net, self.size, self.channels))
        if last.ndim != 4 or last.shape[:2] != read.shape:
            return False
        return torch.allclose(last.mean((2, 3)), read, rtol=1e-3, atol=1e-5)

    @torch.no_grad()
    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last maps [B, C, H, W], and what the classifier reads [B, D]."""
        self._caught.clear()
        maps = self.net(images)[0].post
        return maps.float(), self._caught.pop().float()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: float32 [B, 3, H, W] in [0, 1]; resized to what the network was trained with,
                and turned grey for one of a single channel.

        Returns:
            float32 [B, D].
        """
        images = from_picture(images, self.channels)
        seen = images if self.plain else torch.cat([images, _from_afar(images)])
        size = (self.size, self.size)
        maps, read = self._look(F.interpolate(seen, size=size, mode="bilinear", antialias=True))
        if self.plain:
            return read
        if self._pools:
            read = maps.square().mean((2, 3)).sqrt()
        near, far = read.chunk(2)
        return (near + far) / 2


class _Headless(nn.Module):
    """A network that returns a vector, which a last module hands through."""

    HEAD = "head"

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.head = net, _Vector()

    def forward(self, *args: Any) -> Any:
        return self.head(self.net(*args))


class _Vector(nn.Module):
    def forward(self, output: Any) -> Any:
        return _vector(output)


def _vector(output: Any) -> Any:
    """The only vector an image, [B, D], of what a network returns, or else its first tensor."""
    tensors = list(elements(output).values())
    vectors = [x for x in tensors if x.ndim > 1 and x[0].numel() == x.shape[1]]
    return vectors[0].flatten(1) if len(vectors) == 1 else tensors[0] if tensors else output


def _classifier(net: nn.Module, layers: Sequence[Layer]) -> str | None:
    """The last linear layer, or convolution, that reads one vector an image, after all maps."""
    last_map = max((i for i, x in enumerate(layers) if max(x.size, default=1) > 1), default=-1)
    heads = [
        x.name
        for x in layers[last_map + 1 :]
        if isinstance(net.get_submodule(Address.parse(x.name).module), nn.Linear | nn.Conv2d)
    ]
    return heads[-1] if heads else None


def _from_afar(images: Tensor) -> Tensor:
    """Images mirrored, shrunk, and in a grey frame of the size that they had."""
    side = images.shape[-1]
    small = 2 * round(side * _FAR / 2)
    size = (small, small)
    shrunk = F.interpolate(images.flip(-1), size=size, mode="bilinear", antialias=True)
    return on_grey(shrunk, side)


def on_grey(images: Tensor, side: int) -> Tensor:
    """Put images into the middle of grey ones.

    Args:
        images: float [N, 3, H, H] in [0, 1].
        side: Of the grey ones, in pixels; what does not fit is cut off.

    Returns:
        float [N, 3, side, side].
    """
    border = side - images.shape[-1]
    before, after = border // 2, border - border // 2
    return torch.nn.functional.pad(images, [before, after, before, after], value=0.5)
