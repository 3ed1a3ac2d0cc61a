"""Copies between host and device that nobody waits for."""

from typing import Any

import torch
from torch import Tensor


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device; work that is issued later sees the copy."""
    if device.type != "cuda":
        return value.to(device)
    return value.pin_memory().to(device, non_blocking=True)


class HostCopy:
    """Tensors as they are now, on their way to the host.

    Args:
        tensors: All on one device; they may change as soon as this returns.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._event: Any = None
        if not tensors[0].is_cuda:
            self._copies = tuple(tensor.clone() for tensor in tensors)
            return
        self._copies = tuple(
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors
        )
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def get(self) -> tuple[Tensor, ...]:
        """The copies; waits until they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
