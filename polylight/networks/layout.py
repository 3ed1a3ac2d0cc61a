"""Which axis of a layer's output counts channels, and which of its tokens are patches of the image.

Most layers say it themselves: a convolution's channels are the second axis, a linear layer's the
last. Of the others, a second forward tells, on two images of another size: the axis that counts
images doubles, positions change, channels stay. Where a network takes no other size, what it does
with the tensor tells: a convolution reads its channels from the second axis, a linear layer from
the last.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from polylight.networks.load import Model
from polylight.networks.tracing import Call, Trace, trace
from polylight.neurons import Address, LayerShape

# Functions that read and write their channels in the second axis, and in the last.
_SECOND: frozenset[Callable[..., Any]] = frozenset(
    {F.conv1d, F.conv2d, torch.conv1d, torch.conv2d, F.batch_norm, torch.batch_norm, F.group_norm}
)
_LAST: frozenset[Callable[..., Any]] = frozenset({F.linear, F.layer_norm, torch.layer_norm})
_PERMUTE: frozenset[Callable[..., Any]] = frozenset({torch.permute, Tensor.permute})
# Class token and registers: no network known to us has more.
_MOST_PREFIX = 8
_FAR = 12


@dataclass(frozen=True)
class Layout:
    """How a layer's output is laid out."""

    channel_axis: int
    """The axis that counts channels, 1 or higher."""
    prefix: int
    """Tokens before those of the patches."""
    size: tuple[int, ...]
    """Height and width, or one length, of the positions behind the prefix; empty for vectors."""
    channels: int

    def shape(self, depth: int) -> LayerShape:
        """What the layer offers to be chosen from."""
        return LayerShape(self.channels, self.size, depth, self.prefix)


@dataclass(eq=False)
class Layouts:
    """Finds the layout of each tensor of a traced network.

    Attributes:
        model: The network.
        seen: A trace of it on one image.
        image_size: Side of that image, in pixels.
    """

    model: Model
    seen: Trace
    image_size: int
    _found: dict[str, Layout | str] = field(default_factory=dict)

    def find(self, address: Address) -> Layout | str:
        """Find the layout of a tensor, or say why it has none: how its message goes on.

        Args:
            address: Of a tensor that the trace has.

        Returns:
            The layout, or what is wrong with the output, as the end of a sentence.
        """
        key = str(address)
        if key not in self._found:
            self._found[key] = self._find(address)
        return self._found[key]

    def _find(self, address: Address) -> Layout | str:
        run = self.seen.find(address)
        assert run is not None
        output = run.output
        module = self.model.net.get_submodule(address.module)
        if output.ndim not in (2, 3, 4) or output.numel() == 0:
            return f"returns {list(output.shape)}, which is no batch of vectors, tokens or maps"
        if not output.is_floating_point():
            return f"returns {str(output.dtype).removeprefix('torch.')}, which has no gradient"
        if output.shape[0] != 1:
            return f"returns {list(output.shape)} of one image: its first axis is not the batch"
        axis = _plain_axis(module, output)
        if axis is None:
            other = self._second.find(address)
            if other is not None and other.output.shape[0] != 2:
                return f"returns {list(output.shape)}, the same for any number of images"
            axis = self._axis(address, output, None if other is None else other.output)
        if axis is None:
            return (
                f"returns {list(output.shape)}, of which no axis is known to be its channels; "
                "choose a convolution, linear layer or norm beside it"
            )
        size = tuple(s for i, s in enumerate(output.shape) if i not in (0, axis))
        prefix = self.num_prefix(size[0]) if len(size) == 1 else 0
        if len(size) == 1:
            size = self._grid(size[0] - prefix)
        return Layout(axis, prefix, size, output.shape[axis])

    def _axis(self, address: Address, output: Tensor, other: Tensor | None) -> int | None:
        """The axis of channels of a layer that does not say it itself."""
        module = self.model.net.get_submodule(address.module)
        last = output.ndim - 1
        stays = list(range(1, output.ndim))
        if other is not None and other.ndim == output.ndim:
            stays = [i for i in stays if other.shape[i] == output.shape[i]]
        if _mixes_last(module):
            return last if last in stays else None
        if len(stays) == 1:
            return stays[0]
        if len(stays) == output.ndim - 1:
            # The other size was refused, or makes no difference.
            run = self._functions.find(address)
            found = channels_by_use(run.output, self._functions.made) if run else None
            if found in stays:
                return found
        return last if output.ndim == 3 and last in stays else None

    def num_prefix(self, tokens: int) -> int:
        """Of a number of tokens, those before the patches: class token, registers.

        Args:
            tokens: How many there are.

        Returns:
            How many more they are than a map of the network has positions, at most 8.
        """
        known = getattr(self.model.net, "num_prefix_tokens", None)
        for prefix in range(_MOST_PREFIX + 1):
            if tokens - prefix in self._grids and (prefix == 0 or known in (None, prefix)):
                return prefix
        return 0

    def _grid(self, patches: int) -> tuple[int, ...]:
        """Height and width of patches that are the positions of a map, row by row."""
        return self._grids.get(patches, (patches,))

    @cached_property
    def _grids(self) -> dict[int, tuple[int, int]]:
        """By number of positions, the sizes of maps that the network makes by convolution."""
        modules = dict(self.model.net.named_modules())
        found: dict[int, tuple[int, int]] = {}
        for name, run in self.seen.runs.items():
            if isinstance(modules[name], nn.Conv2d) and run.output.ndim == 4:
                height, width = run.output.shape[2:]
                if height * width > 1:
                    found.setdefault(height * width, (height, width))
        return found

    @cached_property
    def _second(self) -> Trace:
        """Two images of another size, or, where the network takes none, of this."""
        found = Trace()
        # Patches of 8 to 32 px, and windows of 7 and 8 of them, go into one of these.
        side = self.image_size
        for other in dict.fromkeys((side + 64, side + 32, side * 2, side)):
            found = trace(self.model.net, self._images(2, other), functions=False)
            if found.error is None:
                return found
        return found

    @cached_property
    def _functions(self) -> Trace:
        """What the network does with each tensor."""
        if self.seen.made:
            return self.seen
        return trace(self.model.net, self._images(1, self.image_size), functions=True)

    def _images(self, count: int, side: int) -> Tensor:
        """Noise as the network expects it."""
        shape = (count, self.model.channels, side, side)
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        like = next(self.model.net.parameters(), images)
        return self.model.preprocess(images.to(like.device))


