"""Networks that the user's own code makes: a factory in a module, or an entry of torch.hub."""

import importlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polylight.errors import InputError, nearest
from polylight.networks.architecture import Architecture, Options, call_users, users_error
from polylight.networks.copying import deep_copy

_HUB_FAULTS = ("Cannot find callable", "unexpected keyword argument", "required positional arg")


def from_factory(name: str) -> Architecture:
    """A network that a function, a class or a variable of a module gives.

    Args:
        name: ``package.module:name``.

    Returns:
        How to build it.

    Raises:
        InputError: If there is no such thing, or the module cannot be imported.
    """
    module_name, _, attribute = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    # Whatever the module raises when it is run.
    except Exception as error:
        lost = error.name if isinstance(error, ModuleNotFoundError) else None
        # A package that the user's module itself fails to import is not a wrong name.
        if lost is None or not f"{module_name}.".startswith(f"{lost}."):
            raise users_error(f"importing {module_name}", error) from error
        raise InputError(
            f"{name!r}: there is no module {lost!r}. Expected package.module:function; is "
            "its folder on PYTHONPATH?"
        ) from None
    found = getattr(module, attribute, None)
    if not callable(found):
        own = vars(module).items()
        functions = [n for n, v in own if getattr(v, "__module__", "") == module_name]
        raise InputError(
            f"{name!r}: module {module_name} has no function {attribute!r}; "
            f"{nearest(attribute, functions)}."
        )

    def build(options: Options) -> nn.Module:
        if not isinstance(found, nn.Module):
            return call_users(name, found, options)
        if options:
            raise InputError(f"{name} is a network already, and takes no options.")
        return deep_copy(found)

    return Architecture("factory", build, None)


def is_hub_entry(name: str) -> bool:
    """Whether a name is ``hub:REPOSITORY:entry``, and not ``function`` of a module ``hub``."""
    return name.startswith("hub:") and (name.count(":") > 1 or "/" in name)


def from_torch_hub(name: str) -> Architecture:
    """An entry of a repository's ``hubconf.py``, whose code is run.

    Args:
        name: ``hub:owner/repository:entry`` or ``hub:owner/repository:ref:entry`` of GitHub, or
            ``hub:/folder:entry``.

    Returns:
        How to build it.

    Raises:
        InputError: If the name is of another form, or there is no such folder.
    """
    repository, _, entry = name.removeprefix("hub:").rpartition(":")
    if not repository or not entry:
        raise InputError(
            f"{name!r}: expected hub:owner/repository:entry, or hub:/folder:entry for a folder "
            "with a hubconf.py."
        )
    is_local = repository.startswith(("/", "~", ".")) or Path(repository).is_absolute()
    if is_local:
        repository = str(Path(repository).expanduser())
        if not Path(repository, "hubconf.py").is_file():
            raise InputError(f"{name!r}: there is no file {repository}/hubconf.py.")
    # To name a repository is to trust it: nobody may be there to answer a question.
    known: dict[str, Any] = {"source": "local" if is_local else "github", "trust_repo": True}

    def load(**options: Any) -> Any:
        try:
            hub: Any = torch.hub
            return hub.load(repository, entry, verbose=False, **known, **options)
        # Of a lost network, torch itself makes a RuntimeError; as of an entry that does not exist.
        except (OSError, RuntimeError, TypeError) as error:
            said = str(error)
            if not is_local and (isinstance(error, OSError) or "internet connection" in said):
                raise InputError(
                    f"{name}: the repository or its weights could not be fetched ({said}). Without "
                    "a network, clone it and write hub:/folder:entry."
                ) from error
            if any(part in said for part in _HUB_FAULTS):
                raise InputError(f"{name}: {said}; see the hubconf.py of {repository}.") from error
            raise

    return Architecture("hub", lambda options: call_users(name, load, options), None)
