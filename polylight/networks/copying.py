"""Copies of networks to work on: whatever they are wrapped in, and whatever they keep."""

import copy
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.overrides import TorchFunctionMode

from polylight.errors import InputError

_Net = TypeVar("_Net", bound=nn.Module)


def working_copy(net: nn.Module) -> nn.Module:
    """Copy a network to be rewritten.

    Args:
        net: Any network; unchanged.

    Returns:
        The copy: frozen, in eval mode, in channels-last memory format, with nothing written in
        place over what may be read, and weights that hooks work out (old weight norm and spectral
        norm, pruning) worked out once.

    Raises:
        InputError: If the network cannot be copied.
    """
    net = deep_copy(net).eval().requires_grad_(False)
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False  # type: ignore[assignment]
        _fix_weights(module)
    return net.requires_grad_(False).to(memory_format=torch.channels_last)


def deep_copy(net: _Net) -> _Net:
    """Copy a module, also one that keeps what autograd has made, such as its last activation.

    Args:
        net: Any module; unchanged.

    Returns:
        The copy; in it, what autograd had made is cut off from its history.

    Raises:
        InputError: If it keeps something that cannot be copied, such as an open file.
    """
    try:
        with _CutOff():
            return copy.deepcopy(net)
    # Whatever an attribute raises: a lock, a file, a generator.
    except Exception as error:
        raise InputError(
            f"the {type(net).__name__} cannot be copied ({type(error).__name__}: {error}), and a "
            "network is never scored in place. Take the attribute away that cannot be copied."
        ) from error


def unwrapped(net: nn.Module) -> nn.Module:
    """The network inside ``torch.compile``, ``DataParallel`` and ``DistributedDataParallel``."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(original := getattr(net, "_orig_mod", None), nn.Module):
            net = original
        elif isinstance(net, wrappers):
            net = net.module
        else:
            return net


def uncompile(net: nn.Module) -> None:
    """Put the original in the place of every compiled part: one is compiled anew for each shape.

    Args:
        net: Any network; changed in place.
    """
    for module in list(net.modules()):
        module._compiled_call_impl = None
        original = getattr(module.forward, "_torchdynamo_orig_callable", None)
        if original is not None:
            module.forward = MethodType(original, module)
        for key, child in module.named_children():
            if (inner := unwrapped(child)) is not child:
                setattr(module, key, inner)
                uncompile(inner)


class _CutOff(TorchFunctionMode):
    """Lets ``deepcopy`` copy tensors that have a history, which it refuses."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _fix_weights(module: nn.Module) -> None:
    """Replace hooks that work out a weight at every call by the weight."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, WeightNorm):
            remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            remove_spectral_norm(module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
