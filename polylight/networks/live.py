"""A network that is in memory as a model: a frozen copy, and nothing done to the original."""

import copy
import hashlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from polylight.errors import InputError
from polylight.networks.copying import uncompile, unwrapped
from polylight.networks.model import Model, append_arguments, hash_weights
from polylight.networks.preprocessing import find_preprocessing

_log = logging.getLogger(__name__)

# Of a module: what a hook does is the user's, but for those that make a weight.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# Weight norm, spectral norm and pruning work out the weight of a module before it runs.
_MAKES_WEIGHTS = "torch.nn.utils."
_SHOWN = 3
_PLAIN = (bool, int, float, str, type(None))


def model_from_module(
    net: nn.Module,
    *,
    name: str | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    input_size: int | None = None,
    example: Tensor | Sequence[Any] | None = None,
) -> Model:
    """Make a model of a network that is in memory: a frozen float32 copy of it on the CPU.

    The network itself is left as it is: mode, hooks, ``requires_grad``, types, devices, gradients,
    buffers and the state of every random generator. Of a compiled network, and of one inside
    ``DataParallel``, the copy is that of the original. Hooks are not copied, but for those of
    ``torch.nn.utils`` that work out a weight.

    Args:
        net: Any network that takes images.
        name: What to call it; its class unless given.
        mean: Mean of each channel that it was trained with, of images in [0, 1]; one number for
            all. Unless given, that of its ``pretrained_cfg`` or of torchvision's weights of the
            same architecture, else ImageNet's; the log says which.
        std: Standard deviation, likewise.
        input_size: Side of the images that it was trained with, in pixels. Unless given, found
            likewise, or in its first layers, or from ``example``, or by trial.
        example: An input that it takes, [B, C, H, W]. Where its forward has several arguments, all
            of them, the images first; the others stay as they are, with a batch axis of 1.

    Returns:
        The model, of source ``live``.

    Raises:
        InputError: If it is no network, its parameters cannot be used (:func:`check_module`), or
            it cannot be copied.
    """
    check_module(net)
    original = unwrapped(net)
    frozen = _frozen_copy(original)
    images, further = split_example(example)
    append_arguments(frozen, further)
    found = find_preprocessing(frozen, mean, std, input_size, images)
    _log.info("%s: %s", name or type(original).__name__, found.said)
    return Model(
        name=name or type(original).__name__,
        net=frozen,
        mean=found.mean,
        std=found.std,
        input_size=found.input_size,
        weights_hash=_hash(frozen, further),
        source="live",
        window=found.window,
    )


