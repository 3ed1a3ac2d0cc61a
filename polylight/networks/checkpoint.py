"""Read a local checkpoint without running any code that it may hold, and load it strictly."""

import logging
import pickle
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from polylight.errors import InputError

_WRAPPERS = ("state_dict", "model_state_dict", "model", "ema")
_PREFIXES = ("module.", "model.", "_orig_mod.")
_DEPTH = 8
_NAMED = 4

_logger = logging.getLogger(__name__)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file.

    Args:
        path: A ``.safetensors`` file, or a file that ``torch.save`` wrote and that holds tensors
            and plain containers only. A state dict under one of the keys ``state_dict``,
            ``model_state_dict``, ``model`` or ``ema`` is unwrapped; the first of these wins.
            Without one of them, it is the only state dict there, whatever its key.

    Returns:
        Name and tensor of each weight, on the CPU.

    Raises:
        InputError: If the file is missing, is no checkpoint, or would have to run code to load.
    """
    if not path.is_file():
        raise InputError(
            f"weights must be 'pretrained', 'random', or the path of a checkpoint; "
            f"there is no file {str(path)!r}."
        )
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    return _unwrap(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Map a safetensors file into memory."""
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}.") from error


def _read_pickle(path: Path) -> Any:
    """Load what torch.save wrote; only tensors and plain containers are let through."""
    if _is_torchscript(path):
        raise InputError(
            f"{path} is TorchScript: a program, whose inner layers cannot be read. Name the "
            "network that it was made from, and give its weights alone, saved by "
            "`torch.save(torch.jit.load(FILE).state_dict(), 'weights.pt')`."
        )
    try:
        return torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        weights = "model.state_dict()"
        if path.suffix == ".ckpt":
            weights = "torch.load(FILE, weights_only=False)['state_dict']"
        raise InputError(
            f"{path} holds more than tensors{_unsafe_globals(path)}, and loading it could run "
            f"code. If you trust it, save its weights alone, `torch.save({weights}, "
            "'weights.pt')`, or use safetensors."
        ) from error
    # A file that is no pickle at all fails in any of these ways, as its first bytes decide.
    except (RuntimeError, LookupError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path} is not a checkpoint: expected a state dict that torch.save wrote, or a "
            f".safetensors file. Reading it failed with {type(error).__name__}."
        ) from error


def _is_torchscript(path: Path) -> bool:
    """Whether a file is what ``torch.jit.save`` wrote: what torch.save writes has no constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _unsafe_globals(path: Path) -> str:
    """Name the Python objects that a checkpoint would import."""
    if not zipfile.is_zipfile(path):
        return ""
    try:
        names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    # What cannot be read names nothing.
    except pickle.UnpicklingError:
        return ""
    return f" (it names {', '.join(names[:_NAMED])})" if names else ""


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the state dict inside what a training script saved."""
    # A dictionary may hold itself.
    for _ in range(_DEPTH):
        if not isinstance(content, Mapping):
            break
        inside = {k: v for k, v in content.items() if isinstance(v, Mapping)}
        usual = [k for k in _WRAPPERS if k in inside]
        keys = usual[:1] or [k for k, v in inside.items() if _is_state(v)]
        if not keys:
            break
        if len(keys) > 1:
            raise InputError(
                f"{path} holds several state dicts: {_some(map(str, keys))}. Save the one that is "
                f"meant alone, `torch.save(torch.load(FILE)[{keys[0]!r}], 'weights.pt')`."
            )
        content = inside[keys[0]]
    if not isinstance(content, Mapping) or not content:
        raise InputError(
            f"{path} holds a {type(content).__name__}; expected a state dict, or one under a key "
            f"such as {', '.join(_WRAPPERS)}."
        )
    # torch.optim.swa_utils.AveragedModel counts its updates beside the weights.
    state = {k: v for k, v in content.items() if k != "n_averaged"}
    others = [k for k, v in state.items() if not isinstance(k, str) or not isinstance(v, Tensor)]
    if others:
        raise InputError(
            f"{path} is not a plain state dict: {_some(map(str, others))} is not a tensor. "
            f"Expected names and tensors, or those under a key such as {', '.join(_WRAPPERS)}."
        )
    empty = [k for k, v in state.items() if v.is_meta or v.layout != torch.strided]
    if empty:
        raise InputError(
            f"{path}: {_some(empty)} is sparse, or on the meta device without values. Save "
            "ordinary tensors."
        )
    return state


