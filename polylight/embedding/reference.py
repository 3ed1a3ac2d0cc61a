"""The reference statistics that embeddings and layer inputs are centred and scaled by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

from polylight.errors import InputError, nearest
from polylight.neurons import Address
from polylight.run.atomic import write_atomically

# Those of a reference's attributes that hold a tensor a module.
_TABLES = ("layer_start", "layer_std", "input_mean", "input_std")


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
        input_mean: By convolution and linear layer of the subject that does not read the image
            itself, float32 [C]: mean of its pooled input over the reference images of neurons of
            about the same depth (:class:`polylight.embedding.layer_input.LayerInput`).
        input_std: Likewise, their standard deviation.
    """

    key: str
    mean: Tensor
    layer_start: dict[str, Tensor]
    layer_std: dict[str, Tensor]
    input_mean: dict[str, Tensor] = field(default_factory=dict)
    input_std: dict[str, Tensor] = field(default_factory=dict)

    def uncentred(self) -> "Reference":
        """The same, under which raw embeddings are compared by their cosine and nothing else is."""
        return replace(self, mean=torch.zeros_like(self.mean), input_mean={}, input_std={})

    @classmethod
    def neutral(cls, dims: int, channels: Mapping[str, int]) -> "Reference":
        """A reference that moves and scales nothing.

        Args:
            dims: Length of an embedding.
            channels: By name, how many channels each layer has.

        Returns:
            The reference, of mean 0 and deviation 1.
        """
        start = {Address.parse(name).measured: torch.zeros(c) for name, c in channels.items()}
        return cls("", torch.zeros(dims), start, {n: torch.ones_like(s) for n, s in start.items()})

    def frame(self, embeddings: Tensor) -> Tensor:
        """Centre and normalise embeddings [..., D]: unit vectors [..., D]."""
        return F.normalize(embeddings - self.mean, dim=-1)

    def join(self, embeddings: Tensor, layer_input: Tensor) -> Tensor:
        """Put both views of some images side by side, each of length 1: what the score compares.

        The cosine of two images is then the mean of how alike they are to the embedder and to the
        layer input. Where there is no layer input, the embedder's view is all there is.

        Args:
            embeddings: float [..., D], raw.
            layer_input: float [..., C] of any C that the subject has, in standard deviations
                (:class:`polylight.embedding.layer_input.LayerInput`).

        Returns:
            Unit vectors [..., D + W], W the largest C of the subject: an image's arithmetic
            does not depend on which layers are there.
        """
        width = max((mean.shape[0] for mean in self.input_mean.values()), default=0)
        seen = F.pad(F.normalize(layer_input, dim=-1), (0, max(0, width - layer_input.shape[-1])))
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
        # Every call of a layer has the statistics of its last, a dictionary those of its layer.
        keys = [Address.parse(name).measured for name in layers]
        for name, key in zip(layers, keys, strict=True):
            if key not in self.layer_start:
                raise InputError(
                    f"layer '{name}' only hands on what another layer returns, so its neurons "
                    f"are that layer's; {nearest(name, self.layer_start)}."
                )
        width = max(self.layer_start[key].shape[0] for key in keys)
        start, std = torch.zeros(len(layers), width), torch.ones(len(layers), width)
        for row, name in enumerate(keys):
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
            input_mean=move(self.input_mean),
            input_std=move(self.input_std),
        )

    def save(self, path: Path) -> None:
        """Write a safetensors file, whole or not at all; :meth:`load` gives back every bit."""
        tensors = {"mean": self.mean}
        for kind in _TABLES:
            tensors |= {f"{kind}.{name}": value for name, value in getattr(self, kind).items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        contiguous = {name: t.cpu().contiguous() for name, t in tensors.items()}
        content = save(contiguous, metadata={"key": self.key})
        write_atomically(path, lambda file: file.write(content))

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
