"""Rectifiers that write over their input, and over the gradient that comes back.

A rectifier moves as much memory as the convolution before it and computes next to nothing. Out of
place, it writes a second copy of every activation on the way forth, and of every gradient on the
way back, which on a CPU costs a fifth of the whole pass.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from polylight.networks.tracing import Call, Trace

_CONVOLUTIONS = (F.conv2d, torch.conv2d)
# The backward of these does not look at what they returned.
_FORGETFUL = (
    *_CONVOLUTIONS,
    F.batch_norm,
    torch.batch_norm,
    torch.add,
    Tensor.add,
    Tensor.add_,
    Tensor.__add__,
    Tensor.__iadd__,
)


class InPlaceRectifier(nn.Module):
    """``clamp(x, 0, high)`` in place, bit for bit what the module that it replaces returned.

    Args:
        high: Upper bound, > 0; infinity for a plain rectifier.
        owns_gradient: Whether the gradient that comes back is nobody else's, so that it can be
            written over too.
    """

    def __init__(self, high: float, owns_gradient: bool) -> None:
        super().__init__()
        self.high, self.owns_gradient = high, owns_gradient

    def forward(self, x: Tensor) -> Tensor:
        """Rectify ``x`` and return it."""
        out: Tensor = _Rectify.apply(x, self.high, self.owns_gradient)
        return out


class _Rectify(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: float, owns_gradient: bool) -> Tensor:
        ctx.mark_dirty(x)
        torch.ops.aten.clamp_(x, 0.0, high)
        # Where the result is at a bound the gradient is zero: the input need not be kept.
        ctx.save_for_backward(x)
        ctx.high, ctx.owns_gradient = high, owns_gradient
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (result,) = ctx.saved_tensors
        into = grad if ctx.owns_gradient else torch.empty_like(grad)
        torch.ops.aten.hardtanh_backward.grad_input(grad, result, 0.0, ctx.high, grad_input=into)
        return into, None, None


def rectify_in_place(net: nn.Module, seen: Trace, layers: Collection[str]) -> None:
    """Let rectifiers write over their input where nobody else looks at it.

    A rectifier module is replaced if, at each of its calls, its input was made by an operation
    whose backward does not need its result, and is used by nothing else, nor read as a layer. The
    gradient is written over too if the rectifier's result is used by one convolution only, whose
    backward makes a new gradient.

    Args:
        net: The network; changed in place.
        seen: A trace of it, with function calls.
        layers: Names of the layers that are read.
    """
    modules = dict(net.named_modules())
    source_of: dict[int, Call | None] = {}  # by the rectifier's call
    makers: dict[int, Call] = {}
    users: dict[int, list[Call]] = {}
    for call, out in seen.made:
        source_of[id(call)] = makers.get(id(call.inputs[0]))
        users.setdefault(id(call.inputs[0]), []).append(call)
        makers[id(out)] = call
    read = {id(seen.run(name).output) for name in layers}
    runs: dict[str, list[tuple[Call, Tensor]]] = {}
    for call, out in seen.made:
        if call.module:
            runs.setdefault(call.module, []).append((call, out))

    def is_alone(call: Call, out: Tensor) -> bool:
        source = source_of[id(call)]
        return (
            call.is_module_input
            # Somebody who writes into the result later would spoil what the backward needs.
            and out._version == 0
            and source is not None
            and source.function in _FORGETFUL
            and seen.uses[id(call.inputs[0])] == 1
            and not {id(call.inputs[0]), id(out)} & read
        )

    def feeds_convolution(out: Tensor) -> bool:
        return seen.uses[id(out)] == 1 and all(
            user.function in _CONVOLUTIONS for user in users.get(id(out), [])
        )

    for name, high in rectifiers(modules).items():
        calls = runs.get(name, [])
        if calls and all(is_alone(call, out) for call, out in calls):
            owns = all(feeds_convolution(out) for _, out in calls)
            net.set_submodule(name, InPlaceRectifier(high, owns).eval())


def rectifiers(modules: Mapping[str, nn.Module]) -> dict[str, float]:
    """Upper bound of each module that cuts off at zero."""
    bounds: dict[str, float] = {}
    for name, module in modules.items():
        if type(module) is nn.ReLU:
            bounds[name] = torch.inf
        elif isinstance(module, nn.Hardtanh) and module.min_val == 0 and module.max_val > 0:
            bounds[name] = float(module.max_val)
    return bounds
