"""Run inverted residual blocks (MobileNetV2, EfficientNet-Lite, MNASNet) as one kernel on a CPU.

What such a block makes inside is several times as large as its input, and is read and written by
convolutions that compute little; a CPU spends most of the time on moving it about.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polylight.kernels import Block, Chain, has_fma, inverted_residuals
from polylight.networks.rectify import rectifiers
from polylight.networks.tracing import Call, Trace
from polylight.neurons import Address

_CONVOLUTIONS = (F.conv2d, torch.conv2d)
_SUMS = (torch.add, Tensor.add, Tensor.__add__)


class _Found(NamedTuple):
    """A module that is one block, or some of them one after the other."""

    names: tuple[str, ...]
    blocks: tuple[Block, ...]
    given: Tensor
    made: Tensor
    uses: int
    """How often the first block uses its input."""
    is_read: bool
    """Whether a layer within is read."""


class FusedBlocks(nn.Module):
    """Inverted residual blocks one after the other, as one operation on a CPU in float32.

    Args:
        modules: The blocks as they came, which run everywhere else.
        blocks: The same as numbers.
        size: Height and width of their input.
    """

    def __init__(
        self, modules: Collection[nn.Module], blocks: Collection[Block], size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.whole = nn.Sequential(*modules)
        self.chain = Chain(tuple(blocks), *size)

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on [B, C, H, W]."""
        found = run_fused(x, self.chain)
        if found is not None:
            return found
        out: Tensor = self.whole(x)
        return out


class _Replace:
    """A forward hook that puts the kernel's result in place of a module's own.

    The module runs all the same, for the layers within it that are read. So the last digits of
    what comes after do not depend on which layers are read.
    """

    def __init__(self, block: Block, size: tuple[int, int]) -> None:
        self.chain = Chain((block,), *size)

    def __call__(self, module: nn.Module, given: tuple[Any, ...], out: Tensor) -> Tensor | None:
        return run_fused(given[0], self.chain)


