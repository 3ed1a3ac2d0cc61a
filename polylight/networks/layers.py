"""The layers of a network: names in the order of execution, and the shapes of their outputs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polylight.errors import InputError
from polylight.networks.load import Model, load_model, shape_weights
from polylight.networks.tracing import Trace, trace


@dataclass(frozen=True)
class Layer:
    """A module of a network that returns one tensor."""

    name: str
    """Its path among the network's modules."""
    kind: str
    """Its class."""
    channels: int
    """Number of channels of its output."""
    size: tuple[int, ...]
    """Every other axis of its output but the batch: (height, width), (tokens,), or ()."""


def channel_axis(module: nn.Module, output: Tensor) -> int:
    """Tell which axis of a layer's output counts its channels.

    It is the last for linear layers, layer norms and outputs [B, T, C], else the second.

    Args:
        module: The layer.
        output: What it returned, [B, C], [B, T, C] or [B, C, H, W].

    Returns:
        The axis, 1 or higher.
    """
    # The LayerNorm2d of torchvision and timm is a LayerNorm that permutes back to [B, C, H, W].
    is_norm = isinstance(module, nn.LayerNorm) and not type(module).__name__.endswith("2d")
    if isinstance(module, nn.Linear) or is_norm or output.ndim == 3:
        return output.ndim - 1
    return 1


def is_channels_last(module: nn.Module, output: Tensor) -> bool:
    """Tell a map [B, H, W, C] of a module that does not say that its channels are the last axis.

    A Swin block's, for instance. Images are square, so a map [B, C, H, W] has equal last axes.
    """
    return (
        output.ndim == 4
        and channel_axis(module, output) == 1
        and output.shape[1] == output.shape[2] != output.shape[3]
    )


def describe(name: str, module: nn.Module, output: Tensor) -> Layer:
    """Describe a layer by what it returned.

    Args:
        name: The layer's name.
        module: The layer.
        output: What it returned, [B, C], [B, T, C] or [B, C, H, W].

    Returns:
        Its name, class, number of channels and size.
    """
    axis = channel_axis(module, output)
    size = tuple(s for i, s in enumerate(output.shape) if i not in (0, axis))
    return Layer(name, type(module).__name__, output.shape[axis], size)


def is_usable(output: Tensor, batch: int = 1) -> bool:
    """Tell whether a layer's output has channels: a batch of vectors, tokens or maps, not empty."""
    return output.ndim in (2, 3, 4) and output.shape[0] == batch and output.numel() > 0


def list_layers(model: Model, image_size: int) -> list[Layer]:
    """List the layers whose neurons can be scored.

    Args:
        model: The network.
        image_size: Side of the images, in pixels, > 0.

    Returns:
        The modules that run and return one tensor [B, C, H, W], [B, C] or [B, T, C], in the
        order in which they finish. A module that runs several times is listed at its last run;
        an ``nn.Identity`` is left out, as its output is another layer's, and so are maps with
        channels last.

    Raises:
        InputError: If the images are too small for the network.
    """
    seen = probe(model, image_size)
    if not is_complete(seen):
        raise_if_too_small(model, image_size, [])
        if seen.error is not None:
            raise as_input_error(model, image_size, seen.error) from seen.error
    modules = dict(model.net.named_modules())
    return [
        describe(name, modules[name], run.output)
        for name, run in seen.runs.items()
        if is_usable(run.output)
        and type(modules[name]) is not nn.Identity
        and not is_channels_last(modules[name], run.output)
    ]


def probe(model: Model, image_size: int, *, functions: bool = False) -> Trace:
    """Trace a network on one image of noise.

    Args:
        model: The network.
        image_size: Side of the image, in pixels, > 0.
        functions: Whether to record function calls too.

    Returns:
        The trace.

    Raises:
        InputError: If the size is not positive.
    """
    return trace(
        model.net,
        model.preprocess(noise(model.net, image_size, model.channels)),
        functions=functions,
    )