def _plain_axis(module: nn.Module, output: Tensor) -> int | None:
    """The axis of channels where the module or the shape says it, None where neither does."""
    if output.ndim == 2:
        return 1
    if output.ndim == 3:
        return output.ndim - 1 if _mixes_last(module) else None
    if isinstance(module, _ConvNd | _NormBase | nn.GroupNorm):
        return 1
    # Images are square, so maps [B, C, H, W] have two equal axes at the end.
    _, second, third, last = output.shape
    return 1 if third == last != second and not _mixes_last(module) else None


def _mixes_last(module: nn.Module) -> bool:
    """Whether a module's channels are its last axis, whatever the others are."""
    # The LayerNorm2d of torchvision and timm is a LayerNorm that permutes back to [B, C, H, W].
    is_norm = isinstance(module, nn.LayerNorm) and not type(module).__name__.endswith("2d")
    return isinstance(module, nn.Linear) or is_norm


def channels_by_use(output: Tensor, made: Sequence[tuple[Call, Tensor]]) -> int | None:
    """Tell the axis of channels by what a network does with a tensor, and how it was made.

    Args:
        output: The tensor, [B, ...].
        made: The calls of a trace, and what they returned.

    Returns:
        The axis, or None where no convolution, norm or linear layer is near enough.
    """
    makers = {id(out): call for call, out in made}
    return _by_users(output, made, _FAR) or _by_maker(output, makers, _FAR)


def _by_users(output: Tensor, made: Sequence[tuple[Call, Tensor]], far: int) -> int | None:
    for call, out in made:
        if not any(value is output for value in _operands(call)):
            continue
        if call.function in _SECOND:
            return 1
        if call.function in _LAST:
            return output.ndim - 1
        if far and out is not output and call.function not in _PERMUTE:
            found = _carry(_by_users(out, made, far - 1), out, output)
            if found is not None:
                return found
    return None


def _by_maker(output: Tensor, makers: dict[int, Call], far: int) -> int | None:
    call = makers.get(id(output))
    if call is None or not far:
        return None
    if call.function in _SECOND:
        return 1
    if call.function in _LAST:
        return output.ndim - 1
    for value in _operands(call):
        if call.function in _PERMUTE and isinstance(value, Tensor):
            order = _order(call)
            inner = _by_maker(value, makers, far - 1)
            return order.index(inner) if inner in order else None
        if isinstance(value, Tensor) and value is not output:
            found = _carry(_by_maker(value, makers, far - 1), value, output)
            if found is not None:
                return found
    return None


def _carry(axis: int | None, source: Tensor, target: Tensor) -> int | None:
    """Where the channels of a tensor are in another that has the same values, sums or shapes."""
    if axis is None or source.numel() != target.numel():
        return None
    if source.shape == target.shape:
        return axis
    # Reshaped: positions are parted or joined, and channels are not.
    if axis == source.ndim - 1 and source.shape[-1] == target.shape[-1]:
        return target.ndim - 1
    return 1 if axis == 1 and source.shape[1] == target.shape[1] else None


def _operands(call: Call) -> Iterator[Any]:
    yield from (call.inputs[:2] if call.function not in _SECOND | _LAST else call.inputs[:1])


def _order(call: Call) -> list[int]:
    """The axes that a permutation puts into order."""
    given = call.inputs[1:]
    axes = given[0] if given and isinstance(given[0], tuple | list) else given
    return [int(axis) % len(axes) for axis in axes]
