"""Finished images to embeddings, and embeddings to the frame that they are compared in."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from polylight.augment import on_grey
from polylight.errors import InputError, nearest
from polylight.models import Model, list_layers
from polylight.models.layers import noise
from polylight.subject import Subject

# Of the second view of an image: its side, as a part of the whole, on grey.
_FAR = 0.625
# Those of a reference's attributes that hold a tensor a module.
_TABLES = ("layer_start", "layer_std", "below_mean", "below_std")


class Embedder(nn.Module):
    """Embeds images by what a network hands to its classifier: its last maps, pooled.

    The maps are pooled by their root mean square, not by their mean: a feature counts where it
    is, and a large background for less (generalized-mean pooling; Radenović, Tolias & Chum 2019).
    A network that does not end by averaging maps gives what its classifier reads.

    It looks twice, from near and, mirrored, from farther off, and gives the mean: what two images
    of one feature differ in by chance counts for less.

    Args:
        model: A classifier whose last linear layer reads one vector an image.

    Raises:
        InputError: If the network has no such layer.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.size = model.input_size
        layers = list_layers(model, self.size)
        heads = [x for x in layers if x.kind == "Linear" and not x.size]
        if not heads:
            raise InputError(
                f"'{model.name}' cannot embed images: an embedder ends with a linear layer that "
                "reads one vector an image. Take a classifier such as resnet18 or "
                "efficientnet_lite2."
            )
        head = heads[-1].name
        maps = [x.name for x in layers if len(x.size) == 2 and min(x.size) > 1]
        self.net = Subject(model, [*maps[-1:], head], self.size)
        self.net.net.get_submodule(head).register_forward_pre_hook(self._catch)
        self._caught: list[Tensor] = []
        self._pools = len(self.net.layers) == 2 and self._averages()

    def _catch(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._caught.append(given[0])

    def _averages(self) -> bool:
        """Whether what the classifier reads is the mean over the last maps."""
        last, read = self._look(noise(self.net, self.size))
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
            images: float32 [B, 3, H, W] in [0, 1]; resized to what the network was trained with.

        Returns:
            float32 [B, D].
        """
        both = torch.cat([images, _from_afar(images)])
        size = (self.size, self.size)
        maps, read = self._look(F.interpolate(both, size=size, mode="bilinear", antialias=True))
        if self._pools:
            read = maps.square().mean((2, 3)).sqrt()
        near, far = read.chunk(2)
        return (near + far) / 2


def _from_afar(images: Tensor) -> Tensor:
    """Images mirrored, shrunk, and in a grey frame of the size that they had."""
    side = images.shape[-1]
    small = 2 * round(side * _FAR / 2)
    size = (small, small)
    shrunk = F.interpolate(images.flip(-1), size=size, mode="bilinear", antialias=True)
    return on_grey(shrunk, side)


@dataclass(frozen=True, eq=False)
class Reference:
    """The frame of a subject and an embedder, from images of a fixed sample of its neurons.

    Embeddings of unrelated images share a large mean, which would make them look alike. That of
    the reference images is taken away, so that unrelated ones are about at right angles. The
    neuron's own mean is never used: it would hide that all its images are alike.

    Attributes:
        key: Hash of all that the reference was made from.
        mean: float32 [D], of the reference images' embeddings.
        layer_start: By layer of the subject, float32 [C]: mean pooled activation of the random
            images that ascents start from.
        layer_std: Likewise, the standard deviation over the reference images.
        below_mean: By convolution and linear layer of the subject that does not read the image
            itself, float32 [C]: mean of its pooled input over the reference images of neurons of
            about the same depth (:class:`polylight.below.LayerBelow`).
        below_std: Likewise, their standard deviation.
    """

    key: str
    mean: Tensor
    layer_start: dict[str, Tensor]
    layer_std: dict[str, Tensor]
    below_mean: dict[str, Tensor] = field(default_factory=dict)
    below_std: dict[str, Tensor] = field(default_factory=dict)

    def frame(self, embeddings: Tensor) -> Tensor:
        """Centre and normalise embeddings [..., D]: unit vectors [..., D]."""
        return F.normalize(embeddings - self.mean, dim=-1)

    def join(self, embeddings: Tensor, below: Tensor) -> Tensor:
        """Put both views of some images side by side, each of length 1: what the score compares.

        The cosine of two images is then the mean of how alike they are to the embedder and to the
        layer below. Where nothing is below, the embedder's view is all there is.

        Args:
            embeddings: float [..., D], raw.
            below: float [..., C] of any C that the subject has, in standard deviations
                (:class:`polylight.below.LayerBelow`).

        Returns:
            Unit vectors [..., D + W], W the largest C of the subject: an image's arithmetic
            does not depend on which layers are there.
        """
        width = max((mean.shape[0] for mean in self.below_mean.values()), default=0)
        seen = F.pad(F.normalize(below, dim=-1), (0, max(0, width - below.shape[-1])))
        return F.normalize(torch.cat([self.frame(embeddings), seen.to(embeddings)], -1), dim=-1)

    def layer_table(self, layers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tabulate the statistics of some layers.

        Args:
            layers: Names of layers.

        Returns:
            Start and standard deviation, padded to the widest layer: two float32 [L, C].

        Raises:
            InputError: If a layer has no statistics: it returns what another layer returns.
        """
        for name in layers:
            if name not in self.layer_start:
                raise InputError(
                    f"layer '{name}' only hands on what another layer returns, so its neurons "
                    f"are that layer's; {nearest(name, self.layer_start)}."
                )
        width = max(self.layer_start[name].shape[0] for name in layers)
        start, std = torch.zeros(len(layers), width), torch.ones(len(layers), width)
        for row, name in enumerate(layers):
            channels = self.layer_start[name].shape[0]
            start[row, :channels] = self.layer_start[name]
            std[row, :channels] = self.layer_std[name]
        return start, std

    def to(self, device: torch.device | str) -> "Reference":
        """The same reference with what views are compared by on another device."""

        def move(values: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: value.to(device) for name, value in values.items()}

        return replace(
            self,
            mean=self.mean.to(device),
            below_mean=move(self.below_mean),
            below_std=move(self.below_std),
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; :meth:`load` gives back every bit."""
        tensors = {"mean": self.mean}
        for kind in _TABLES:
            tensors |= {f"{kind}.{name}": value for name, value in getattr(self, kind).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        # Other processes may be making the same reference at the same time.
        temporary = path.with_name(f".{path.name}-{socket.gethostname()}-{os.getpid()}")
        contiguous = {name: t.cpu().contiguous() for name, t in tensors.items()}
        save_file(contiguous, temporary, metadata={"key": self.key})
        temporary.replace(path)

    @staticmethod
    def load(path: Path) -> "Reference":
        """Read what :meth:`save` wrote."""
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            key = file.metadata()["key"]

        def table(kind: str) -> dict[str, Tensor]:
            prefix = f"{kind}."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return Reference(key, tensors["mean"], *map(table, _TABLES))
