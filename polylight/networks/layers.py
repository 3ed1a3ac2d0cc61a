"""The layers of a network: names in the order of execution, and the shapes of their outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polylight.errors import InputError, nearest
from polylight.networks.layout import Layout, Layouts
from polylight.networks.load import Model, load_model, shape_weights
from polylight.networks.tracing import LayerRun, Trace, trace
from polylight.neurons import Address


@dataclass(frozen=True)
class Layer:
    """A tensor that a module of a network returns."""

    name: str
    """Its address: its path among the network's modules, and an element of what it returns."""
    kind: str
    """Its class."""
    channels: int
    """Number of channels of its output."""
    size: tuple[int, ...]
    """Height and width, number of tokens, or nothing. Of tokens that are patches of the image,
    height and width."""
    prefix: int = 0
    """Tokens before those of the patches: class token, registers."""
    calls: int = 1
    """How often it runs."""


def describe(layer: str, module: nn.Module, layout: Layout, calls: int = 1) -> Layer:
    """Describe a layer by how its output is laid out.

    Args:
        layer: Its address.
        module: The module.
        layout: Of its output.
        calls: How often the module runs.

    Returns:
        Its address, class, channels, size, tokens before the patches and number of calls.
    """
    kind = type(module).__name__
    return Layer(layer, kind, layout.channels, layout.size, layout.prefix, calls)


def list_layers(model: Model, image_size: int) -> list[Layer]:
    """List the layers whose neurons can be scored.

    Args:
        model: The network.
        image_size: Side of the images, in pixels, > 0.

    Returns:
        The tensors [B, C, H, W], [B, H, W, C], [B, C] or [B, T, C] that modules return, in the
        order in which they finish. A module that runs several times is listed at its last run; an
        ``nn.Identity`` is left out, as its output is another layer's.

    Raises:
        InputError: If the images are too small for the network.
    """
    return [layer for layer in survey(model, image_size) if isinstance(layer, Layer)]


@dataclass(frozen=True)
class Unreadable:
    """A module whose neurons cannot be asked for."""

    name: str
    """Its address."""
    kind: str
    """Its class."""
    reason: str
    """Why, as the end of a sentence that begins with its name."""


def survey(model: Model, image_size: int) -> list[Layer | Unreadable]:
    """Find out of every module of a network whether its neurons can be scored.

    Args:
        model: The network.
        image_size: Side of the images, in pixels, > 0.

    Returns:
        The layers and what cannot be read, in the order in which they finish; modules that do not
        run come last.

    Raises:
        InputError: If the images are too small for the network.
    """
    layouts = find_layouts(model, image_size)
    seen = layouts.seen
    if not is_complete(seen):
        raise_if_too_small(model, image_size, [])
        if seen.error is not None:
            raise as_input_error(model, image_size, seen.error) from seen.error
    modules = dict(model.net.named_modules())
    found: list[tuple[int, Layer | Unreadable]] = []
    for name, calls in seen.returned.items():
        module, last = modules[name], calls[-1]
        order = max((run.order for run in last.values()), default=0)
        if type(module) is nn.Identity:
            reason = "hands on the output of another layer; choose that"
            found.append((order, Unreadable(str(Address(name)), "Identity", reason)))
            continue
        if not last:
            found.append((order, _unreadable(Address(name), module, "returns no tensor")))
        for element in last:
            address = Address(name, None, element)
            layout = layouts.find(address)
            if isinstance(layout, str):
                found.append((order, _unreadable(address, module, layout)))
            else:
                found.append((order, describe(str(address), module, layout, len(calls))))
    lists = nn.ModuleList | nn.ModuleDict
    silent = [
        name
        for name, module in modules.items()
        if name and name not in seen.returned and not isinstance(module, lists)
    ]
    never = [
        _unreadable(Address(name), modules[name], "does not run; choose the module around it")
        for name in silent
    ]
    return [*(layer for _, layer in sorted(found, key=lambda pair: pair[0])), *never]


def _unreadable(address: Address, module: nn.Module, reason: str) -> Unreadable:
    return Unreadable(str(address), type(module).__name__, reason)


