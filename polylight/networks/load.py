"""Load a network, frozen, with the preprocessing that it was trained with."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from polylight.errors import InputError
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
from polylight.networks.zoo import Architecture, find_architecture

__all__ = ["Model", "hash_weights", "load_model", "shape_weights"]

_SEED = 0


def load_model(name: str, weights: str = "pretrained") -> Model:
    """Load a network by name.

    Args:
        name: ``efficientnet_lite0`` or ``efficientnet_lite2``, whose weights are installed with
            polylight; a classifier of torchvision; a model of timm; ``torchvision/NAME`` or
            ``timm/NAME`` where both know the name (torchvision is asked first); or
            ``package.module:function``, a function without arguments that returns an
            ``nn.Module``.
        weights: ``pretrained``: the published weights, or what the function returns;
            ``random``: the library's initialisation from a fixed seed; or the path of a local
            checkpoint (``.safetensors``, or a state dict that ``torch.save`` wrote), which must
            fit exactly. A checkpoint may have another number of classes.

    Returns:
        The network, frozen, on the CPU, in float32 whatever the type of its weights.

    Raises:
        InputError: If the model is unknown, or the weights cannot be fetched, are not safe to
            load or do not fit, or the network cannot be scored
            (:func:`polylight.networks.live.check_module`).
    """
    architecture = find_architecture(name)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reseed the generators of the GPUs.
        torch.default_generator.manual_seed(_SEED)
        net, source = _build(architecture, name, weights)
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
    )


def as_model(
    given: str | nn.Module | Model, weights: str = "pretrained", **preprocessing: Any
) -> Model:
    """Make a model of whatever stands for a network.

    Args:
        given: A network in memory, the name of one as on the command line, or a model.
        weights: Weights of a name, as :func:`load_model` takes them.
        preprocessing: Of a network in memory, as
            :func:`polylight.networks.live.model_from_module` takes it.

    Returns:
        The model.

    Raises:
        InputError: If it cannot be used.
    """
    if not isinstance(given, str | Model):
        return model_from_module(given, **preprocessing)
    told = [name for name, value in preprocessing.items() if value is not None]
    if told:
        raise InputError(
            f"{', '.join(told)} can be given for a network in memory; one that is loaded by name "
            "brings its own. Pass the nn.Module itself."
        )
    return given if isinstance(given, Model) else load_model(given, weights)


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


def _build(architecture: Architecture, name: str, weights: str) -> tuple[nn.Module, str]:
    """The network with the weights asked for, and where they come from."""
    if weights == "pretrained":
        try:
            return architecture.pretrained(), architecture.source
        # Both libraries' download errors are OSErrors; a factory's are the user's own.
        except OSError as error:
            if architecture.source == "factory":
                raise
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
        return architecture.untrained(None, ()), "random"
    return _from_checkpoint(architecture, name, Path(weights)), "checkpoint"


def _from_checkpoint(architecture: Architecture, name: str, path: Path) -> nn.Module:
    """The network with the weights of a local file."""
    saved = read_checkpoint(path)
    if architecture.untrained is None:
        net = architecture.pretrained()
        load_strictly(net, strip_prefixes(saved, net.state_dict()), name, path)
        return net
    net = architecture.untrained(None, saved)
    state = strip_prefixes(saved, net.state_dict())
    if is_lite_state(state):
        state = rename_lite(state, net.state_dict())
    num_classes = other_num_classes(net, state)
    if num_classes is not None:
        net = architecture.untrained(num_classes, saved)
    load_strictly(net, state, name, path)
    return net
