"""Rewrite a frozen network so that it runs faster and returns the same activations.

Batch norms are folded into the convolutions before them, and TensorFlow's SAME padding, which
copies its input at every call, becomes part of the convolution.
"""

from collections.abc import Collection, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polylight.kernels import to_exact
from polylight.networks.tracing import Call, Trace


class FoldedNorm(nn.Module):
    """What is left of a norm with a built-in activation once its convolution does the norm."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        # The names of the submodules stay, as they are layers that can be asked for.
        self.drop = norm.get_submodule("drop")
        self.act = norm.get_submodule("act")

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        out: Tensor = self.act(self.drop(x))
        return out


def foldable_pairs(seen: Trace, modules: Mapping[str, nn.Module]) -> list[tuple[str, str]]:
    """Find the batch norms that can be folded.

    A pair counts if the norm's input is the convolution's output, nothing else uses that output,
    both modules run once, and the convolution uses its weight as it is (a weight-standardised
    one does not).

    Args:
        seen: A trace with function calls.
        modules: The network's modules by name.

    Returns:
        Names of convolution and batch norm, in the order of execution.
    """
    convolutions: dict[int, Call] = {}
    pairs = []
    for call, out in seen.made:
        module = modules.get(call.module)
        # What is written over is no longer what the convolution returned.
        convolutions.pop(id(out), None)
        if call.function in (F.conv2d, torch.conv2d) and isinstance(module, nn.Conv2d):
            weight = call.inputs[1] if len(call.inputs) > 1 else None
            if isinstance(weight, nn.Parameter) and weight is module.weight:
                convolutions[id(out)] = call
        elif call.function in (F.batch_norm, torch.batch_norm) and _is_plain_norm(module):
            source = convolutions.get(id(call.inputs[0]))
            names = (source.module, call.module) if source else None
            if names and seen.uses[id(call.inputs[0])] == 1 and _run_once(names, seen):
                pairs.append(names)
    return pairs


class Unfold(nn.Module):
    """Works out what a convolution returned before a batch norm was folded into it."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale[:, None, None], persistent=False)
        self.register_buffer("shift", shift[:, None, None], persistent=False)

    def forward(self, folded: Tensor) -> Tensor:
        """Undo scale and shift."""
        return (folded - self.shift) / self.scale


def _is_plain_norm(module: nn.Module | None) -> bool:
    """Whether a module is a batch norm that we know how to replace."""
    if not isinstance(module, nn.BatchNorm2d) or module.running_mean is None:
        return False
    # Compared by name so that a network of torchvision does not need timm to be imported.
    return type(module) is nn.BatchNorm2d or type(module).__name__ == "BatchNormAct2d"


def _run_once(names: Collection[str], seen: Trace) -> bool:
    """Whether each of these modules ran exactly once."""
    return all(name in seen.runs and seen.runs[name].calls == 1 for name in names)


def can_unfold(norm: nn.Module) -> bool:
    """Whether float32 can tell a norm's input from its output: no scale is nearly 0."""
    scale, shift = _affine(norm)
    return bool((scale.abs() > 1e-3 * shift.abs().clamp_min(scale.abs().max())).all())


def _affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in eval mode, two of float64 [C]."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (to_exact(norm.running_var) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * to_exact(norm.weight)
    shift = -to_exact(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + to_exact(norm.bias)


def fold_norm(net: nn.Module, convolution: str, norm: str) -> "Unfold":
    """Fold a batch norm in eval mode into the convolution before it.

    With s = gain / sqrt(variance + eps), the norm of the convolution, s (w * x + b - mean) +
    offset, is a convolution with the weight s w and the bias s (b - mean) + offset (Ioffe and
    Szegedy 2015, section 3.1). Both are computed in float64.

    Args:
        net: The network; changed in place.
        convolution: Name of the convolution.
        norm: Name of the batch norm.

    Returns:
        What works out, from the convolution's output now, what it was before.
    """
    conv = net.get_submodule(convolution)
    bn = net.get_submodule(norm)
    assert isinstance(conv, nn.Conv2d)
    scale, shift = _affine(bn)
    like = conv.weight
    weight = to_exact(conv.weight) * scale[:, None, None, None]
    bias = shift if conv.bias is None else shift + to_exact(conv.bias) * scale
    conv.weight = nn.Parameter(weight.to(like), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(like), requires_grad=False)
    rest = FoldedNorm(bn) if hasattr(bn, "act") else nn.Identity()
    net.set_submodule(norm, rest.eval())
    return Unfold(scale.to(like), shift.to(like))


def fix_same_padding(net: nn.Module, input_sizes: Mapping[str, tuple[int, int]]) -> None:
    """Give convolutions with TensorFlow's SAME padding a fixed padding.

    SAME padding of an even input at stride 2 is one pixel more at the end than at the start.
    A leading row and column of zeros in the kernel and symmetric padding give the same sums
    without a padded copy of the input in the forward or of its gradient in the backward.

    Args:
        net: The network; changed in place.
        input_sizes: Name of each such convolution, and height and width of its input.
    """
    for name, size in input_sizes.items():
        conv = net.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        top, bottom = _same_padding(conv, size, 0)
        left, right = _same_padding(conv, size, 1)
        # With dilation a leading zero would shift the taps by more than the one pixel.
        if max(conv.dilation) > 1 and (top, left) != (bottom, right):
            continue
        weight = F.pad(conv.weight, (right - left, 0, bottom - top, 0))
        fixed = nn.Conv2d(
            conv.in_channels,
            conv.out_channels,
            (weight.shape[-2], weight.shape[-1]),
            padding=(bottom, right),
            groups=conv.groups,
            device="meta",
        )
        fixed.stride, fixed.dilation = conv.stride, conv.dilation
        fixed.weight = nn.Parameter(weight, requires_grad=False)
        fixed.bias = conv.bias
        net.set_submodule(name, fixed.eval())


def same_convolutions(seen: Trace, modules: Mapping[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Find timm's convolutions with SAME padding, and the size of each one's input.

    Args:
        seen: A trace of the network.
        modules: The network's modules by name.

    Returns:
        Height and width of the input of each that ran once.
    """
    return {
        name: (seen.inputs[name].shape[-2], seen.inputs[name].shape[-1])
        for name, run in seen.runs.items()
        if type(modules[name]).__name__ == "Conv2dSame" and run.calls == 1 and name in seen.inputs
    }


def _same_padding(conv: nn.Conv2d, size: tuple[int, int], axis: int) -> tuple[int, int]:
    """Pixels that TensorFlow's SAME padding adds before and after an axis (0: height)."""
    stride, reach = conv.stride[axis], (conv.kernel_size[axis] - 1) * conv.dilation[axis] + 1
    total = max((-(-size[axis] // stride) - 1) * stride + reach - size[axis], 0)
    return total // 2, total - total // 2
