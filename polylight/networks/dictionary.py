"""Directions, and latents of sparse autoencoders, in the activation space of a layer."""

import json
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from polylight.errors import InputError
from polylight.networks.checkpoint import read_checkpoint
from polylight.networks.model import hash_weights
from polylight.networks.taps import LayerActivation
from polylight.neurons import Address

# By the name of an encoder's weights, as SAELens, dictionary_learning and Gao et al. call them, or
# of a linear layer alone: the names of its bias, and of what is taken from its input first.
_ENCODERS = {
    "W_enc": (("b_enc",), ("b_dec",)),
    "encoder.weight": (("encoder.bias", "b_enc", "latent_bias"), ("b_dec", "pre_bias", "bias")),
    "weight": (("bias",), ("b_dec",)),
}
_SETTINGS = ("k", "apply_b_dec_to_input")
_EXPECTED = {
    "direction": "expected one tensor [vectors, channels], or one named vectors.",
    "sae": "expected the weights of an encoder, encoder.weight [latents, channels] or W_enc "
    "[channels, latents]; and, where there are any, encoder.bias or b_enc [latents], b_dec "
    "[channels] and threshold [latents].",
}


class Dictionary(nn.Module):
    """Reads vectors off a layer, at every position.

    A direction gives the inner product v · a of the vector as it stands in the file with the
    activation a. The latents of a sparse autoencoder are z = W (a - b_dec) + b_enc, then rectified:
    ReLU, max(z, 0); TopK, the k largest of a position and above 0 (Gao et al. 2024); or JumpReLU, z
    where z > threshold (Rajamanoharan et al. 2024).

    Args:
        weight: [n, C].
        bias: [n].
        rectified: Whether latents are rectified; directions are not.
        threshold: [n], of a JumpReLU; None without.
        k: Of a TopK; None for all.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        rectified: bool,
        threshold: Tensor | None = None,
        k: int | None = None,
    ) -> None:
        super().__init__()
        self.rectified, self.k = rectified, k
        for name, value in (("weight", weight), ("bias", bias), ("threshold", threshold)):
            self.register_buffer(name, None if value is None else value.float().contiguous())

    @classmethod
    def read(cls, address: Address, channels: int) -> "Dictionary":
        """Read the dictionary of an address from its file.

        Directions are the only tensor of a file, [n, C], or the one named ``vectors`` or
        ``directions``. Of an encoder, ``W_enc`` [C, n] or ``encoder.weight`` [n, C] is needed;
        ``b_enc`` or ``encoder.bias``, ``b_dec``, ``threshold`` and ``k`` are taken where there are
        any: ``k`` as a tensor, in the metadata of the file, or in SAELens's ``cfg.json`` beside it.
        ``b_dec`` is taken from the input first, unless ``apply_b_dec_to_input`` is false there.

        Args:
            address: Of a dictionary.
            channels: Number of channels of the layer that it reads.

        Returns:
            The dictionary.

        Raises:
            InputError: If the file is missing, holds no vectors, or vectors of another size.
        """
        asked = address.dictionary
        assert asked is not None
        path = Path(asked.file).expanduser()
        if not path.is_file():
            raise InputError(
                f"there is no file '{path}' of '{address}'. Expected a .safetensors file, or a "
                "state dict that torch.save wrote."
            )
        tensors = read_checkpoint(path)
        found = _directions(tensors) if asked.kind == "direction" else _encoder(tensors, path)
        if found is None:
            raise InputError(f"{path} holds {_listed(tensors)}; {_EXPECTED[asked.kind]}")
        if found.weight.shape[1] != channels:
            layer = address._replace(dictionary=None)
            raise InputError(
                f"the vectors of {path} have {found.weight.shape[1]} numbers, but layer '{layer}' "
                f"has {channels} channels."
            )
        if not all(bool(t.isfinite().all()) for t in found.buffers()):
            raise InputError(f"{path} holds numbers that are not finite.")
        return found

    def forward(self, activation: LayerActivation) -> LayerActivation:
        """Read the vectors off an activation.

        Args:
            activation: Of the layer, channels second, [B, C, ...].

        Returns:
            [B, n, ...], float32, before and after the rectifier.
        """
        read = activation.post
        # Positions before channels: the gradient then comes back in channels-last format. A product
        # of each image by itself: its sums do not depend on the others.
        places = (read.flatten(2) if read.ndim > 2 else read[..., None]).mT.float()
        weight = self.weight.mT.expand(len(places), -1, -1)
        values = torch.baddbmm(self.bias[None, None], places, weight)
        after = self._rectify(values)
        shape = (len(read), -1, *read.shape[2:])
        pre = values.mT.reshape(shape)
        post = pre if after is values else after.mT.reshape(shape)
        return LayerActivation(post, pre, activation.prefix, read)

    def _rectify(self, values: Tensor) -> Tensor:
        """Rectify latents [B, P, n]."""
        if not self.rectified:
            return values
        if self.threshold is not None:
            return torch.where(values > self.threshold, values, 0)
        if self.k is not None and self.k < values.shape[2]:
            smallest = values.topk(self.k, dim=2).values[..., -1:]
            return torch.where(values >= smallest, values, 0).relu()
        return values.relu()

    @property
    def content_hash(self) -> str:
        """Hex digest of all that it gives depends on."""
        parts = f"{hash_weights(self)} {self.rectified} {self.k}"
        return blake2b(parts.encode(), digest_size=16).hexdigest()

    def deviation(self, channel_std: Tensor) -> Tensor:
        """Deviation of every vector's mean value, as if channels were independent.

        Args:
            channel_std: float [C], that of the layer's channels.

        Returns:
            float [n].
        """
        return (self.weight.to(channel_std).square() @ channel_std.square()).sqrt()


def _directions(tensors: Mapping[str, Tensor]) -> Dictionary | None:
    named = [tensors[n] for n in ("vectors", "directions") if n in tensors]
    found = (named or list(tensors.values()))[:1] if named or len(tensors) == 1 else []
    if not found or found[0].ndim != 2:
        return None
    return Dictionary(found[0], torch.zeros(len(found[0])), rectified=False)


def _encoder(tensors: Mapping[str, Tensor], path: Path) -> Dictionary | None:
    if gates := [name for name in tensors if "gate" in name or name == "r_mag"]:
        raise InputError(
            f"{path} is a gated autoencoder ({', '.join(gates)}), which is not read. Expected one "
            "of ReLU, TopK or JumpReLU."
        )
    name = next((name for name in _ENCODERS if name in tensors), None)
    if name is None or tensors[name].ndim != 2:
        return None
    biases, centres = _ENCODERS[name]
    weight = tensors[name].float()
    if name == "W_enc":
        weight = weight.mT
    bias = _first(tensors, biases, torch.zeros(len(weight))).float()
    centre = _first(tensors, centres, torch.zeros(weight.shape[1])).float()
    threshold = tensors.get("threshold")
    if threshold is None and "log_threshold" in tensors:
        threshold = tensors["log_threshold"].exp()
    if threshold is not None and threshold.ndim == 0:
        threshold = threshold.expand(len(weight))
    shapes = [bias.shape, weight.shape[:1] if threshold is None else threshold.shape]
    if any(shape != weight.shape[:1] for shape in shapes) or centre.shape != weight.shape[1:]:
        return None
    metadata = _metadata(path)
    if metadata.get("apply_b_dec_to_input", "true").lower() != "false":
        bias = bias - weight @ centre
    k = metadata.get("k") or (str(tensors["k"].item()) if "k" in tensors else None)
    if k is not None and not (k.isdecimal() and int(k) > 0):
        raise InputError(f"{path} says k = {k}; expected how many latents are kept, at least 1.")
    return Dictionary(
        weight, bias, rectified=True, threshold=threshold, k=None if k is None else int(k)
    )


def _first(tensors: Mapping[str, Tensor], names: Sequence[str], default: Tensor) -> Tensor:
    return next((tensors[name] for name in names if name in tensors), default)


def _metadata(path: Path) -> Mapping[str, str]:
    """What a safetensors file says beside its tensors, or SAELens in a ``cfg.json`` beside it."""
    found: dict[str, str] = {}
    config = path.with_name("cfg.json")
    if config.is_file():
        try:
            said = json.loads(config.read_bytes())
            inner = said.get("activation_fn_kwargs") or {}
            known = {name: said.get(name, inner.get(name)) for name in _SETTINGS}
        except (ValueError, AttributeError) as error:
            raise InputError(f"{config} is no configuration of an encoder ({error}).") from error
        found = {name: str(value) for name, value in known.items() if value is not None}
    if path.suffix == ".safetensors":
        opened: Any = safe_open(path, "pt")
        with opened as file:
            found |= file.metadata() or {}
    return found


def _listed(tensors: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:6]]
    return ", ".join(shown) + (", …" if len(tensors) > len(shown) else "")