def split_example(example: Tensor | Sequence[Any] | None) -> tuple[Tensor | None, tuple[Any, ...]]:
    """Tell the images of an example input from further arguments.

    Args:
        example: The images, or the images and further arguments.

    Returns:
        The images, and the further arguments, of which tensors have a batch axis of 1.

    Raises:
        InputError: If the first is no batch of images.
    """
    if example is None:
        return None, ()
    images, *further = [example] if isinstance(example, Tensor) else example
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = list(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise InputError(
            f"the first input of an example has to be images [B, C, H, W], got {what}. Wrap a "
            "network of another signature into an nn.Module whose forward takes images first."
        )
    single = tuple(v[:1].detach() if isinstance(v, Tensor) and v.ndim else v for v in further)
    return images, single


def check_module(net: Any) -> None:
    """Refuse a network that cannot be scored, whatever its layers, and say what to do.

    Args:
        net: What was given as a network; it is not run.

    Raises:
        InputError: If it is no ``nn.Module``, is scripted or quantised, or has parameters that
            have no values yet, are spread over devices, or are not finite; or if a batch norm of
            it has no running statistics.
    """
    if not isinstance(net, nn.Module):
        raise InputError(
            f"expected a torch.nn.Module or the name of a network, got a {type(net).__name__}."
        )
    if any(isinstance(module, torch.jit.ScriptModule) for module in net.modules()):
        raise InputError(
            f"{type(net).__name__} is a TorchScript module, whose inner layers cannot be read. "
            "Give the nn.Module that it was made from."
        )
    tensors = {
        **dict(net.named_parameters()),
        **{n: b for n, b in net.named_buffers() if b is not None},
    }
    lazy = [name for name, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise InputError(
            f"{_some(lazy)} has no shape yet: a lazy layer gets it from its first input. Run the "
            "network once on a batch of images."
        )
    on_meta = [name for name, tensor in tensors.items() if tensor.is_meta]
    if on_meta:
        raise InputError(
            f"{_some(on_meta)} is on the meta device and has no values. Load the weights first: "
            "net.to_empty(device='cpu') and net.load_state_dict(...)."
        )
    # Arithmetic with a single number works across devices.
    devices = sorted({str(tensor.device) for tensor in tensors.values() if tensor.ndim})
    if len(devices) > 1:
        raise InputError(
            f"the parameters are on several devices, {', '.join(devices)}; a network is scored on "
            f"one. Move it: net.to({devices[-1]!r})."
        )
    _refuse_quantised(net, tensors)
    _refuse_batch_statistics(net)
    lost = [n for n, t in tensors.items() if _is_float(t) and _is_lost(t)]
    if lost:
        raise InputError(
            f"{_some(lost)} is not finite (NaN or infinite), so nothing that comes after it can be "
            "scored. Go back to weights from before the training diverged."
        )


def _refuse_quantised(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Refuse a network of integers, whose activations have no gradient."""
    modules = [n for n, m in net.named_modules() if ".quantized" in type(m).__module__]
    integers = [n for n, t in net.named_parameters() if not _is_float(t) and not t.is_complex()]
    quantised = [*modules, *integers, *(n for n, t in tensors.items() if t.is_quantized)]
    if quantised:
        raise InputError(
            f"{_some(quantised)} is quantised, and images cannot climb through integers. Give the "
            "network as it was before quantisation, or with its weights dequantised."
        )


def _refuse_batch_statistics(net: nn.Module) -> None:
    """Refuse batch norms that know only the batch at hand: an image's company would count."""
    norms = [n for n, m in net.named_modules() if isinstance(m, _BatchNorm)]
    without = [n for n in norms if net.get_submodule(n).running_mean is None]
    if without:
        raise InputError(
            f"{_some(without)} is a batch norm without running statistics, so what it makes of an "
            "image depends on the other images of its batch. Train it with "
            "track_running_stats=True, or use a norm of each image alone, such as nn.GroupNorm."
        )


def _is_lost(tensor: Tensor) -> bool:
    """Whether a weight is not finite; a buffer may hold infinities, as masks do."""
    values = tensor.detach()
    lost = ~values.isfinite() if isinstance(tensor, nn.Parameter) else values.isnan()
    return bool(lost.any())


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _frozen_copy(net: nn.Module) -> nn.Module:
    """Copy a network to the CPU, in float32, in eval mode, without gradients and hooks."""
    # A copy of a tensor that is noted here beforehand is taken for its own: so nothing is copied
    # on a GPU, no gradient is, and a tensor that autograd made is no obstacle.
    memo: dict[int, Any] = {}
    for module in net.modules():
        for tensor in _tensors(module.__dict__):
            if id(tensor) not in memo:
                memo[id(tensor)] = _frozen(tensor)
        # Taken for copied: what stands in their place is empty.
        for kind in _HOOKS:
            hooks = getattr(module, kind, None)
            if hooks:
                kept = {k: h for k, h in hooks.items() if _makes_weights(h)}
                memo[id(hooks)] = type(hooks)(copy.deepcopy(kept, memo) if kept else {})
    try:
        frozen: nn.Module = copy.deepcopy(net, memo)
    # Whatever a user's attribute raises: a lock, an open file, a generator.
    except Exception as error:
        raise InputError(
            f"the {type(net).__name__} cannot be copied ({type(error).__name__}: {error}), and a "
            "network is never scored in place. Give the part of it that takes images, or take the "
            "attribute away that cannot be copied."
        ) from error
    uncompile(frozen)
    return frozen.eval().requires_grad_(False)


def _tensors(values: Any) -> Iterator[Tensor]:
    """All tensors in nested dictionaries, lists and tuples."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict | list | tuple):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _tensors(value)


def _frozen(tensor: Tensor) -> Tensor:
    """A copy of a tensor on the CPU, in float32 where it has a floating-point type."""
    values = tensor.detach()
    kind = torch.float32 if _is_float(values) else values.dtype
    kind = torch.complex64 if values.is_complex() else kind
    values = values.to("cpu", kind, copy=True)
    # A parameter is told from a buffer by its class.
    return nn.Parameter(values, requires_grad=False) if isinstance(tensor, nn.Parameter) else values


def _makes_weights(hook: Any) -> bool:
    return type(hook).__module__.startswith(_MAKES_WEIGHTS)


def _hash(net: nn.Module, further: Sequence[Any] = ()) -> str:
    """Hash weights and whatever else decides what a network computes.

    Unlike a name, a network in memory may change while its weights stay: another activation
    function, a number that is an attribute, a cell of a notebook that is run again.
    """
    digest = hashlib.blake2b(hash_weights(net).encode(), digest_size=16)
    for value in further:
        digest.update(_bytes(value.cpu()) if isinstance(value, Tensor) else repr(value).encode())
    state = net.state_dict()
    for path, module in net.named_modules():
        kind = type(module)
        digest.update(
            f"{path} {kind.__module__}.{kind.__qualname__} {module.extra_repr()}".encode()
        )
        digest.update(_code(kind))
        for key, value in sorted(vars(module).items()):
            # What begins with an underscore is mostly torch's own, such as whether there are hooks.
            if key == "training" or key.startswith("_"):
                continue
            if isinstance(value, Tensor):
                digest.update(key.encode() + _bytes(value))
            elif all(isinstance(v, _PLAIN) for v in (value if type(value) is tuple else [value])):
                digest.update(f"{key} {value}".encode())
        for key, buffer in module.named_buffers(recurse=False):
            if f"{path}.{key}".lstrip(".") not in state:
                digest.update(key.encode() + _bytes(buffer))
    return digest.hexdigest()


def _code(kind: type[nn.Module]) -> bytes:
    """What a module does when it runs: the code of its forward and of its methods called there."""
    found, names, seen = b"", ["forward"], set()
    while names:
        name = names.pop()
        method = getattr(kind, name, None)
        code = getattr(method, "__code__", None)
        if code is None or name in seen or getattr(nn.Module, name, None) is method:
            continue
        seen.add(name)
        plain = [value for value in code.co_consts if isinstance(value, _PLAIN)]
        found += code.co_code + repr((code.co_names, plain)).encode()
        names += code.co_names
    return found


def _bytes(tensor: Tensor) -> bytes:
    """The bytes of a tensor on the CPU."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _some(names: Sequence[str]) -> str:
    """The first few names."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
