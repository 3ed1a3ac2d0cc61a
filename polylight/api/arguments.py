"""What a caller gives: networks in any form, devices, and settings by name."""

import argparse
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from polylight.errors import InputError, nearest
from polylight.module import PolysemanticityModule

# Given by other names, or made of what is given.
_NOT_SETTINGS = ("self", "subject", "embedder")
EMBEDDER = "efficientnet_lite2"
"""The network that embeds images unless another is given, as for ``polylight fit``."""


def as_expressions(neurons: str | Sequence[str]) -> list[str]:
    """One neuron expression or several as a list.

    Raises:
        InputError: If it is neither.
    """
    given = [neurons] if isinstance(neurons, str) else neurons
    if not isinstance(given, Sequence) or not all(isinstance(text, str) for text in given):
        raise InputError(
            f"expected neurons as text, such as 'layer4:0-15', or a list of such, got {neurons!r}."
        )
    return list(given)


def as_device(device: str | torch.device | None, net: object = None) -> torch.device:
    """Where to work.

    Args:
        device: As given; None for the GPU that the network is on, else for the first GPU, else for
            the CPU.
        net: The network as it was given.

    Raises:
        InputError: If there is no such device.
    """
    if device is None:
        tensor = next(net.parameters(), None) if isinstance(net, nn.Module) else None
        if tensor is not None and tensor.device.type == "cuda":
            return tensor.device
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    # Whatever torch raises of a name, or of a device that is not there.
    except Exception as error:
        raise InputError(f"there is no device {str(device)!r} here: {error}") from error
    if found.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"expected a device cpu, cuda or mps, got {found}.")
    return found


def check_settings(caller: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Check settings by name and type before anything is loaded.

    Args:
        caller: Name of the function that took them.
        given: Settings of :class:`polylight.module.PolysemanticityModule`.

    Returns:
        The settings, converted to their types.

    Raises:
        InputError: At the first that does not exist or has another type.
    """
    parameters = inspect.signature(PolysemanticityModule.__init__).parameters
    known = [name for name in parameters if name not in _NOT_SETTINGS]
    for name in given:
        if name not in known:
            raise InputError(f"{caller}() has no setting {name!r}; {nearest(name, known)}.")
    from jsonargparse import ArgumentParser, Namespace

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolysemanticityModule, skip=set(parameters) - set(given))
    try:
        # Numbers of NumPy are numbers.
        plain = {n: v.item() if isinstance(v, np.generic) else v for n, v in given.items()}
        checked: Namespace = parser.parse_object(plain)
    except argparse.ArgumentError as error:
        said = " ".join(str(error).split())
        raise InputError(f"{caller}() cannot use a setting: {said}") from error
    return {name: checked[name] for name in given}