def run_fused(x: Tensor, chain: Any) -> Tensor | None:
    """Run the kernel where it can; None on other devices, and of other types and sizes."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or x.shape[1:] != chain.in_shape:
        return None
    return inverted_residuals(x, chain, backend="numba")


def find_blocks(net: nn.Module, seen: Trace, layers: Collection[str]) -> list[_Found]:
    """Find inverted residual blocks whose rectifiers cut off at zero, joined where nobody looks.

    A block is a module that runs once, and whose calls are a pointwise, a depthwise and a pointwise
    convolution, the first of which may be missing, with rectifiers between and perhaps the sum with
    its input. No value within is used elsewhere.

    Args:
        net: The network, its norms folded.
        seen: A trace of it, with function calls.
        layers: Names of the layers that are read.

    Returns:
        The blocks, those that follow each other without a layer that is read between as one.
    """
    read = {id(seen.run(name).output) for name in layers}
    found: list[_Found] = []
    for part in _single_blocks(net, seen, layers):
        last = found[-1] if found else None
        follows = (
            last is not None
            and last.made is part.given
            # Nobody has written into it.
            and last.made._version == seen.runs[last.names[-1]].version
            and not (last.is_read or part.is_read)
            and id(part.given) not in read
            and seen.uses[id(part.given)] == part.uses
        )
        if last is not None and follows:
            names, blocks = last.names + part.names, last.blocks + part.blocks
            found[-1] = last._replace(names=names, blocks=blocks, made=part.made)
        else:
            found.append(part)
    return found


def fuse(net: nn.Module, found: Collection[_Found]) -> None:
    """Put :class:`FusedBlocks` in the place of blocks.

    Args:
        net: The network; changed in place.
        found: What :func:`find_blocks` found in it; they stay as they are on a processor that the
            kernel is not for.
    """
    for part in found if has_fma() else ():
        size = (part.given.shape[2], part.given.shape[3])
        modules = [net.get_submodule(name) for name in part.names]
        if part.is_read:
            modules[0].register_forward_hook(_Replace(part.blocks[0], size))
            continue
        net.set_submodule(part.names[0], FusedBlocks(modules, part.blocks, size).eval())
        for name in part.names[1:]:
            net.set_submodule(name, nn.Identity())


def _single_blocks(net: nn.Module, seen: Trace, layers: Collection[str]) -> list[_Found]:
    """Each block by itself, in the order of execution."""
    modules = dict(net.named_modules())
    highs = rectifiers(modules)
    found: dict[str, _Found] = {}
    # From the outside in, as a block may be wrapped in a module that adds nothing.
    for name in modules:
        if name not in seen.inputs or name not in seen.runs or seen.runs[name].calls != 1:
            continue
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        within = f"{name}."
        calls = [c for c in seen.made if c[0].module == name or c[0].module.startswith(within)]
        block = _as_block(calls, modules, highs, seen, name)
        if block is not None:
            given = seen.inputs[name]
            uses = sum(part is given for call, _ in calls for part in call.inputs)
            is_read = any(Address.parse(x).module.startswith(within) for x in layers)
            found[name] = _Found((name,), (block,), given, seen.runs[name].output, uses, is_read)
    return sorted(found.values(), key=lambda part: seen.runs[part.names[0]].order)


def _as_block(
    calls: Sequence[tuple[Call, Tensor]],
    modules: Mapping[str, nn.Module],
    highs: Mapping[str, float],
    seen: Trace,
    name: str,
) -> Block | None:
    """The calls of a module as a block; None where they are none."""
    given, made = seen.inputs[name], seen.runs[name].output
    is_residual = bool(calls) and calls[-1][0].function in _SUMS
    body = calls[:-1] if is_residual else calls
    if len(body) not in (3, 5) or body[0][0].inputs[0] is not given or calls[-1][1] is not made:
        return None
    # Each reads what the one before has made, which nobody else does.
    last = body[-1][1]
    chained = all(call.inputs[0] is out for (_, out), (call, _) in pairwise(body))
    inside = body if is_residual else body[:-1]
    if not chained or any(seen.uses[id(out)] != 1 for _, out in inside):
        return None
    if is_residual and {id(part) for part in calls[-1][0].inputs} != {id(last), id(given)}:
        return None
    convolutions = [_plain_convolution(call, modules) for call, _ in body[::2]]
    bounds = [highs.get(call.module) for call, _ in body[1::2]]
    *first, depthwise, project = convolutions
    if depthwise is None or not _is_depthwise(depthwise) or None in bounds:
        return None
    pointwise = [conv for conv in (*first, project) if conv is not None and _is_pointwise(conv)]
    if len(pointwise) <= len(first):
        return None
    return Block(
        expand=_matrix(pointwise[0]) if first else None,
        taps=depthwise.weight.detach()[:, 0],
        bias=_bias(depthwise),
        project=_matrix(pointwise[-1]),
        highs=(bounds[0] or torch.inf if first else torch.inf, bounds[-1] or torch.inf),
        stride=depthwise.stride[0],
        padding=(int(depthwise.padding[0]), int(depthwise.padding[1])),
        is_residual=is_residual,
    )


def _plain_convolution(call: Call, modules: Mapping[str, nn.Module]) -> nn.Conv2d | None:
    """The module of a call that is a convolution with its weight as it is, zeros around it."""
    module = modules.get(call.module)
    if call.function not in _CONVOLUTIONS or type(module) is not nn.Conv2d:
        return None
    is_own = len(call.inputs) > 1 and call.inputs[1] is module.weight
    has_zeros = module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return module if is_own and has_zeros and max(module.dilation) == 1 else None


def _is_pointwise(conv: nn.Conv2d) -> bool:
    ones = {*conv.kernel_size, *conv.stride, conv.groups}
    return ones == {1} and not any(conv.padding)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether a convolution has a kernel for each channel, which meets every pixel."""
    stride = conv.stride[0]
    is_square = conv.stride == (stride, stride) and min(conv.kernel_size) >= stride
    return conv.groups == conv.in_channels == conv.out_channels and is_square


def _matrix(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    return conv.weight.detach()[:, :, 0, 0], _bias(conv)


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias.detach()
