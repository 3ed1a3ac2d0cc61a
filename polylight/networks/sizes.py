"""The size of the images that a network is shown."""

import warnings
from dataclasses import replace
from typing import Any

from polylight.networks.copying import deep_copy
from polylight.networks.layers import is_complete, probe
from polylight.networks.model import Model


def default_size(model: Model, usual: int) -> int:
    """Choose the size of a network's images, where none is asked for.

    Args:
        model: The network.
        usual: Side in pixels that networks of any size are shown.

    Returns:
        ``usual``, or the network's own size where that is smaller, or the only one that it takes.
    """
    own = model.input_size
    return usual if own > usual and works(model, usual) else own


def at_size(model: Model, image_size: int) -> Model:
    """Fit a network to a size of images, where its library can.

    Networks of timm that are made for one size have ``set_input_size``, which resamples their
    position embeddings as ``dynamic_img_size`` does.

    Args:
        model: The network; unchanged.
        image_size: Side of the images, in pixels.

    Returns:
        The network for images of this size, of the same ``weights_hash``; the same one where it
        takes them as it is, or cannot be fitted.
    """
    fits = hasattr(model.net, "set_input_size")
    if not fits or image_size == model.input_size or works(model, image_size):
        return model
    net: Any = deep_copy(model.net)
    try:
        with warnings.catch_warnings():
            # Of torch, about timm's own arithmetic.
            warnings.simplefilter("ignore")
            net.set_input_size(img_size=image_size)
    # Whatever timm raises of a size that its patches or windows do not divide.
    except Exception:
        return model
    fitted = replace(model, net=net.eval().requires_grad_(False))
    return fitted if works(fitted, image_size) else model


def works(model: Model, image_size: int) -> bool:
    """Whether the whole network runs on images of a size, in pixels."""
    return is_complete(probe(model, image_size))
