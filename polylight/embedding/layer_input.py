"""What the layer below a neuron hands to it: the subject's own view of finished images."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from polylight.embedding.reference import Reference
from polylight.networks import Model
from polylight.networks.copying import deep_copy
from polylight.networks.images import crop
from polylight.networks.layers import find_layouts
from polylight.networks.layout import Layout, Layouts
from polylight.networks.taps import pool, read_inputs
from polylight.neurons import Address


class LayerInput(nn.Module):
    """Embeds images by the activations that a layer of the subject reads.

    What drives a neuron comes from there, so it shows what images have in common for the network
    itself. A layer reads where channels are first mixed on the way to its output: by the first
    convolution or linear layer that runs within it or, in a norm, a rectifier or a depthwise
    convolution, by the last one that ran before it. So a neuron never meets itself. What reads
    the image itself has nothing layer_input.

    Args:
        model: The subject.
        image_size: Side of the images, in pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, image_size: int) -> None:
        super().__init__()
        self.window = model.window_at(image_size)
        self.net = deep_copy(model.net).eval().requires_grad_(False)
        # Not made anew for each image: a copy to a GPU would wait for it.
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)
        layouts = find_layouts(model, image_size)
        seen = layouts.seen
        modules = dict(model.net.named_modules())
        order = list(seen.returned)
        mixing = [
            name
            for name in seen.runs
            if _mixes_channels(modules[name]) and isinstance(layouts.find(Address(name)), Layout)
        ]
        if model.channels == 1:
            # What reads the image has a single channel to mix.
            reader = next((name for name in order if isinstance(modules[name], _ConvNd)), None)
            mixing = [name for name in order if name == reader or name in mixing]
        self.calls = {name: len(seen.returned[name]) for name in mixing[1:]}
        """How often each module that mixes channels runs, in the order in which they finish."""
        self.position = {name: place for place, name in enumerate(order)}
        """Of every module that runs, its place in that order."""
        self._source = {layer: self._find_source(layer, mixing) for layer in order}
        self._prefix = {name: _tokens_before(layouts, name) for name in self.calls}

    def _find_source(self, layer: str, mixing: Sequence[str]) -> str | None:
        within = [name for name in mixing if name == layer or name.startswith(f"{layer}.")]
        before = [name for name in mixing if self.position[name] < self.position[layer]]
        found = within[:1] or before[-1:]
        return found[0] if found and found[0] in self.calls else None

    def source(self, layer: str) -> str | None:
        """Name the module whose input a layer reads, None where that is the image.

        Args:
            layer: Address of a layer of the subject.

        Returns:
            A convolution or linear layer.
        """
        return self._source[Address.parse(layer).module]

    @torch.no_grad()
    def pooled(self, images: Tensor, sources: Sequence[str]) -> dict[str, Tensor]:
        """Pool what some modules read, over space.

        Args:
            images: float32 [B, C, H, W] in [0, 1], of that size.
            sources: Convolutions and linear layers, as :meth:`source` names them.

        Returns:
            By source, the mean input of each of its channels: float32 [B, C].
        """
        seen = (crop(images, self.window) - self.mean) / self.std
        wanted = {name: call for name, call in self.calls.items() if name in set(sources)}
        pooled = {}
        for name, entered in read_inputs(self.net, wanted, seen).items():
            linear = isinstance(self.net.get_submodule(name), nn.Linear)
            maps = entered.movedim(-1, 1) if linear else entered
            pooled[name] = pool(maps, self._prefix[name]).float()
        return pooled

    def forward(self, images: Tensor, layer: str, reference: Reference) -> Tensor:
        """Embed images by what a layer reads.

        Args:
            images: float32 [B, C, H, W] in [0, 1], of that size.
            layer: The layer.
            reference: Gives the scale of every channel, on the device of the images.

        Returns:
            float32 [B, C], in standard deviations from the mean of reference images of about the
            same depth; 0 where a channel is not finite. [B, 0] of a layer that reads the image.
        """
        source = self.source(layer)
        if source is None:
            return images.new_zeros(len(images), 0)
        mean, deviation = reference.input_mean[source], reference.input_std[source]
        scores = (self.pooled(images, [source])[source] - mean) / deviation
        return torch.where(scores.isfinite(), scores, 0)


def nearest_images(
    layer_input: LayerInput, layers: Sequence[str], count: int
) -> Mapping[str, Tensor]:
    """Find the reference images whose neurons lie nearest to what each module reads.

    Args:
        layer_input: The subject.
        layers: The layer of each reference image.
        count: How many images, > 0.

    Returns:
        By source, int64 [count] (or all): in rising order.
    """
    depth = torch.tensor([layer_input.position[Address.parse(name).module] for name in layers])
    nearest = {}
    for source in layer_input.calls:
        distance = (depth - layer_input.position[source]).abs()
        nearest[source] = distance.argsort(stable=True)[:count].sort().values
    return nearest


def _tokens_before(layouts: Layouts, name: str) -> int:
    """Tokens before those of the patches in what a module reads; as many as in what it returns."""
    layout = layouts.find(Address(name))
    return layout.prefix if isinstance(layout, Layout) else 0


def _mixes_channels(module: nn.Module) -> bool:
    """Whether every output of a module may depend on several channels of its input."""
    if isinstance(module, _ConvNd):
        return module.groups < module.in_channels
    return isinstance(module, nn.Linear)
