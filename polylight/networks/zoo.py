"""Where an architecture comes from: torchvision, timm, a packaged network, or a user's factory."""

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from polylight.errors import InputError, nearest
from polylight.networks.packaged import PACKAGED, packaged_state, rename_lite
from polylight.networks.preprocessing import find_preprocessing

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
_IMAGENET_SIZE = 224

# Their published weights expect inputs in [-1, 1] and convert them inside, and their slow
# initialisation is about to change in torchvision, which warns of it.
_INCEPTIONS = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its images."""

    mean: tuple[float, ...] = _IMAGENET_MEAN
    std: tuple[float, ...] = _IMAGENET_STD
    input_size: int = _IMAGENET_SIZE
    window: tuple[int, int] | None = None
    """Height and width of the middle that it sees; None for all."""


@dataclass(frozen=True)
class Architecture:
    """How to build one network."""

    source: str
    """Who knows it: packaged, torchvision, timm or factory."""
    pretrained: Callable[[], nn.Module]
    """Build it with its published weights."""
    untrained: Callable[[int | None, Collection[str]], nn.Module] | None
    """Build it with random weights for a number of classes (None: its usual one) and for the
    names of a checkpoint, which tell whether there are auxiliary heads."""
    preprocessing: Callable[[nn.Module], Preprocessing]
    """Read the preprocessing of a built network."""


def find_architecture(name: str) -> Architecture:
    """Look a model up by name.

    Args:
        name: A packaged network, a classifier of torchvision, a model of timm (in this order),
            ``torchvision/NAME`` or ``timm/NAME``, or ``package.module:function``.

    Returns:
        How to build it.

    Raises:
        InputError: If there is no such model.
    """
    library, _, bare = name.rpartition("/")
    if ":" in name:
        return _from_factory(name)
    if library not in ("", "torchvision", "timm"):
        raise InputError(
            f"{name!r}: a model's library is torchvision or timm, not {library!r}. A local "
            "checkpoint is given as the weights of a named architecture."
        )
    if not library and bare in PACKAGED:
        return _from_package(PACKAGED[bare])
    in_torchvision = _torchvision_names() if library != "timm" else []
    if bare in in_torchvision:
        return _from_torchvision(bare)
    in_timm = _timm_names() if library != "torchvision" else []
    if bare in in_timm:
        return _from_timm(bare)
    choices = [*([] if library else PACKAGED), *in_torchvision, *in_timm]
    raise InputError(
        f"there is no model {name!r}; {nearest(bare, choices)}. Expected a classifier of "
        "torchvision, a model of timm, or your own as package.module:function."
    )


def _torchvision_names() -> list[str]:
    """Every classifier of torchvision."""
    import torchvision

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _timm_names() -> list[str]:
    """Every architecture of timm, and every one with the tag of its weights."""
    import timm

    return [*timm.list_models(), *timm.list_models(pretrained=True)]


def _from_torchvision(name: str) -> Architecture:
    """A classifier of torchvision."""
    from torchvision import models

    published = models.get_model_weights(name).DEFAULT

    def untrained(num_classes: int | None, keys: Collection[str]) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        if name in _INCEPTIONS:
            has_heads = any("aux1." in key or "AuxLogits." in key for key in keys)
            options |= {"init_weights": False, "transform_input": True, "aux_logits": has_heads}
        net: nn.Module = models.get_model(name, weights=None, **options)
        return net

    def preprocessing(net: nn.Module) -> Preprocessing:
        transform = published.transforms()
        return Preprocessing(
            tuple(transform.mean), tuple(transform.std), int(transform.crop_size[0])
        )

    return Architecture(
        "torchvision", lambda: models.get_model(name, weights=published), untrained, preprocessing
    )


def _from_timm(name: str) -> Architecture:
    """A model of timm."""
    import timm

    def pretrained() -> nn.Module:
        if not timm.is_model_pretrained(name):
            raise InputError(
                f"timm has no weights of {name!r}. Give weights='random' or the path of a "
                "checkpoint."
            )
        net: nn.Module = timm.create_model(name, pretrained=True)
        return net

    def untrained(num_classes: int | None, keys: Collection[str]) -> nn.Module:
        options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
        net: nn.Module = timm.create_model(name, pretrained=False, **options)
        return net

    return Architecture("timm", pretrained, untrained, _own_preprocessing)


def _from_package(architecture: str) -> Architecture:
    """A network of timm whose weights come inside an installed package."""
    import timm

    def pretrained() -> nn.Module:
        net: nn.Module = timm.create_model(architecture, pretrained=False)
        net.load_state_dict(rename_lite(packaged_state(architecture), net.state_dict()))
        return net

    return replace(_from_timm(architecture), source="packaged", pretrained=pretrained)


def _from_factory(name: str) -> Architecture:
    """A network that the user's own function returns."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A package that the user's module itself fails to import is not a wrong name.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise InputError(
            f"{name!r}: there is no module {error.name!r}. Expected package.module:function; is "
            "its folder on PYTHONPATH?"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        own = vars(module).items()
        functions = [n for n, v in own if getattr(v, "__module__", "") == module_name]
        raise InputError(
            f"{name!r}: module {module_name} has no function {function_name!r}; "
            f"{nearest(function_name, functions)}."
        )

    def build() -> nn.Module:
        net = function()
        if not isinstance(net, nn.Module):
            raise InputError(
                f"{name} must return a torch.nn.Module; it returned a {type(net).__name__}."
            )
        return net

    return Architecture("factory", build, None, _own_preprocessing)


def _own_preprocessing(net: nn.Module) -> Preprocessing:
    """Read the ``pretrained_cfg`` that timm's networks carry; what it lacks is found out."""
    found = find_preprocessing(net, None, None, None, None)
    return Preprocessing(found.mean, found.std, found.input_size, found.window)
