"""``polylight check``: which layers of a network can be scored, tried before a run is started."""

import json as json_
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from polylight.ascent.augmentation import Augmentation
from polylight.ascent.objective import make_targets
from polylight.ascent.optimizer import ImageAdam
from polylight.ascent.parametrization import Parametrization
from polylight.ascent.pool import Pool
from polylight.ascent.settings import Ascent, Slot
from polylight.errors import InputError
from polylight.kernels import stream_key
from polylight.networks import Model
from polylight.networks.layers import Layer, Unreadable, describe_size, noise, survey
from polylight.networks.load import as_model, shape_weights
from polylight.networks.sizes import at_size
from polylight.networks.subject import Subject
from polylight.networks.tracing import elements
from polylight.neurons import Address, Component, Neuron

if TYPE_CHECKING:
    import pandas as pd

_STEPS = 4
_DEPTHS = 6


@dataclass(frozen=True)
class LayerCheck:
    """What a run would do with one layer of a network."""

    layer: str
    """Its address, as neurons are asked for."""
    kind: str
    """Its class."""
    status: Literal["scored", "refused"]
    channels: int | None = None
    """Number of channels; None where it is refused."""
    size: str = ""
    """Height and width, number of tokens, or -, of its output, and how often it runs."""
    gradient: float | None = None
    """Mean length of the gradient at the images of its middle channel; None where no ascent was
    tried."""
    reason: str = ""
    """Why it is refused, and what to do."""


@dataclass(frozen=True)
class NetworkCheck:
    """What a run would do with each layer of a network.

    Attributes:
        name: The network.
        image_size: Side of the images, in pixels.
        layers: One entry a layer, in the order of execution; modules that cannot be read come last.
        difference: Largest difference between what a layer returns in the network that a run
            climbs and in the network as it came, relative to the largest value of the layer.
    """

    name: str
    image_size: int
    layers: Sequence[LayerCheck]
    difference: float

    @property
    def scored(self) -> Sequence[LayerCheck]:
        """The layers whose neurons can be scored."""
        return [layer for layer in self.layers if layer.status == "scored"]

    @property
    def refused(self) -> Sequence[LayerCheck]:
        """The modules whose neurons are refused."""
        return [layer for layer in self.layers if layer.status == "refused"]

    def to_pandas(self) -> "pd.DataFrame":
        """One row a layer, with the columns of :class:`LayerCheck`."""
        import pandas as pd

        return pd.DataFrame([vars(layer) for layer in self.layers])

    def __str__(self) -> str:
        """What the check comes to."""
        tried = [layer.layer for layer in self.layers if layer.gradient is not None]
        said = (
            f"{self.name} at {self.image_size} px: {len(self.scored)} of {len(self.layers)} layers "
            "can be scored."
        )
        if not tried:
            return said
        return (
            f"{said} What a run climbs returns what {self.name} returns, within "
            f"{self.difference:.0e} of each layer's largest value. {_STEPS} steps were climbed in "
            f"{', '.join(tried)}."
        )


def check(
    network: str | nn.Module | Model,
    *,
    weights: str = "pretrained",
    options: Mapping[str, Any] | None = None,
    image_size: int | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_size: int | None = None,
    example: Tensor | Sequence[Any] | None = None,
) -> NetworkCheck:
    """Try what a run would do with each layer of a network.

    Every module is read as a run would read it, what it returns in the rewritten network is
    compared with the original's, and a few ascent steps are taken on a neuron of several depths.

    Args:
        network: A network in memory, which is left as it is, or a name as
            :func:`polylight.load_model` takes it.
        weights: Weights of a name.
        options: Keyword arguments of its constructor or function.
        image_size: Side of the images, in pixels; by default the size that it was trained with.
        mean: Of a network in memory, as :func:`polylight.score` takes it.
        std: Likewise.
        input_size: Likewise.
        example: Likewise.

    Returns:
        One entry a layer.

    Raises:
        InputError: If the network as a whole cannot be used.
    """
    how: dict[str, Any] = {"mean": mean, "std": std, "input_size": input_size, "example": example}
    model = as_model(network, weights, options, **how)
    side = model.input_size if image_size is None else image_size
    model = at_size(model, side)
    layers = [_entry(found) for found in survey(model, side)]
    names = [layer.layer for layer in layers if layer.status == "scored"]
    try:
        subject = Subject(model, names, side) if names else None
        refused: dict[str, str] = {}
    except InputError:
        # Not all of them together, so each by itself.
        refused = {name: said for name in names if (said := _refusal(model, name, side))}
        names = [name for name in names if name not in refused]
        subject = Subject(model, names, side) if names else None
    layers = [
        replace(layer, status="refused", reason=refused[layer.layer])
        if layer.layer in refused
        else layer
        for layer in layers
    ]
    if subject is None:
        return NetworkCheck(model.name, side, layers, 0.0)
    lengths = _climb(subject, _spread(names, _DEPTHS))
    layers = [replace(layer, gradient=lengths.get(layer.layer)) for layer in layers]
    return NetworkCheck(model.name, side, layers, _largest_difference(model, subject))


