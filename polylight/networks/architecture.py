"""How to build one network, and what is said when its constructor refuses."""

import inspect
import re
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polylight.errors import InputError, nearest
from polylight.networks.preprocessing import FoundPreprocessing, find_preprocessing

Options = Mapping[str, Any]
"""Keyword arguments of a constructor."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
# What the argument ``weights`` of ``load_model`` decides.
_OF_WEIGHTS = ("weights", "weights_backbone", "pretrained", "checkpoint_path")
_HINT = "(--model.subject_options, --model.embedder_options)"


def own_preprocessing(net: nn.Module) -> FoundPreprocessing:
    """Read the ``pretrained_cfg`` that timm's networks carry; what it lacks is found out."""
    return find_preprocessing(net, None, None, None, None)


@dataclass(frozen=True)
class Architecture:
    """How to build one network."""

    source: str
    """Who knows it: packaged, torchvision, timm, local-dir, hf-hub, hub or factory."""
    pretrained: Callable[[Options], nn.Module]
    """Build it with its published weights."""
    untrained: Callable[[Options, Collection[str]], nn.Module] | None
    """Build it with random weights; the names of a checkpoint tell whether there are auxiliary
    heads. None for a user's code, which brings weights of its own."""
    preprocessing: Callable[[nn.Module], FoundPreprocessing] = own_preprocessing
    """Read the preprocessing of a built network."""


def call_users(name: str, function: Callable[..., Any], options: Options) -> nn.Module:
    """Call a function or class of the user's that makes a network.

    Args:
        name: What the user calls it.
        function: It.
        options: Its keyword arguments.

    Returns:
        The network.

    Raises:
        InputError: If it takes other options, needs more, raises an exception, or returns anything
            but a network.
    """
    _check_options(name, function, options)
    try:
        net = function(**options)
    except InputError:
        raise
    # Whatever the user's code raises.
    except Exception as error:
        raise users_error(name, error) from error
    if not isinstance(net, nn.Module):
        raise InputError(
            f"{name} must return a torch.nn.Module; it returned a {type(net).__name__}."
        )
    return net


def users_error(name: str, error: Exception) -> InputError:
    """Say what code of the user's raised, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return InputError(f"{name} raised {said} ({Path(place.filename).name}, line {place.lineno}).")


def call_library(
    name: str, function: Callable[..., nn.Module], options: Options, plain: Callable[[], nn.Module]
) -> nn.Module:
    """Call a library's constructor, which hands options on to a class that it does not name.

    Args:
        name: The model's name.
        function: The constructor.
        options: Keyword arguments of it.
        plain: The same without options and weights, to see what there is.

    Returns:
        The network.

    Raises:
        InputError: If it does not take the options.
        OSError: If weights cannot be downloaded.
    """
    for key in _OF_WEIGHTS:
        if key in options:
            raise InputError(
                f"{key!r} is no option of {name} {_HINT}: weights are given as such "
                "(--model.subject_weights, --model.embedder_weights)."
            )
    try:
        return function(**options)
    except (InputError, OSError):
        raise
    # Whatever a class raises of a value that it cannot use.
    except Exception as error:
        if not options:
            raise
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if unknown and unknown[1] in options:
            raise _unknown(name, unknown[1], _constructor_names(plain)) from error
        given = ", ".join(f"{key}: {value!r}" for key, value in options.items())
        raise InputError(
            f"{name} cannot be built with the options {{{given}}} ({type(error).__name__}: "
            f"{error}). Published weights fit the usual options; other ones need "
            "weights='random' or a checkpoint."
        ) from error


def _check_options(name: str, function: Callable[..., Any], options: Options) -> None:
    """Refuse options that a function does not take, and those that it lacks."""
    try:
        parameters = inspect.signature(function).parameters.values()
    # Of something built in.
    except (TypeError, ValueError):
        return
    names = [p.name for p in parameters if p.kind in _BY_NAME]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in options:
            if key not in names:
                raise _unknown(name, key, names)
    open_ended = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    missing = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in open_ended and p.name not in options
    ]
    if missing:
        wanted = ", ".join(f"{key}: …" for key in missing)
        raise InputError(f"{name} cannot be called without options {{{wanted}}} {_HINT}.")


def _unknown(name: str, key: str, choices: Collection[str]) -> InputError:
    return InputError(f"{name} takes no option {key!r} {_HINT}; {nearest(key, choices)}.")


def _constructor_names(plain: Callable[[], nn.Module]) -> list[str]:
    """What the classes of a network take by name."""
    try:
        with torch.device("meta"):
            kinds = type(plain()).__mro__
    # A few constructors compute with their weights, which have no values there.
    except Exception:
        return []
    own = [kind for kind in kinds if issubclass(kind, nn.Module) and kind is not nn.Module]
    found = [p for kind in own for p in inspect.signature(kind).parameters.values()]
    return list(dict.fromkeys(p.name for p in found if p.kind in _BY_NAME))