def noise(net: nn.Module, image_size: int, channels: int = 3) -> Tensor:
    """Make one image of noise, the same at every call.

    Args:
        net: The network that it is for.
        image_size: Side of the image, in pixels, > 0.
        channels: Of the image.

    Returns:
        Float32 [1, channels, image_size, image_size] in [0, 1], on the device of the network.

    Raises:
        InputError: If the size is not positive.
    """
    if image_size < 1:
        raise InputError(f"image_size must be at least 1 pixel; got {image_size}.")
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, channels, image_size, image_size, generator=generator)
    parameter = next(net.parameters(), None)
    return image if parameter is None else image.to(parameter.device)


def raise_if_too_small(model: Model, image_size: int, names: Sequence[str]) -> None:
    """Find out whether layers failed because of the size of the images.

    Args:
        model: The network.
        image_size: A size at which not all of the layers ran, in pixels.
        names: The layers that have to run; none: the whole network.

    Raises:
        InputError: If they run at the model's own size. It names the smallest size that works,
            found by bisection, which is exact where every larger size works too.
    """

    def works(size: int) -> bool:
        seen = probe(model, size)
        if not names:
            return is_complete(seen)
        return all(name in seen.runs and is_usable(seen.runs[name].output) for name in names)

    if image_size == model.input_size or not works(model.input_size):
        return
    low, high = min(image_size, model.input_size - 1), model.input_size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if works(middle) else (middle, high)
    what = f"layer {names[0]!r} of {model.name}" if len(names) == 1 else model.name
    reason = "too small" if image_size < high else "of the wrong size"
    raise InputError(
        f"images of {image_size} px are {reason} for {what}; the smallest size that works is "
        f"{high} px, and {model.name} was trained at {model.input_size} px. "
        f"Set --model.image_size {high}."
    )


def as_input_error(model: Model, image_size: int, error: Exception) -> Exception:
    """Say what a network was shown when its forward failed.

    Args:
        model: The network.
        image_size: Side of the image, in pixels.
        error: What its forward raised.

    Returns:
        The error to raise instead.
    """
    if isinstance(error, InputError | torch.OutOfMemoryError):
        return error
    height, width = model.window_at(image_size) or (image_size, image_size)
    advice = "Its size is --model.image_size."
    if isinstance(error, TypeError) and "required positional argument" in str(error):
        advice = (
            "Give an example of all its inputs (example= in Python), or a factory of a module that "
            "takes images alone."
        )
    return InputError(
        f"{model.name} does not run on an image [1, {model.channels}, {height}, {width}] "
        f"({type(error).__name__}: {error}). {advice}"
    )


def is_complete(seen: Trace) -> bool:
    """Whether the whole network ran and no layer returned an empty tensor."""
    return seen.error is None and all(run.output.numel() for run in seen.runs.values())


def layers(model: str, weights: str | None = None, image_size: int | None = None) -> None:
    """Print the layers of a network, in the order of execution.

    Args:
        model: Name of the network, such as resnet50, timm/vit_tiny_patch16_224 or
            package.module:function.
        weights: Path of a checkpoint, whose classifier may have another number of channels. Unless
            given, weights are random: they change no layer's shape.
        image_size: Side of the images, in pixels; by default the size it was trained with.

    Raises:
        InputError: If the network cannot be loaded, or the images are too small for it.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    loaded = load_model(model, weights or shape_weights(model))
    size = loaded.input_size if image_size is None else image_size
    rows = list_layers(loaded, size)
    # Names are text, in which square brackets mean nothing.
    title = Text(f"{model}: {len(rows)} layers, images of {size} px", style="table.title")
    table = Table(title=title, title_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("channels", justify="right")
    table.add_column("size", justify="right")
    for row in rows:
        side = "x".join(map(str, row.size)) or "-"
        table.add_row(Text(row.name), Text(row.kind), str(row.channels), side)
    Console().print(table)