def _entry(found: Layer | Unreadable) -> LayerCheck:
    if isinstance(found, Unreadable):
        return LayerCheck(found.name, found.kind, "refused", reason=found.reason)
    return LayerCheck(found.name, found.kind, "scored", found.channels, describe_size(found))


def _refusal(model: Model, layer: str, side: int) -> str:
    """Why a subject that is cut at a layer is refused; nothing where it is not."""
    try:
        Subject(model, [layer], side)
    except InputError as error:
        return str(error)
    return ""


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Take some of many, evenly, the first and the last among them."""
    places = torch.linspace(0, len(names) - 1, min(count, len(names))).round().int().tolist()
    return [names[place] for place in dict.fromkeys(places)]


def _climb(subject: Subject, names: Sequence[str]) -> dict[str, float]:
    """Climb a few steps on the middle channel of some layers: the mean length of each gradient."""
    shapes = subject.shapes
    neurons = [Neuron((Component(name, shapes[name].channels // 2),)) for name in names]
    widest = max(shape.channels for shape in shapes.values())
    pool = Pool(
        subject,
        Parametrization(
            size=subject.image_size, channels=subject.mean.shape[0], window=subject.window
        ),
        Augmentation(),
        Ascent(max_steps=_STEPS, explore=0.0, repulsion=0.0),
        size=len(neurons),
        num_components=1,
        max_images=1,
        feature_start=torch.zeros(len(shapes), widest),
        feature_std=torch.ones(len(shapes), widest),
    )
    optimizer = ImageAdam.of(pool)
    slots = [
        Slot(key=stream_key(0, neuron, "check"), active_index=0, max_steps=_STEPS, explore_steps=0)
        for neuron in neurons
    ]
    targets = make_targets(neurons, shapes, {}, 1)
    optimizer.reset(pool.refill(range(len(neurons)), slots, targets))
    lengths = torch.zeros(len(neurons))
    for _ in range(_STEPS):
        pool.climb()
        if pool.latents.grad is not None:
            lengths += pool.latents.grad.flatten(1).norm(dim=1).nan_to_num(0.0) / _STEPS
        optimizer.step()
    return dict(zip(names, lengths.tolist(), strict=True))


@torch.no_grad()
def _largest_difference(model: Model, subject: Subject) -> float:
    """Largest difference of a layer's output between both networks, of its largest value."""
    images = noise(model.net, subject.image_size, model.channels)
    found = subject(images)
    original: dict[str, Tensor] = {}

    def keep(layer: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        element = Address.parse(layer).element

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            # Of several calls the last; a copy, as the network may write into it afterwards.
            original[layer] = elements(output)[element].clone()

        return hook

    with ExitStack() as stack:
        for layer in subject.layers:
            module = model.net.get_submodule(Address.parse(layer).module)
            stack.enter_context(module.register_forward_hook(keep(layer)))
        model.net(model.preprocess(images))
    worst = 0.0
    for index, layer in enumerate(subject.layers):
        expected = original[layer].movedim(subject.layouts[index].channel_axis, 1).double()
        largest = float(expected.nan_to_num(0.0, 0.0, 0.0).abs().max())
        difference = float((found[index].post.double() - expected).nan_to_num(0.0).abs().max())
        worst = max(worst, difference / largest if largest else difference)
    return worst


def print_check(
    model: str,
    weights: str | None = None,
    image_size: int | None = None,
    options: dict[str, Any] | None = None,
    json: bool = False,
) -> None:
    """Say which layers of a network can be scored, and why others cannot.

    Args:
        model: Name of the network, such as resnet50, timm/vit_tiny_patch16_224 or
            package.module:function.
        weights: Path of a checkpoint. Unless given, weights are random: they change no layer's
            shape.
        image_size: Side of the images, in pixels; by default the size it was trained with.
        options: Keyword arguments of its constructor or function, such as {num_classes: 10}.
        json: Whether to print JSON instead of a table.

    Raises:
        InputError: If the network as a whole cannot be used.
    """
    found = check(
        model, weights=weights or shape_weights(model), options=options, image_size=image_size
    )
    if json:
        sys.stdout.write(json_.dumps(asdict(found)) + "\n")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("channels", justify="right")
    table.add_column("size", justify="right")
    table.add_column("")
    for layer in found.scored:
        said = "scored" if layer.gradient is None else f"scored, {_STEPS} steps climbed"
        # Names are text, in which square brackets mean nothing.
        cells = (layer.layer, layer.kind, str(layer.channels), layer.size, said)
        table.add_row(*map(Text, cells))
    console = Console()
    console.print(table)
    reasons: dict[str, list[str]] = {}
    for layer in found.refused:
        reasons.setdefault(layer.reason, []).append(layer.layer)
    for reason, layers in reasons.items():
        console.print(Text(f"\nRefused: {reason}", style="bold"))
        console.print(Text(", ".join(layers)))
    console.print(Text(f"\n{found}"))
