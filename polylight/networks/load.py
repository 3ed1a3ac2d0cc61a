"""Load a network, frozen, with the preprocessing that it was trained with."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polylight.errors import InputError
from polylight.networks.architecture import Architecture, Options
from polylight.networks.checkpoint import (
    load_strictly,
    other_num_classes,
    read_checkpoint,
    strip_prefixes,
)
from polylight.networks.copying import uncompile, unwrapped
from polylight.networks.live import check_module, model_from_module
from polylight.networks.model import Model, hash_weights
from polylight.networks.packaged import is_lite_state, rename_lite
from polylight.networks.zoo import find_architecture
from polylight.noise import without_noise

__all__ = ["Model", "hash_weights", "load_model", "shape_weights"]

_SEED = 0


def load_model(
    name: str, weights: str = "pretrained", options: Mapping[str, Any] | None = None
) -> Model:
    """Load a network by name.

    Args:
        name: ``efficientnet_lite0`` or ``efficientnet_lite2``, whose weights are installed with
            polylight; a classifier of torchvision; a model of timm; ``torchvision/NAME`` or
            ``timm/NAME`` where both know the name (torchvision is asked first);
            ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME`` in timm's format;
            ``hub:OWNER/REPOSITORY:entry`` or ``hub:/FOLDER:entry``, whose ``hubconf.py`` is run;
            or ``package.module:name`` of a function or class that makes an ``nn.Module``, or of
            an ``nn.Module``.
        weights: ``pretrained``: the published weights, or what the function returns;
            ``random``: the library's initialisation from a fixed seed; or the path of a local
            checkpoint (``.safetensors``, or a state dict that ``torch.save`` wrote), which must
            fit (:func:`polylight.networks.checkpoint.load_strictly`). It may have another number
            of classes.
        options: Keyword arguments of the constructor, the function or the entry, such as
            ``{"num_classes": 10}``.

    Returns:
        The network, frozen, on the CPU, in float32 whatever the type of its weights.

    Raises:
        InputError: If the model is unknown or does not take the options, or the weights cannot be
            fetched, are not safe to load or do not fit, or the network cannot be scored
            (:func:`polylight.networks.live.check_module`).
    """
    chosen = _checked(options)
    with without_noise():
        # It loads timm.
        architecture = find_architecture(name)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the generators of the GPUs.
        torch.default_generator.manual_seed(_SEED)
        net, source = _build(architecture, name, weights, chosen)
    net = unwrapped(net)
    check_module(net)
    weights_hash = hash_weights(net)
    uncompile(net)
    net.cpu().float().eval().requires_grad_(False)
    expected = architecture.preprocessing(net)
    return Model(
        name=name,
        net=net,
        mean=expected.mean,
        std=expected.std,
        input_size=expected.input_size,
        weights_hash=weights_hash,
        source=source,
        window=expected.window,
        options=json.dumps(chosen, sort_keys=True, default=str) if chosen else "",
    )


def _checked(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """Options as keyword arguments."""
    if not isinstance(options, Mapping | None) or not all(
        isinstance(k, str) for k in options or ()
    ):
        raise InputError(f"expected options by name, such as {{num_classes: 10}}, got {options!r}.")
    return dict(options or {})


def as_model(
    given: str | nn.Module | Model,
    weights: str = "pretrained",
    options: Mapping[str, Any] | None = None,
    **preprocessing: Any,
) -> Model:
    """Make a model of whatever stands for a network.

    Args:
        given: A network in memory, the name of one as on the command line, or a model.
        weights: Weights of a name, as :func:`load_model` takes them.
        options: Options of a name, likewise.
        preprocessing: Of a network in memory, as
            :func:`polylight.networks.live.model_from_module` takes it.

    Returns:
        The model.

    Raises:
        InputError: If it cannot be used.
    """
    if options and not isinstance(given, str):
        raise InputError(
            "options are a constructor's; a network in memory is built already. Build it with them."
        )
    if not isinstance(given, str | Model):
        return model_from_module(given, **preprocessing)
    told = [name for name, value in preprocessing.items() if value is not None]
    if told:
        raise InputError(
            f"{', '.join(told)} can be given for a network in memory; one that is loaded by name "
            "brings its own. Pass the nn.Module itself."
        )
    return given if isinstance(given, Model) else load_model(given, weights, options)


def shape_weights(name: str) -> str:
    """Say which weights of a network are had without a download: its layers' shapes need no more.

    Args:
        name: As ``load_model`` takes it.

    Returns:
        The argument ``weights`` of ``load_model``.

    Raises:
        InputError: If there is no such network.
    """
    return "pretrained" if find_architecture(name).untrained is None else "random"


def _build(
    architecture: Architecture, name: str, weights: str, options: Options
) -> tuple[nn.Module, str]:
    """The network with the weights asked for, and where they come from."""
    if weights == "pretrained":
        try:
            return architecture.pretrained(options), architecture.source
        # Both libraries' download errors are OSErrors.
        except OSError as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise InputError(
                f"the weights of {name} could not be downloaded ({reason}). Without a network, "
                "give the path of a checkpoint as its weights (--model.subject_weights PATH, or "
                "--model.embedder_weights PATH), or use efficientnet_lite0, whose weights are "
                "installed with polylight."
            ) from error
    if weights == "random":
        if architecture.untrained is None:
            raise InputError(
                f"weights='random' is for named architectures; {name} returns a network with "
                "weights of its own. Leave weights away, or give a checkpoint."
            )
        return architecture.untrained(options, ()), "random"
    path = Path(weights).expanduser()
    return _from_checkpoint(architecture, name, path, options), "checkpoint"


def _from_checkpoint(
    architecture: Architecture, name: str, path: Path, options: Options
) -> nn.Module:
    """The network with the weights of a local file."""
    saved = read_checkpoint(path)
    if architecture.untrained is None:
        net = architecture.pretrained(options)
        load_strictly(net, strip_prefixes(saved, net.state_dict()), name, path)
        return net
    net = architecture.untrained(options, saved)
    state = strip_prefixes(saved, net.state_dict())
    if is_lite_state(state):
        state = rename_lite(state, net.state_dict())
    num_classes = other_num_classes(net, state)
    if num_classes is not None and "num_classes" not in options:
        net = architecture.untrained({**options, "num_classes": num_classes}, saved)
    load_strictly(net, state, name, path)
    return net
