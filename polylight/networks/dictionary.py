"""Virtual layers: the directions and latents of a dictionary, as modules that the network runs."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from polylight.errors import InputError
from polylight.networks.copying import deep_copy
from polylight.networks.encoder import Encoder, read_encoder
from polylight.networks.layers import find_layouts, raise_unless_readable
from polylight.networks.model import Model, hash_weights
from polylight.networks.tracing import elements
from polylight.neurons import Address


class Extended(nn.Module):
    """A network with virtual layers, each beside the layer that it reads.

    Its modules have the names that they have in the network; a dictionary's is its address. What
    the network returns is unchanged.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.dictionaries = nn.ModuleDict()

    def add(self, address: Address, encoder: Encoder, base: Address) -> None:
        """Let an encoder run whenever the layer that it reads has run."""
        self.dictionaries[address.module] = encoder
        self.network.get_submodule(base.module).register_forward_hook(_Feed(encoder, base.element))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the network."""
        return self.network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What a module of torch has, or else what the network has, such as a number of tokens."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("network", "dictionaries"):
                raise
            return getattr(self.network, name)

    def named_modules(
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The modules of the network, and the dictionaries."""
        memo = set() if memo is None else memo
        yield from self.network.named_modules(memo, prefix, remove_duplicate)
        for name, encoder in self.dictionaries.items():
            yield f"{prefix}{'.' if prefix else ''}{name}", encoder

    def get_submodule(self, target: str) -> nn.Module:
        """A module of the network, or a dictionary."""
        if target in self.dictionaries:
            return self.dictionaries[target]
        return self.network.get_submodule(target)

    def set_submodule(self, target: str, module: nn.Module, strict: bool = False) -> None:
        """Replace a module of the network."""
        self.network.set_submodule(target, module, strict)


class _Feed:
    """A forward hook that hands what a layer returns to an encoder."""

    def __init__(self, encoder: Encoder, element: str) -> None:
        self.encoder, self.element = encoder, element

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        found = elements(output).get(self.element)
        if found is not None:
            self.encoder(found)


def swap(net: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module into the place of another; dictionaries go on reading that place.

    Args:
        net: The network; changed in place.
        name: The place.
        module: What returns the same there.
    """
    hooks = net.get_submodule(name)._forward_hooks
    for key, hook in list(hooks.items()):
        if isinstance(hook, _Feed):
            del hooks[key]
            module.register_forward_hook(hook)
    net.set_submodule(name, module)


def with_dictionaries(model: Model, layers: Sequence[str], image_size: int) -> Model:
    """Add the dictionaries that some layers are of.

    Args:
        model: The network; unchanged.
        layers: Addresses of layers.
        image_size: Side of the images, in pixels.

    Returns:
        The network with them, or the same where there are none. ``dictionaries`` has the hash of
        each one's weights.

    Raises:
        InputError: If a file cannot be read, or its directions are not of the size of the layer
            that they are of.
    """
    addresses = [Address.parse(layer) for layer in layers]
    wanted = {address.module: address for address in addresses if address.dictionary}
    if not wanted:
        return model
    encoders = {name: read_encoder(a.dictionary) for name, a in wanted.items() if a.dictionary}
    layouts = find_layouts(model, image_size)
    net = Extended(deep_copy(model.net))
    hashes = []
    for name, address in wanted.items():
        dictionary, encoder = address.dictionary, encoders[name]
        assert dictionary is not None
        base = dictionary.base
        layout = raise_unless_readable(layouts, str(base), image_size)
        count, size = encoder.weight.shape
        if size != layout.channels:
            raise InputError(
                f"the {count} {dictionary.kind} vectors of {dictionary.file} have {size} numbers "
                f"each, but layer '{base}' of {model.name} has {layout.channels} channels."
            )
        encoder.axis = layout.channel_axis
        like = next(model.net.parameters(), encoder.weight)
        net.add(address, encoder.to(like.device), base)
        settings = f"{hash_weights(encoder)} {encoder.is_rectified} {encoder.k}"
        hashes.append((name, hashlib.blake2b(settings.encode(), digest_size=16).hexdigest()))
    named = tuple((str(Address(name)), digest) for name, digest in sorted(hashes))
    return replace(model, net=net.eval().requires_grad_(False), dictionaries=named)
