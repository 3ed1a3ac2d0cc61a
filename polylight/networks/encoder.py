"""Directions and sparse autoencoders, as a layer that reads another: their files, and the layer."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from polylight.errors import InputError
from polylight.kernels import to_exact
from polylight.networks.checkpoint import read_checkpoint
from polylight.neurons import Dictionary

# The names that are in use for one thing: those of SAELens, of torch, and of overcomplete.
_WEIGHT = ("W_enc", "encoder.weight", "encoder.final_block.0.weight")
_BIAS = ("b_enc", "encoder.bias", "encoder.final_block.0.bias")
_INPUT_BIAS = ("b_dec", "decoder.bias")
_NORM = "encoder.final_block.1"
_ACTIVATIONS = {"relu": "relu", "standard": "relu", "topk": "topk", "jumprelu": "jumprelu"}


def sparsify(pre: Tensor, threshold: Tensor | None, k: int | None, axis: int) -> Tensor:
    """Rectify the latents of a sparse autoencoder.

    torch's modes see it as a function of its own, so a layer's pre-activations can be read.

    Args:
        pre: Float [..., N, ...], what the encoder returns.
        threshold: Float [N]: JumpReLU (Rajamanoharan et al. 2024), 0 at most it. None for none.
        k: TopK (Gao et al. 2024), 0 but for the k largest of each position. None for all.
        axis: The one that counts latents.

    Returns:
        max(pre, 0) where it passes, otherwise 0.
    """
    if has_torch_function_unary(pre):
        out: Tensor = handle_torch_function(sparsify, (pre,), pre, threshold, k, axis)
        return out
    post = F.relu(pre)
    if threshold is not None:
        shape = [-1 if i == axis else 1 for i in range(pre.ndim)]
        post = torch.where(pre > threshold.view(shape), post, 0)
    if k is not None:
        passes = torch.zeros_like(pre, dtype=torch.bool)
        post = torch.where(passes.scatter(axis, pre.topk(k, axis).indices, True), post, 0)
    return post


class Encoder(nn.Module):
    """Directions or latents at every position of a layer: like a 1x1 convolution that reads it.

    Args:
        weight: float32 [N, C].
        bias: float32 [N].
        is_rectified: Whether what is below zero is cut off.
        threshold: float32 [N], of :func:`sparsify`.
        k: Likewise.
    """

    weight: Tensor
    bias: Tensor
    threshold: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        *,
        is_rectified: bool = True,
        threshold: Tensor | None = None,
        k: int | None = None,
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("bias", bias)
        self.register_buffer("threshold", threshold)
        self.is_rectified, self.k = is_rectified, k
        self.axis = 1
        """The axis of channels of what it reads, and of what it returns."""

    def forward(self, activation: Tensor) -> Tensor:
        """Encode an activation, of which ``axis`` counts channels: of the same layout."""
        if self.axis == 1 and activation.ndim == 4:
            pre = F.conv2d(activation, self.weight[:, :, None, None], self.bias)
        else:
            pre = F.linear(activation.movedim(self.axis, -1), self.weight, self.bias)
            pre = pre.movedim(-1, self.axis)
        return sparsify(pre, self.threshold, self.k, self.axis) if self.is_rectified else pre


def read_encoder(dictionary: Dictionary) -> Encoder:
    """Read the file of a dictionary.

    Directions are one tensor [N, C], the only one of the file or called ``vectors`` or
    ``directions``, and are taken as they are: their length scales what is climbed.

    Of a sparse autoencoder the encoder is read, by the names of SAELens (``W_enc`` [C, N],
    ``b_enc``, ``b_dec``, ``threshold``), of torch (``encoder.weight`` [N, C], ``encoder.bias``,
    ``decoder.bias``) or of overcomplete (its linear encoder, whose batch norm is folded, and
    ``thresholds``, of which it takes the exponential). The bias of the decoder is subtracted from
    the activation first unless ``apply_b_dec_to_input`` is false, as in SAELens. ``k`` makes it
    TopK, a threshold JumpReLU, and neither ReLU. ``k``, ``activation`` and
    ``apply_b_dec_to_input`` are read from the metadata of a safetensors file, or from SAELens's
    ``cfg.json`` beside it; ``k`` may be a tensor of the file, too.

    Args:
        dictionary: Names the file.

    Returns:
        The layer, in float32.

    Raises:
        InputError: If there is no such file, it would have to run code to load, or it does not
            hold that.
    """
    path = Path(dictionary.file)
    if not path.is_file():
        raise InputError(
            f"there is no file '{path}' of {dictionary.kind}s in '{Path.cwd()}'; give a "
            ".safetensors file, or one that torch.save wrote."
        )
    state = read_checkpoint(path)
    encoder = _directions(state, path) if dictionary.kind == "direction" else _sae(state, path)
    for name, values in encoder.named_buffers():
        if not values.isfinite().all():
            raise InputError(f"{path} holds NaN or infinite numbers ({name}); save it anew.")
    return encoder.eval()


def _directions(state: Mapping[str, Tensor], path: Path) -> Encoder:
    named = [state[name] for name in ("vectors", "directions") if name in state]
    vectors = named[0] if named else next(iter(state.values())) if len(state) == 1 else None
    if vectors is None or vectors.ndim != 2 or not vectors.is_floating_point():
        raise InputError(
            f"{path} holds {_contents(state)}; expected one tensor of directions [number, "
            "channels], the only one or called vectors."
        )
    return Encoder(vectors.float(), torch.zeros(len(vectors)), is_rectified=False)


def _sae(state: Mapping[str, Tensor], path: Path) -> Encoder:
    given = _first(state, _WEIGHT)
    if given is None or given.ndim != 2 or not given.is_floating_point():
        raise InputError(
            f"{path} holds {_contents(state)}; expected the encoder of a sparse autoencoder, as "
            "W_enc [channels, latents] or encoder.weight [latents, channels], with b_enc or "
            "encoder.bias."
        )
    if "b_gate" in state or any(name.startswith("encoder.mlp_blocks") for name in state):
        raise InputError(f"{path} is gated or has hidden layers; expected one linear encoder.")
    weight = to_exact(given.T if "W_enc" in state else given)  # [N, C]
    latents, channels = weight.shape
    settings = _settings(path)
    bias = _vector(state, _BIAS, latents, path)
    norm = {part: state.get(f"{_NORM}.{part}") for part in ("running_mean", "running_var")}
    mean, variance = norm["running_mean"], norm["running_var"]
    if mean is not None and variance is not None:
        scale = (to_exact(variance) + 1e-5).rsqrt()
        scale = scale * _vector(state, (f"{_NORM}.weight",), latents, path, 1.0)
        shift = _vector(state, (f"{_NORM}.bias",), latents, path)
        weight, bias = weight * scale[:, None], (bias - to_exact(mean)) * scale + shift
    if str(settings.get("apply_b_dec_to_input", True)).lower() != "false":
        bias = bias - weight @ _vector(state, _INPUT_BIAS, channels, path)
    threshold = None
    if "threshold" in state:
        threshold = _vector(state, ("threshold",), latents, path)
    elif "thresholds" in state:
        threshold = _vector(state, ("thresholds",), latents, path).exp()
    k = _k(settings.get("k", state.get("k")), latents, path)
    _check_activation(settings, threshold, k, path)
    return Encoder(
        weight.float(),
        bias.float(),
        threshold=None if threshold is None else threshold.float(),
        k=k,
    )


def _settings(path: Path) -> dict[str, Any]:
    """What is said of an autoencoder beside its weights."""
    found: dict[str, Any] = {}
    beside = path.with_name("cfg.json")
    if beside.is_file():
        try:
            read = json.loads(beside.read_bytes())
        except ValueError as error:
            raise InputError(f"{beside}, beside {path.name}, is no JSON: {error}.") from error
        found = read if isinstance(read, dict) else {}
        found |= found.get("activation_fn_kwargs") or {}
    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            found |= file.metadata() or {}
    return found


def _check_activation(
    settings: Mapping[str, Any], threshold: Tensor | None, k: int | None, path: Path
) -> None:
    """Refuse an autoencoder that is said to be something else than its weights say."""
    found = "topk" if k is not None else "relu" if threshold is None else "jumprelu"
    names = ("activation", "activation_fn", "activation_fn_str", "architecture")
    said = [str(settings[name]).lower() for name in names if settings.get(name)]
    kinds = {_ACTIVATIONS.get(name) for name in said} - {"relu"}
    if not kinds <= {found}:
        raise InputError(
            f"{path} is said to be {', '.join(said)}, but it has "
            f"{'k' if k is not None else 'no k'} and "
            f"{'no threshold' if threshold is None else 'a threshold'}; expected relu, topk with "
            "k, or jumprelu with threshold."
        )
    scaled = str(settings.get("normalize_activations") or "none").lower() != "none"
    if scaled or str(settings.get("rescale_acts_by_decoder_norm")).lower() == "true":
        raise InputError(
            f"{path} scales activations or latents by what is not in its encoder; fold that into "
            "the weights first (in SAELens: fold_W_dec_norm, fold_activation_norm_scaling_factor)."
        )


def _k(given: Any, latents: int, path: Path) -> int | None:
    if given is None:
        return None
    try:
        k = int(given)
    except (TypeError, ValueError, RuntimeError):
        k = 0
    if not 1 <= k <= latents:
        raise InputError(f"{path} says k = {given}; expected a number from 1 to {latents}.")
    return k


def _vector(
    state: Mapping[str, Tensor],
    names: tuple[str, ...],
    length: int,
    path: Path,
    default: float = 0.0,
) -> Tensor:
    """The first tensor of these names, float64; ``default`` where there is none."""
    found = _first(state, names)
    if found is None:
        return to_exact(torch.full((length,), default))
    if found.numel() == 1:
        found = found.expand(length)
    if math.prod(found.shape) != length:
        raise InputError(
            f"{names[0]} of {path} has the shape {list(found.shape)}; expected [{length}]."
        )
    return to_exact(found.reshape(length))


def _first(state: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor | None:
    return next((state[name] for name in names if name in state), None)


def _contents(state: Mapping[str, Tensor]) -> str:
    shown = [f"{name} {list(tensor.shape)}" for name, tensor in list(state.items())[:4]]
    return ", ".join(shown) + (f" and {len(state) - 4} more" if len(state) > 4 else "")
