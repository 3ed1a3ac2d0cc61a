"""One traced forward: which modules run, in which order, and what is done with their outputs.

Every torch function that the network calls is seen, so control flow, functional calls and shared
modules are all covered without knowing the architecture.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from polylight.neurons import Address

RECTIFIERS: frozenset[Callable[..., Any]] = frozenset(
    {
        F.relu,
        F.relu6,
        F.hardtanh,
        F.hardtanh_,
        F.relu_,
        torch.relu,
        torch.relu_,
        torch.clamp,
        torch.clamp_,
        torch.clamp_min,
        torch.clamp_min_,
        Tensor.relu,
        Tensor.relu_,
        Tensor.clamp,
        Tensor.clamp_,
        Tensor.clamp_min,
        Tensor.clamp_min_,
    }
)
"""Functions whose gradient is zero where they cut off."""


@dataclass(eq=False)
class Call:
    """One call of a torch function that returned a tensor."""

    function: Callable[..., Any]
    inputs: tuple[Any, ...]
    """Its positional arguments."""
    version: int
    """How often the first argument had been written to before the call."""
    is_in_place: bool
    """Whether the call wrote to its first argument."""
    module: str
    """The innermost module that was running."""
    module_call: int
    """Which call of that module, from 1."""
    is_module_input: bool
    """Whether its first argument is that module's first argument."""
    rectifier: int
    """Which call of a rectifier, from 1; 0 for other functions."""


@dataclass(eq=False)
class LayerRun:
    """One tensor that a call of a module returned."""

    calls: int
    """How often the module had run by then."""
    order: int
    """Position among all calls of modules, in the order in which they finished."""
    output: Tensor
    """The tensor."""
    version: int
    """How often the output had been written to when it was returned."""
    producer: Call | None
    """The function call that made the output."""


@dataclass(eq=False)
class Trace:
    """What one forward did."""

    runs: dict[str, LayerRun] = field(default_factory=dict)
    """Modules whose last output is one tensor, in the order in which they finished."""
    returned: dict[str, list[dict[str, LayerRun]]] = field(default_factory=dict)
    """What each call of each module returned, by element; "" is the key of a single tensor. In the
    order in which the last calls finished."""
    inputs: dict[str, Tensor] = field(default_factory=dict)
    """The first argument of each module's last call, if it is a tensor."""
    made: list[tuple[Call, Tensor]] = field(default_factory=list)
    """Every function call that returned a tensor, and the tensor; empty if not asked for."""
    uses: Counter[int] = field(default_factory=Counter)
    """How often each tensor, by id, was an argument of a function that returned a tensor, since
    it was made or last written to."""
    error: Exception | None = None
    """What ended the forward early."""

    def find(self, address: Address) -> LayerRun | None:
        """Look up the tensor at an address; None where there is none."""
        calls = self.returned.get(address.module, [])
        call = len(calls) - 1 if address.call is None else address.call
        return calls[call].get(address.element) if 0 <= call < len(calls) else None

    def run(self, layer: str) -> LayerRun:
        """The tensor at an address that is known to be there, given as text."""
        found = self.find(Address.parse(layer))
        if found is None:
            raise KeyError(layer)
        return found


def trace(net: nn.Module, images: Tensor, *, functions: bool) -> Trace:
    """Run a network once and record what its modules and functions did.

    Args:
        net: The network; unchanged afterwards.
        images: Its input, float [B, 3, H, W], already normalised.
        functions: Whether to record function calls too. All tensors are then kept until the
            trace is dropped, so that their ids stay unique: use a batch of one.

    Returns:
        The record. An exception from the network is kept in ``error``: what had run by then
        may be all that is asked for.
    """
    recorder = _Recorder(keep=functions)
    handles = []
    for name, module in net.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(recorder.enter(name)))
            handles.append(module.register_forward_hook(recorder.leave(name)))
    try:
        with torch.no_grad():
            if functions:
                with _FunctionRecorder(recorder):
                    net(images)
            else:
                net(images)
    # Whatever a third party's forward raises, too small an image is the usual reason.
    except Exception as error:
        recorder.trace.error = error
    finally:
        for handle in handles:
            handle.remove()
    return recorder.trace


class _Recorder:
    """Keeps the stack of running modules and fills a trace."""

    def __init__(self, keep: bool) -> None:
        self.trace = Trace()
        self.keep = keep
        self.alive: list[Any] = []
        self.stack: list[tuple[str, Any]] = []
        self.calls: Counter[str] = Counter()
        self.finished = 0
        self.producers: dict[int, Call] = {}
        self.rectifiers = 0

    def enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self.calls[name] += 1
            first = args[0] if args else None
            self.stack.append((name, first))
            if isinstance(first, Tensor):
                self.trace.inputs[name] = first

        return hook

    def leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self.stack.pop()
            self.finished += 1
            # A shared module is one layer: its last call counts, at the place where that ends.
            self.trace.runs.pop(name, None)
            found = {
                element: LayerRun(
                    calls=self.calls[name],
                    order=self.finished,
                    output=tensor,
                    version=tensor._version,
                    producer=self.producers.get(id(tensor)),
                )
                for element, tensor in elements(output).items()
            }
            self.trace.returned[name] = [*self.trace.returned.pop(name, []), found]
            if "" in found:
                self.trace.runs[name] = found[""]

        return hook

    def call(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        is_rectifier = function in RECTIFIERS
        self.rectifiers += is_rectifier
        first = args[0] if args else kwargs.get("input")
        version = first._version if isinstance(first, Tensor) else 0
        out = function(*args, **kwargs)
        if not isinstance(out, Tensor):
            return out
        tensors = list(_tensors((args, tuple(kwargs.values()))))
        for tensor in tensors:
            self.trace.uses[id(tensor)] += 1
        written = isinstance(first, Tensor) and first._version != version
        if any(out is tensor for tensor in tensors) and not written:
            # Such as dropout in eval mode: handed through, made by whatever made it before.
            return out
        if written:
            self.trace.uses[id(out)] = 0
        name, module_input = self.stack[-1] if self.stack else ("", None)
        made = Call(
            function=function,
            inputs=(first, *args[1:]),
            version=version,
            is_in_place=written,
            module=name,
            module_call=self.calls[name],
            is_module_input=first is module_input,
            rectifier=self.rectifiers if is_rectifier else 0,
        )
        self.producers[id(out)] = made
        self.alive.append(tensors)
        self.trace.made.append((made, out))
        return out


class _FunctionRecorder(TorchFunctionMode):
    """Hands every torch function call to a recorder."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.recorder.call(func, args, kwargs or {})


def elements(output: Any, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of what a module returned.

    Args:
        output: Anything.
        prefix: What their keys begin with.

    Returns:
        By index or key, those of inner tuples and dictionaries with a dot between; a single tensor
        under "".
    """
    if isinstance(output, Tensor):
        return {prefix: output}
    if isinstance(output, Mapping):
        inner = list(output.items())
    elif isinstance(output, tuple | list):
        inner = list(enumerate(output))
    else:
        return {}
    found: dict[str, Tensor] = {}
    for key, value in inner:
        found |= elements(value, f"{prefix}.{key}" if prefix else str(key))
    return found


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples and lists."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _tensors(value)
