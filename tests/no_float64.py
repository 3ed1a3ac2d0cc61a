"""A device without float64, emulated on the CPU, as those of Apple's GPUs are.

Its tensors hold a tensor of the CPU, which computes; what would be float64, or on two devices at
once, raises. So what runs here gives the CPU's bits, where the kernels are the same.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from polylight.kernels import exact

# A type that torch knows, that no machine has, and whose gradients are worked out by Python.
DEVICE = torch.device("lazy")
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}


class EmulatedTensor(torch.Tensor):
    """A tensor on the emulated device."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )

    def __init__(self, inner):
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Emulation(TorchDispatchMode):
    """Makes new tensors on the emulated device too."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class _Literals(TorchFunctionMode):
    """Makes tensors of Python's numbers on the CPU first: torch fills them where no mode looks."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function not in (torch.tensor, torch.Tensor.new_tensor):
            return function(*args, **kwargs)
        device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
        if function is torch.Tensor.new_tensor:
            like, *args = args
            device, dtype = device or like.device, dtype or like.dtype
        return torch.tensor(*args, dtype=dtype).to(device or "cpu")


def _run(function, args, kwargs):
    given = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, torch.Tensor)]
    ours = {id(value.inner): value for value in given if isinstance(value, EmulatedTensor)}
    if ours and function not in _COPIES:
        others = [v for v in given if not isinstance(v, EmulatedTensor) and v.ndim]
        assert not others, f"{function} of tensors on two devices"
    target = kwargs.get("device")
    is_ours = bool(ours) if target is None else torch.device(target).type == DEVICE.type
    if target is not None and is_ours:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    bare = tree_map(lambda v: v.inner if isinstance(v, EmulatedTensor) else v, (args, kwargs))
    result = function(*bare[0], **bare[1])
    if function is torch.ops.aten.copy_.default:
        return args[0]

    def wrap(value):
        if not isinstance(value, torch.Tensor) or not is_ours:
            return value
        if id(value) in ours:
            return ours[id(value)]
        if value.dtype == torch.float64:
            raise TypeError(f"{function}: the device has no float64")
        return EmulatedTensor(value)

    return tree_map(wrap, result)


@contextlib.contextmanager
def emulated_device(monkeypatch):
    """Emulate the device for a block; yields it."""
    monkeypatch.setattr(exact, "_WITHOUT_FLOAT64", {DEVICE.type})
    known = torch.autocast

    def autocast(device_type, **settings):
        # Torch knows no autocast of a device that does not exist.
        return known("cpu" if device_type == DEVICE.type else device_type, **settings)

    monkeypatch.setattr(torch, "autocast", autocast)
    with _Emulation(), _Literals():
        yield DEVICE