def find_layouts(model: Model, image_size: int) -> Layouts:
    """Trace a network on one image, to ask how its tensors are laid out.

    Args:
        model: The network.
        image_size: Side of the image, in pixels, > 0.

    Returns:
        Its layouts.
    """
    return Layouts(model, probe(model, image_size), image_size)


def raise_unless_readable(layouts: Layouts, layer: str, image_size: int) -> Layout:
    """Find the layout of a layer that is asked for.

    Args:
        layouts: Of the network.
        layer: Its address.
        image_size: Side of the images, in pixels.

    Returns:
        The layout.

    Raises:
        InputError: If there is no such layer, or it has no channels.
    """
    model, seen = layouts.model, layouts.seen
    address = Address.parse(layer)
    modules = {name for name, _ in model.net.named_modules() if name}
    names = f"Run `polylight layers {model.name}` for all names."
    if address.module not in modules:
        close = nearest(address.module, modules)
        raise InputError(f"{model.name} has no layer {address.module!r}; {close}. {names}")
    if seen.find(address) is not None:
        layout = layouts.find(address)
        if isinstance(layout, str):
            raise InputError(f"layer {layer!r} of {model.name} {layout}. {names}")
        return layout
    calls = seen.returned.get(address.module, [])
    raise_if_too_small(model, image_size, [layer])
    if seen.error is not None:
        raise as_input_error(model, image_size, seen.error) from seen.error
    if not calls:
        near = nearest(address.module, list(seen.returned))
        raise InputError(f"layer {layer!r} of {model.name} does not run; {near}. {names}")
    if address.call is not None and address.call >= len(calls):
        raise InputError(
            f"layer {layer!r} of {model.name}: {address.module} runs {_times(len(calls))}, so its "
            f"calls are [0] to [{len(calls) - 1}]."
        )
    asked = [str(address._replace(element=e)) for e in _call(address, calls) if e]
    offered = f"choose one of {', '.join(asked)}" if asked else "choose a layer within it"
    raise InputError(
        f"layer {layer!r} of {model.name} returns {_what(address, calls)}; {offered}. {names}"
    )


def _what(address: Address, calls: Sequence[Mapping[str, LayerRun]]) -> str:
    """What a module returns instead of the tensor that is asked for."""
    found = _call(address, calls)
    if not found:
        return "no tensor"
    if "" in found:
        return "one tensor, which has no elements"
    return f"{len(found)} tensors" if not address.element else f"no {address.element!r}"


def _call(address: Address, calls: Sequence[Mapping[str, LayerRun]]) -> Mapping[str, LayerRun]:
    """What the call that is asked for returned."""
    return calls[-1 if address.call is None else address.call]


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


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
        runs = [seen.find(Address.parse(name)) for name in names]
        return all(run is not None and run.output.numel() > 0 for run in runs)

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
    advice = "Another size is given as --model.image_size."
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


def describe_size(layer: Layer) -> str:
    """Positions of a layer, and how often it runs where that is more than once."""
    side = "x".join(map(str, layer.size)) or "-"
    before = f"{layer.prefix} + " if layer.prefix else ""
    again = f", {layer.calls} calls" if layer.calls > 1 else ""
    return f"{before}{side}{again}"


def layers(
    model: str,
    weights: str | None = None,
    image_size: int | None = None,
    options: dict[str, Any] | None = None,
) -> None:
    """Print the layers of a network, in the order of execution.

    Args:
        model: Name of the network, such as resnet50, timm/vit_tiny_patch16_224 or
            package.module:function.
        weights: Path of a checkpoint, whose classifier may have another number of channels. Unless
            given, weights are random: they change no layer's shape.
        image_size: Side of the images, in pixels; by default the size it was trained with.
        options: Keyword arguments of its constructor or function, such as {num_classes: 10}.

    Raises:
        InputError: If the network cannot be loaded, or the images are too small for it.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    loaded = load_model(model, weights or shape_weights(model), options)
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
        table.add_row(Text(row.name), Text(row.kind), str(row.channels), describe_size(row))
    Console().print(table)
