"""Gradients of convolutions to their input, as convolutions of their own.

On a CPU the library's backward is slow where the forward is fast: for a handful of input
channels, as the first layer has, and for large depthwise kernels. With frozen weights the
gradient to the input is a convolution too, whose kernel can be laid out beforehand.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# So few input channels fill no vector of the library's backward.
_FEW = 4


class FrozenConv2d(nn.Conv2d):
    """A convolution whose backward, on a CPU, is a convolution of the gradient.

    With stride s, padding p and kernel w, x at position s a + r has the gradient
    ``sum_d w[r + p - s d] g[a + d]``: for each of the s x s remainders r a kernel of its own, whose
    results are interleaved (sub-pixel convolution; Shi et al. 2016).

    Args:
        conv: A square one that :func:`is_slow_backward` names; its parameters are shared.
    """

    backward_weight: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, 1, groups=conv.groups, device="meta")
        for name in ("kernel_size", "stride", "padding", "dilation"):
            setattr(self, name, getattr(conv, name))
        self.weight, self.bias = conv.weight, conv.bias
        kernel, pad = _backward_kernel(conv)
        self.backward_pad = pad
        self.register_buffer("backward_weight", kernel, persistent=False)

    def backward_size(self, size: int) -> int:
        """Positions that the backward gives for each remainder from a gradient of some size."""
        return size + 2 * self.backward_pad - self.backward_weight.shape[2] + 1

    def forward(self, x: Tensor) -> Tensor:
        """Convolve [B, C, H, W]."""
        if x.is_cuda:
            return super().forward(x)
        out: Tensor = _Convolve.apply(x, self)
        return out


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, conv: FrozenConv2d) -> Tensor:
        ctx.conv, ctx.size = conv, x.shape[2:]
        return F.conv2d(
            x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        conv, (height, width), stride = ctx.conv, ctx.size, ctx.conv.stride[0]
        # Of sizes that the stride does not divide, the last rows may see one gradient more.
        more = [
            max(-(-side // stride) - conv.backward_size(given), 0)
            for side, given in ((width, grad.shape[3]), (height, grad.shape[2]))
        ]
        if any(more):
            grad = F.pad(grad, (0, more[0], 0, more[1]))
        phases = F.conv2d(grad, conv.backward_weight, padding=conv.backward_pad, groups=conv.groups)
        whole = _interleave(phases, stride) if stride > 1 else phases
        return whole[:, :, :height, :width], None


def _interleave(phases: Tensor, stride: int) -> Tensor:
    """Put [B, stride (row), stride (column), C of each; H, W] in place: [B, C, s H, s W].

    In channels-last memory format whole runs of columns and channels are copied, which is four
    times as fast as ``pixel_shuffle``.
    """
    batch, channels, height, width = phases.shape
    runs = phases.permute(0, 2, 3, 1).reshape(batch, height, width, stride, channels // stride)
    whole = runs.transpose(2, 3).reshape(batch, stride * height, stride * width, -1)
    return whole.permute(0, 3, 1, 2)


def is_slow_backward(conv: nn.Module) -> bool:
    """Whether a convolution's backward is faster as :class:`FrozenConv2d`."""
    if type(conv) is not nn.Conv2d or conv.padding_mode != "zeros":
        return False
    # A hook that works out the weight would look for its own module.
    if not isinstance(conv.weight, nn.Parameter):
        return False
    if isinstance(conv.padding, str) or len({*conv.kernel_size}) > 1 or len({*conv.padding}) > 1:
        return False
    if max(conv.dilation) > 1 or len({*conv.stride}) > 1:
        return False
    if conv.padding[0] >= conv.kernel_size[0]:
        return False
    depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.stride[0] == 1
    first = conv.groups == 1 and conv.in_channels <= _FEW and conv.stride[0] > 1
    return depthwise or first


def with_fast_backward(net: nn.Module) -> None:
    """Replace convolutions whose backward is slow on a CPU.

    Args:
        net: The network, frozen; changed in place.
    """
    slow = [name for name, module in net.named_modules() if name and is_slow_backward(module)]
    for name in slow:
        conv = net.get_submodule(name)
        assert isinstance(conv, nn.Conv2d)
        net.set_submodule(name, FrozenConv2d(conv).eval())


def _backward_kernel(conv: nn.Conv2d) -> tuple[Tensor, int]:
    """The kernel of the backward, [s s C_in, C_out / groups, D, D], and its padding."""
    size, stride, pad = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
    first, last = -((size - 1 - pad) // stride), (stride - 1 + pad) // stride  # of d
    # As much padding on either side: what is too much on one is cut off, or meets zeros.
    reach = max(-first, last)
    taps = range(-reach, last + 1)
    # [groups, C_out / groups, C_in / groups, K, K], to [C_in, C_out / groups, K, K].
    weight = conv.weight.detach()
    weight = weight.reshape(conv.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    kernel = weight.new_zeros(stride, stride, *weight.shape[:2], *[len(taps)] * 2)
    for row in range(stride):
        for column in range(stride):
            for i, down in enumerate(taps):
                for j, right in enumerate(taps):
                    k, m = row + pad - stride * down, column + pad - stride * right
                    if 0 <= k < size and 0 <= m < size:
                        kernel[row, column, :, :, i, j] = weight[:, :, k, m]
    return kernel.flatten(0, 2).contiguous(memory_format=torch.channels_last), reach
