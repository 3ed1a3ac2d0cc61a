"""Adam (Kingma & Ba 2015) for a batch of images, each with a step count of its own."""

import torch
from torch import Tensor


def check_layout(**changed: Tensor) -> None:
    """Refuse tensors that a kernel cannot change in place.

    Raises:
        ValueError: If one of them is not contiguous float32.
    """
    for name, value in changed.items():
        if value.dtype != torch.float32 or not value.is_contiguous():
            raise ValueError(
                f"expected contiguous float32 {name}; got {value.dtype}, strides {value.stride()}. "
                "Make it contiguous float32, or take the torch backend."
            )
