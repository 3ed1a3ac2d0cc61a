"""Read layers, and what goes into modules, in a forward that ends at the deepest one."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from polylight.networks.tracing import RECTIFIERS, LayerRun, Trace, elements
from polylight.neurons import Address


class LayerActivation(NamedTuple):
    """The output of a layer, before and after its rectifier."""

    post: Tensor
    """The layer's output."""
    pre: Tensor
    """The input of the rectifier whose result the output is; the output itself without one."""
    prefix: int = 0
    """Positions that a mean over positions leaves out, at the beginning: class token, registers."""
    read: Tensor | None = None
    """Of a dictionary, the output of the layer that it reads."""

    def pooled(self) -> Tensor:
        """Mean of the layer over the positions behind the prefix, of at least float32: [B, C]."""
        return pool(self.post if self.read is None else self.read, self.prefix)


def pool(maps: Tensor, prefix: int = 0) -> Tensor:
    """Take the mean over positions.

    Args:
        maps: Floating point [B, C] or [B, C, ...].
        prefix: Positions that are left out, at the beginning.

    Returns:
        [B, C], of at least float32.
    """
    exact = torch.promote_types(maps.dtype, torch.float32)
    if maps.ndim == 2:
        return maps.to(exact)
    positions = maps.flatten(2)
    # A slice of everything would change the layout of the gradient, and so its last digits.
    if prefix:
        positions = positions[..., prefix:]
    return positions.mean(2, dtype=exact)


class _Finished(Exception):  # noqa: N818
    """Ends a forward once the deepest layer has run."""


@dataclass(frozen=True)
class Tap:
    """Where to read one layer."""

    module: str
    call: int
    """Which call of the module to read, from 1."""
    element: str
    """Which tensor of what it returns."""
    order: int
    """Position among all calls of modules, in the order in which they finish."""
    is_overwritten: bool
    """Whether the network writes into the output afterwards."""
    rectifier: "Rectifier | None"


@dataclass(frozen=True)
class Rectifier:
    """Where to read what goes into a layer's rectifier."""

    module: str | None
    """The module that is the rectifier; None if it is a function call."""
    call: int
    """Which call of the module, or of all rectifying functions, from 1."""
    is_overwritten: bool
    """Whether the network writes into the rectifier's input, then or later."""


def find_taps(layers: Sequence[str], seen: Trace) -> tuple[Tap, ...]:
    """Work out where each layer and the input of its rectifier can be read.

    Args:
        layers: Addresses of layers that ran.
        seen: A trace with function calls.

    Returns:
        A tap for each layer, in the same order.
    """
    return tuple(_find_tap(Address.parse(layer), seen.run(layer)) for layer in layers)


def _find_tap(address: Address, run: LayerRun) -> Tap:
    """Work out where one layer and the input of its rectifier can be read."""
    rectifier = None
    made = run.producer
    if made is not None and made.rectifier:
        is_overwritten = made.inputs[0]._version != made.version
        # A hook runs after its module: too late for an input that was written into.
        if made.module and made.is_module_input and not is_overwritten:
            rectifier = Rectifier(made.module, made.module_call, is_overwritten)
        else:
            rectifier = Rectifier(None, made.rectifier, is_overwritten)
    is_overwritten = run.output._version != run.version
    return Tap(address.module, run.calls, address.element, run.order, is_overwritten, rectifier)


def read_taps(net: nn.Module, taps: Sequence[Tap], images: Tensor) -> list[LayerActivation]:
    """Run a network up to the deepest tap.

    Args:
        net: The network.
        taps: Where to read.
        images: Normalised images, float [B, 3, H, W].

    Returns:
        What was read at each tap.
    """
    post: dict[int, Tensor] = {}
    pre: dict[int, Tensor] = {}
    functions: dict[int, list[int]] = {}

    def keep_post(index: int) -> Callable[[Any, Any], None]:
        element, is_overwritten = taps[index].element, taps[index].is_overwritten

        def keep(entered: Any, output: Any) -> None:
            tensor = elements(output)[element]
            post[index] = tensor.clone() if is_overwritten else tensor

        return keep

    def keep_pre(index: int) -> Callable[[Any, Any], None]:
        def keep(entered: Any, output: Any) -> None:
            pre[index] = entered

        return keep

    with ExitStack() as stack:
        for index, tap in enumerate(taps):
            rectifier = tap.rectifier
            if rectifier is not None and rectifier.module is not None:
                module = net.get_submodule(rectifier.module)
                stack.enter_context(_on_call(module, rectifier.call, keep_pre(index)))
            elif rectifier is not None:
                functions.setdefault(rectifier.call, []).append(index)
            stack.enter_context(_on_call(net.get_submodule(tap.module), tap.call, keep_post(index)))
        deepest = max(taps, key=lambda tap: tap.order)
        stack.enter_context(_on_call(net.get_submodule(deepest.module), deepest.call, _finish))
        if functions:
            stack.enter_context(_RectifierReader(functions, taps, pre))
        with suppress(_Finished):
            net(images)
    return [LayerActivation(post[i], pre.get(i, post[i])) for i in range(len(taps))]


def read_inputs(net: nn.Module, calls: Mapping[str, int], images: Tensor) -> dict[str, Tensor]:
    """Run a network up to the deepest of some modules, and keep what goes into each.

    Args:
        net: The network.
        calls: By module, how often it runs; its last input counts.
        images: Normalised images, float [B, 3, H, W].

    Returns:
        By module, its first argument, as the network hands it over (it may write into it later:
        the copy is made at once).
    """
    found: dict[str, Tensor] = {}
    waiting = dict(calls)

    def keep(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            waiting[name] -= 1
            if waiting[name] == 0:
                found[name] = args[0].clone()
            if len(found) == len(calls):
                raise _Finished

        return hook

    with ExitStack() as stack:
        for name in calls:
            stack.enter_context(net.get_submodule(name).register_forward_pre_hook(keep(name)))
        with suppress(_Finished):
            net(images)
    return found


def _finish(entered: Any, output: Any) -> None:
    """End the forward."""
    raise _Finished


def _on_call(module: nn.Module, call: int, action: Callable[[Any, Any], None]) -> RemovableHandle:
    """Hook one of the calls of a module: the action gets its first argument and its output."""
    calls = itertools.count(1)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if next(calls) == call:
            action(args[0] if args else output, output)

    return module.register_forward_hook(hook)


class _RectifierReader(TorchFunctionMode):
    """Reads the inputs of rectifiers that are function calls instead of modules."""

    def __init__(
        self, functions: dict[int, list[int]], taps: Sequence[Tap], pre: dict[int, Tensor]
    ) -> None:
        super().__init__()
        self.functions = functions
        self.taps = taps
        self.pre = pre
        self.calls = 0

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in RECTIFIERS:
            self.calls += 1
            entered = args[0] if args else kwargs["input"]
            for index in self.functions.get(self.calls, ()):
                rectifier = self.taps[index].rectifier
                is_overwritten = rectifier is not None and rectifier.is_overwritten
                self.pre[index] = entered.clone() if is_overwritten else entered
        return func(*args, **kwargs)
