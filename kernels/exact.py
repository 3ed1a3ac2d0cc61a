"""Where float64 is: Apple's GPUs have none, so what needs it runs on the CPU there."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_WITHOUT_FLOAT64 = {"mps"}


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64."""
    return device.type not in _WITHOUT_FLOAT64


def to_exact(values: Tensor) -> Tensor:
    """Tensors as float64: on their own device, or on the CPU where that has no float64."""
    moved: Tensor = _moved(values)
    return moved.double()


def needs_float64(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function compute on the CPU where its tensors' device has no float64.

    Args:
        function: Takes tensors as arguments, not inside of others.

    Returns:
        The same function; of tensors on such a device, its results are on the CPU.
    """

    @functools.wraps(function)
    def on_exact_device(*args: P.args, **kwargs: P.kwargs) -> R:
        moved: Any = {name: _moved(value) for name, value in kwargs.items()}
        return function(*map(_moved, args), **moved)

    return on_exact_device


def _moved(value: Any) -> Any:
    """The same value, a tensor on a device without float64 on the CPU."""
    return value.cpu() if isinstance(value, Tensor) and not has_float64(value.device) else value
