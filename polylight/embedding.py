"""Finished images to embeddings, and embeddings to the frame that they are compared in."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from polylight.errors import InputError, nearest
from polylight.models import Model, list_layers
from polylight.subject import Subject


class Embedder(nn.Module):
    """Embeds images by what a network hands to its classifier: its pooled features.

    Args:
        model: A classifier whose last linear layer reads one vector an image.

    Raises:
        InputError: If the network has no such layer.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.size = model.input_size
        heads = [x for x in list_layers(model, self.size) if x.kind == "Linear" and not x.size]
        if not heads:
            raise InputError(
                f"'{model.name}' cannot embed images: an embedder ends with a linear layer that "
                "reads one vector an image. Take a classifier such as resnet18 or "
                "efficientnet_lite2."
            )
        self.net = Subject(model, [heads[-1].name], self.size)
        head = self.net.net.get_submodule(heads[-1].name)
        head.register_forward_pre_hook(self._catch)
        self._caught: list[Tensor] = []

    def _catch(self, _: nn.Module, given: tuple[Tensor, ...]) -> None:
        self._caught.append(given[0])

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Embed images.

        Args:
            images: float32 [B, 3, H, W] in [0, 1]; resized to what the network was trained with.

        Returns:
            float32 [B, D].
        """
        size = (self.size, self.size)
        self._caught.clear()
        self.net(F.interpolate(images, size=size, mode="bilinear", antialias=True))
        return self._caught.pop().float()


@dataclass(frozen=True, eq=False)
class Reference:
    """The frame of a subject and an embedder, from images of a fixed sample of its neurons.

    Embeddings of unrelated images share a large mean; centred by that of the reference images
    and projected on their principal axes, they are comparable. The neuron's own mean and axes
    are never used: they would hide that all its images are alike.

    Attributes:
        key: Hash of all that the reference was made from.
        mean: float32 [D], of the reference images' embeddings.
        axes: float32 [A, D], orthonormal, in falling order of variance.
        layer_mean: By layer of the subject, float32 [C]: mean pooled activation.
        layer_std: Likewise, the standard deviation.
    """

    key: str
    mean: Tensor
    axes: Tensor
    layer_mean: dict[str, Tensor]
    layer_std: dict[str, Tensor]

    def frame(self, embeddings: Tensor) -> Tensor:
        """Centre, project and normalise embeddings [..., D]: unit vectors [..., A]."""
        centred = embeddings - self.mean
        # A matrix product rounds as its size bids; these sums are the same in any company.
        projected = torch.stack([(centred * axis).sum(-1) for axis in self.axes], dim=-1)
        return F.normalize(projected, dim=-1)

    def layer_table(self, layers: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Tabulate the statistics of some layers.

        Args:
            layers: Names of layers.

        Returns:
            Mean and standard deviation, padded to the widest layer: two float32 [L, C].

        Raises:
            InputError: If a layer has no statistics: it returns what another layer returns.
        """
        for name in layers:
            if name not in self.layer_mean:
                raise InputError(
                    f"layer '{name}' only hands on what another layer returns, so its neurons "
                    f"are that layer's; {nearest(name, self.layer_mean)}."
                )
        width = max(self.layer_mean[name].shape[0] for name in layers)
        mean, std = torch.zeros(len(layers), width), torch.ones(len(layers), width)
        for row, name in enumerate(layers):
            channels = self.layer_mean[name].shape[0]
            mean[row, :channels] = self.layer_mean[name]
            std[row, :channels] = self.layer_std[name]
        return mean, std

    def to(self, device: torch.device | str) -> "Reference":
        """The same reference with its frame on another device."""
        return Reference(
            self.key, self.mean.to(device), self.axes.to(device), self.layer_mean, self.layer_std
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; :meth:`load` gives back every bit."""
        tensors = {"mean": self.mean, "axes": self.axes}
        for name, mean in self.layer_mean.items():
            tensors[f"layer_mean.{name}"] = mean
            tensors[f"layer_std.{name}"] = self.layer_std[name]
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

        def layers(kind: str) -> dict[str, Tensor]:
            prefix = f"layer_{kind}."
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        return Reference(key, tensors["mean"], tensors["axes"], layers("mean"), layers("std"))
