"""Where an architecture comes from: torchvision, timm, a packaged network, or a user's code."""

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from polylight.errors import InputError, nearest
from polylight.networks.architecture import Architecture, Options, call_library
from polylight.networks.packaged import PACKAGED, packaged_state, rename_lite
from polylight.networks.preprocessing import FoundPreprocessing
from polylight.networks.user_code import from_factory, from_torch_hub, is_hub_entry

_FILES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".onnx")
# Their published weights expect inputs in [-1, 1] and convert them inside, and their slow
# initialisation is about to change in torchvision, which warns of it.
_INCEPTIONS = ("googlenet", "inception_v3")


def find_architecture(name: str) -> Architecture:
    """Look a model up by name.

    Args:
        name: A packaged network, a classifier of torchvision, a model of timm (in this order),
            ``torchvision/NAME`` or ``timm/NAME``; ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME``
            as timm takes them; ``hub:REPOSITORY:entry`` as torch.hub does; or
            ``package.module:function``.

    Returns:
        How to build it.

    Raises:
        InputError: If there is no such model.
    """
    library, _, bare = name.rpartition("/")
    if name.startswith(("local-dir:", "hf-hub:", "hf_hub:")):
        return _from_timm_source(name)
    if is_hub_entry(name):
        return from_torch_hub(name)
    if ":" in name:
        return from_factory(name)
    if name.endswith(_FILES):
        raise InputError(
            f"{name!r} is a file of weights, which do not say what they are of. Name the network, "
            "and give them beside it (--model.subject_weights, --model.embedder_weights)."
        )
    if library not in ("", "torchvision", "timm"):
        raise InputError(
            f"{name!r}: a model's library is torchvision or timm, not {library!r}. A local "
            "checkpoint is given as the weights of a named architecture; a model of a hub is "
            f"hf-hub:{name}, hub:owner/repository:entry, or a folder local-dir:FOLDER."
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
    quick = {"init_weights": False} if name in _INCEPTIONS else {}

    def build(options: Options, **more: Any) -> nn.Module:
        return call_library(
            name,
            lambda **given: models.get_model(name, **more, **given),
            options,
            lambda: models.get_model(name, weights=None, **quick),
        )

    def untrained(options: Options, keys: Collection[str]) -> nn.Module:
        if name in _INCEPTIONS:
            has_heads = any("aux1." in key or "AuxLogits." in key for key in keys)
            options = {"transform_input": True, "aux_logits": has_heads, **quick, **options}
        return build(options, weights=None)

    def preprocessing(net: nn.Module) -> FoundPreprocessing:
        transform = published.transforms()
        # A vision transformer may have been built for another size.
        own = getattr(net, "image_size", None)
        size = own if isinstance(own, int) else int(transform.crop_size[0])
        mean, std = tuple(transform.mean), tuple(transform.std)
        return FoundPreprocessing(mean, std, size, None, f"torchvision's {published}")

    return Architecture(
        "torchvision", lambda options: build(options, weights=published), untrained, preprocessing
    )


def _timm_builder(name: str) -> Callable[[Options, bool], nn.Module]:
    """Build a model of timm, with its weights or without."""
    import timm

    def build(options: Options, pretrained: bool) -> nn.Module:
        return call_library(
            name,
            lambda **given: timm.create_model(name, pretrained=pretrained, **given),
            options,
            lambda: timm.create_model(name),
        )

    return build


def _from_timm(name: str) -> Architecture:
    """A model of timm."""
    import timm

    build = _timm_builder(name)

    def pretrained(options: Options) -> nn.Module:
        if not timm.is_model_pretrained(name):
            raise InputError(
                f"timm has no weights of {name!r}. Give weights='random' or the path of a "
                "checkpoint."
            )
        return build(options, True)

    return Architecture("timm", pretrained, lambda options, _: build(options, False))


def _from_timm_source(name: str) -> Architecture:
    """A model in timm's format: a folder, or a repository of the Hugging Face hub."""
    source, _, place = name.partition(":")
    source = source.replace("_", "-")
    if source == "local-dir":
        place = str(Path(place).expanduser())
        if not Path(place, "config.json").is_file():
            raise InputError(
                f"{name!r}: there is no file {place}/config.json. Expected a folder that "
                "timm.models.save_for_hf wrote: config.json and the weights."
            )
    build = _timm_builder(f"{source}:{place}")

    def checked(options: Options, pretrained: bool) -> nn.Module:
        try:
            return build(options, pretrained)
        except InputError:
            raise
        # A lost connection, a repository that is none of timm's, weights that do not fit.
        except Exception as error:
            reason = next(iter(str(error).splitlines()), "")
            advice = (
                "Without a network, give a folder that holds it: local-dir:FOLDER."
                if source == "hf-hub"
                else "Expected config.json with its architecture, and weights that fit."
            )
            raise InputError(
                f"{name} could not be loaded ({type(error).__name__}: {reason}). {advice}"
            ) from error

    return Architecture(
        source, lambda options: checked(options, True), lambda options, _: checked(options, False)
    )


def _from_package(architecture: str) -> Architecture:
    """A network of timm whose weights come inside an installed package."""
    build = _timm_builder(architecture)

    def pretrained(options: Options) -> nn.Module:
        net = build(options, False)
        state = rename_lite(packaged_state(architecture), net.state_dict())
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                f"the installed weights of {architecture.removeprefix('tf_')} do not fit the "
                f"options {dict(options)}. Give weights='random' or the path of a checkpoint."
            ) from error
        return net

    return replace(_from_timm(architecture), source="packaged", pretrained=pretrained)