def _is_state(content: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is a state dict: names and tensors, and nothing else."""
    return bool(content) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()
    )


def strip_prefixes(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Tensor]:
    """Take off what stands before each name, and leave out what belongs to other modules.

    DataParallel, torch.compile, Lightning and people's own classes put ``module.``,
    ``_orig_mod.``, ``model.``, ``net.`` and the like before the names of a network.

    Args:
        state: Names and tensors.
        expected: The names that the network has; a prefix that they share is kept.

    Returns:
        The tensors under the prefix by which most names are expected ones, without it.
    """
    names = list(state)
    while not any(name in expected for name in names):
        prefix = next((p for p in _PREFIXES if all(n.startswith(p) for n in names)), None)
        if prefix is None:
            break
        names = [name.removeprefix(prefix) for name in names]
    renamed = dict(zip(names, state.values(), strict=True))
    hits = Counter(
        head for name in names for head, tail in _splits(name) if head and tail in expected
    )
    best = max(hits.values(), default=0)
    if best <= sum(name in expected for name in names):
        return renamed
    # Of a network and its moving average, the network.
    first, *others = sorted((p for p, count in hits.items() if count == best), key=len)
    if others:
        _logger.warning(
            "weights fit under %s and under %s: the first are taken", first, _some(others)
        )
    return {n.removeprefix(first): v for n, v in renamed.items() if n.startswith(first)}


def _splits(name: str) -> Iterator[tuple[str, str]]:
    """Every way to split a name behind a point: ``a.b.c`` as ``a.`` and ``b.c``, and so on."""
    parts = name.split(".")
    for i in range(len(parts)):
        yield "".join(f"{part}." for part in parts[:i]), ".".join(parts[i:])


def other_num_classes(net: nn.Module, state: Mapping[str, Tensor]) -> int | None:
    """Infer the number of classes of a checkpoint whose classifier alone has another shape.

    Args:
        net: The network with its usual number of classes.
        state: The checkpoint, with the names of ``net``.

    Returns:
        The number of classes, or None where the shapes are equal or differ in another way.
    """
    pairs = [(own, state[key]) for key, own in net.state_dict().items() if key in state]
    changed = [(own, new) for own, new in pairs if own.shape != new.shape]
    if any(own.ndim == 0 or own.shape[1:] != new.shape[1:] for own, new in changed):
        return None
    counts = {(own.shape[0], new.shape[0]) for own, new in changed}
    return counts.pop()[1] if len(counts) == 1 else None


def load_strictly(net: nn.Module, state: Mapping[str, Tensor], name: str, path: Path) -> None:
    """Copy a state dict into a network; all that the network has must be there, in its shape.

    What there is besides is named in a warning.

    Args:
        net: The network; changed in place.
        state: The checkpoint, with the names of ``net``.
        name: The model's name, for the message.
        path: The checkpoint's path, for the message.

    Raises:
        InputError: If names are missing, or shapes differ.
    """
    own = net.state_dict()
    # Files from before torch 0.4.1 lack these counters, which evaluation does not read.
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    shapes = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or shapes:
        faults = [
            f"{len(keys)} {what} ({_some(keys)})"
            for what, keys in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if keys
        ]
        raise InputError(
            f"the weights in {path} do not fit {name}: of {len(own)} expected, "
            f"{', '.join(faults)}. Check that the model's name is the architecture that was "
            "trained; a model of your own is loaded through a factory, `package.module:function`."
        )
    if unexpected:
        _logger.warning("%s: %s has no place for %s", path, name, _some(unexpected))
    net.load_state_dict(dict(state), strict=False)


def _some(keys: Any) -> str:
    """The first few keys."""
    keys = list(keys)
    return ", ".join(keys[:_NAMED]) + (", …" if len(keys) > _NAMED else "")
