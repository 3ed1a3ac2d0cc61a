"""The network whose neurons are scored: cut off, frozen, and made fast without changing a value."""

import logging
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from polylight.errors import InputError
from polylight.kernels import Backend, Kernels, sample
from polylight.networks.copying import deep_copy, working_copy
from polylight.networks.dictionary import Dictionary
from polylight.networks.fold import (
    can_unfold,
    fix_same_padding,
    fold_norm,
    foldable_pairs,
    same_convolutions,
)
from polylight.networks.fuse import find_blocks, fuse
from polylight.networks.gradient import (
    Way,
    find_way,
    is_close,
    plain,
    refuse_company,
    unbroken,
    unreached,
)
from polylight.networks.images import crop
from polylight.networks.layers import noise, raise_unless_readable
from polylight.networks.layout import Layout, Layouts
from polylight.networks.load import Model
from polylight.networks.rectify import rectify_in_place
from polylight.networks.taps import LayerActivation, Tap, find_taps, read_taps
from polylight.networks.tracing import Trace, trace
from polylight.networks.transposed import with_fast_backward
from polylight.neurons import Address, LayerShape

__all__ = ["LayerActivation", "Subject"]

_log = logging.getLogger(__name__)


class Subject(nn.Module):
    """A network cut off at the deepest of some layers.

    It owns a rewritten copy of the network: frozen, in eval mode, in channels-last memory format,
    batch norms folded into convolutions, fixed padding, and in place what nobody else sees. The
    copy is only kept if every layer asked for returns what the original returns (float32, within
    1e-4 of the largest value); otherwise the network runs as it came, and a warning is logged.
    With a fixed batch size that is a multiple of 8, on a CPU, an image's activations and gradient
    do not depend on the other images or on its place in the batch. (Of other sizes, linear layers
    and smooth activations such as SiLU round the last images of a batch unlike the others.)

    A module that runs several times counts at its last run.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: Model,
        layers: Sequence[str],
        image_size: int,
        kernels: Kernels = "auto",
        *,
        climbed: bool = True,
    ) -> None:
        """Cut and rewrite a network.

        Args:
            model: The network; unchanged.
            layers: Names of the layers to read; at least one.
            image_size: Side of the images, in pixels; the only size that ``forward`` takes.
            kernels: ``auto`` for inverted residual blocks as one operation on a CPU; otherwise
                they stay convolutions.
            climbed: Whether images are to climb the layers, or only look at them.

        Raises:
            InputError: If a layer does not exist or has no channels, or the images are too small;
                or, where they are climbed, if no gradient reaches the images, or an image's
                activations are random or depend on its batch.
        """
        super().__init__()
        self.layers = tuple(layers)
        addresses = [Address.parse(name) for name in self.layers]
        self.image_size = image_size
        self.dtype = torch.float32
        """What the network computes in."""
        net = working_copy(model.net)
        self.window = model.window_at(image_size)
        """Height and width of the middle that it sees of an image; None for all."""
        images = noise(net, image_size, model.channels)
        for name, values in (("mean", model.mean), ("std", model.std)):
            self.register_buffer(name, images.new_tensor(values)[:, None, None], persistent=False)
        images = self._normalise(images)
        # A network may write into the images that it is shown.
        seen = trace(net, images.clone(), functions=True)
        if not layers:
            raise InputError(
                f"expected at least one layer. Run `polylight layers {model.name}` for their names."
            )
        layouts = Layouts(model, seen, image_size)
        self._read_of = [str(address._replace(dictionary=None)) for address in addresses]
        self.layouts = [raise_unless_readable(layouts, name, image_size) for name in self._read_of]
        """How the output of each layer is laid out; of a dictionary, that of what it reads."""
        self.channels = [layout.channels for layout in self.layouts]
        """Number of channels of each layer; of a dictionary, of what it reads."""
        self.dictionaries = nn.ModuleDict(
            {
                str(i): Dictionary.read(address, self.channels[i])
                for i, address in enumerate(addresses)
                if address.dictionary is not None
            }
        )
        """By index of the layer as text, what reads it."""
        modules = dict(net.named_modules())
        asked = [address.module for address in addresses]
        self._taps = find_taps(self._read_of, seen)
        expected = read_taps(net, self._taps, images.clone())
        self._way = plain
        if climbed:
            self._way = _check_climb(net, self._taps, images, expected, model, self.layers)

        # Which norms are folded must not depend on the layers asked for, or the last digits of
        # one layer would depend on the others. So the norm after a convolution that is asked for
        # is folded too, and what the convolution returned is worked out, where that can be told.
        self.unfold = nn.ModuleDict()
        pairs = [
            (convolution, norm)
            for convolution, norm in foldable_pairs(seen, modules)
            if convolution not in asked or can_unfold(net.get_submodule(norm))
        ]
        for convolution, norm in pairs:
            unfold = fold_norm(net, convolution, norm)
            self.unfold.update({str(i): unfold for i, n in enumerate(asked) if n == convolution})
        fix_same_padding(net, same_convolutions(seen, modules))
        net.to(memory_format=torch.channels_last)
        self.num_folded = len(pairs)
        """Number of batch norms that were folded."""
        seen = self._trace_rewritten(model, net, images)
        blocks = find_blocks(net, seen, self._read_of) if kernels == "auto" else []
        rectify_in_place(net, seen, self._read_of)
        with_fast_backward(net)
        fuse(net, blocks)
        seen = self._trace_rewritten(model, net, images)
        taps = find_taps(self._read_of, seen)
        if _agree(self._read(net, taps, range(len(taps)), images.clone()), expected):
            self._taps = taps
        else:
            _log.warning(
                "%s runs without folded batch norms: with them, %s did not return the same.",
                model.name,
                ", ".join(self.layers),
            )
            net, self.num_folded = working_copy(model.net), 0
            self.unfold.clear()
        self.net = net
        self.depths = [tap.order for tap in self._taps]
        """Order in which the layers finish; a forward goes as far as the largest one read."""

    @property
    def shapes(self) -> dict[str, LayerShape]:
        """By name, what each layer offers to be chosen from, in the order of ``layers``."""
        rows = zip(self.layers, self.layouts, self.depths, strict=True)
        shapes = {name: layout.shape(depth) for name, layout, depth in rows}
        for index, dictionary in self._readers.items():
            name = self.layers[index]
            shapes[name] = shapes[name]._replace(channels=len(dictionary.bias))
        return shapes

    @property
    def _readers(self) -> dict[int, Dictionary]:
        """The dictionaries, by index of their layer."""
        return {int(i): cast(Dictionary, d) for i, d in self.dictionaries.items()}

    @property
    def layer_channels(self) -> dict[str, int]:
        """By name, ``channels``."""
        return dict(zip(self.layers, self.channels, strict=True))

    def dictionary_hashes(self) -> dict[str, str]:
        """By layer, a hash of what the dictionary there holds."""
        return {self.layers[i]: d.content_hash for i, d in self._readers.items()}

    def deviations(self, channel_std: Tensor) -> Tensor:
        """Deviation of each channel, or vector, that can be chosen.

        Args:
            channel_std: [L, W], that of the channels of each layer; of a dictionary, of what it
                reads.

        Returns:
            [L, W'], padded with ones.
        """
        width = max(shape.channels for shape in self.shapes.values())
        found = channel_std.new_ones(len(self.layers), max(width, channel_std.shape[1]))
        found[:, : channel_std.shape[1]] = channel_std
        for row, dictionary in self._readers.items():
            of_vectors = dictionary.deviation(channel_std[row, : self.channels[row]])
            found[row, : len(of_vectors)] = of_vectors
        return found

    def forward(
        self, images: Tensor, layers: Collection[int] | None = None
    ) -> dict[int, LayerActivation]:
        """Read layers, up to the deepest of them and no further.

        Args:
            images: Float [B, channels, image_size, image_size] in [0, 1].
            layers: Which layers to read, as indices into ``layers``; None for all.

        Returns:
            By index, the activation of each layer read, channels second: [B, C, ...].

        Raises:
            InputError: If the images have another size than the subject was built for.
        """
        expected = (len(self.mean), self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise InputError(
                f"expected images [B, {', '.join(map(str, expected))}]; got "
                f"{list(images.shape)}. Build the subject with the size of the images."
            )
        wanted = range(len(self.layers)) if layers is None else layers
        return self.activations(self._normalise(images), wanted)

    def look(
        self,
        images: Tensor,
        maps: Tensor,
        layers: Collection[int] | None = None,
        *,
        backend: Backend = "torch",
    ) -> dict[int, LayerActivation]:
        """Read layers of images that are moved about first.

        Args:
            images: float32 [B, channels, H, W] in [0, 1], of any size.
            maps: float32 [B, 2, 3], from what the network sees to the images
                (:func:`polylight.kernels.sample`).
            layers: As in :meth:`forward`.
            backend: Which implementation of the kernels runs.

        Returns:
            As in :meth:`forward`.
        """
        mean, std = self.mean.flatten(), self.std.flatten()
        seen = sample(images, maps, self.image_size, mean, std, self.dtype, backend=backend)
        wanted = range(len(self.layers)) if layers is None else layers
        return self.activations(self._crop(seen), wanted)

    def activations(self, normal: Tensor, layers: Collection[int]) -> dict[int, LayerActivation]:
        """Read layers of images that are normalised already.

        Args:
            normal: [B, channels, image_size, image_size], or as large as the window, (image -
                mean) / std, in channels-last memory format and of the network's own type.
            layers: As in :meth:`forward`.

        Returns:
            As in :meth:`forward`.
        """
        wanted = sorted(layers)
        with self._way():
            found = self._read(self.net, self._taps, wanted, normal)
        activations = {
            index: _channels_second(activation, self.layouts[index])
            for index, activation in zip(wanted, found, strict=True)
        }
        for index, dictionary in self._readers.items():
            if index in activations:
                activations[index] = dictionary(activations[index])
        return activations

    def climbable(self) -> list[str]:
        """Name the layers whose gradient reaches the images, perhaps by a detour of ``climbed``."""
        image = noise(self.net, self.image_size, len(self.mean))
        with torch.enable_grad(), unbroken():
            normal = self._normalise(image.requires_grad_())
            found = self._read(self.net, self._taps, range(len(self.layers)), normal)
        cut = unreached(self.layers, [activation.post for activation in found])
        return [name for name in self.layers if name not in cut]

    def cast(self, dtype: torch.dtype) -> "Subject":
        """Copy the subject, to compute in another floating-point type.

        Args:
            dtype: bfloat16, say.

        Returns:
            The copy; images are normalised before they are cast.

        Raises:
            InputError: If the network does not run in this type.
        """
        twin = deep_copy(self)
        twin.net.to(dtype)
        twin.unfold.to(dtype)
        twin.dtype = dtype
        side = self.image_size
        images = torch.zeros(1, len(self.mean), side, side, dtype=dtype, device=self.mean.device)
        images = self._crop(images.contiguous(memory_format=torch.channels_last))
        try:
            with torch.no_grad():
                twin.activations(images, range(len(self.layers)))
        # Whatever a third party's forward raises when its input is not float32.
        except Exception as error:
            raise InputError(
                f"the subject does not run in {str(dtype).removeprefix('torch.')} ({error}). "
                "Set --model.precision float32."
            ) from error
        return twin

    def train(self, mode: bool = True) -> "Subject":
        """Stay in eval mode, whatever the trainer around it switches to."""
        return super().train(False)

    def _trace_rewritten(self, model: Model, net: nn.Module, images: Tensor) -> Trace:
        """Trace a network that has run as it was, and was rewritten since."""
        seen = trace(net, images.clone(), functions=True)
        found = [seen.find(Address.parse(name)) for name in self._read_of]
        if seen.error is not None and None in found:
            raise InputError(
                f"{model.name} stopped working when it was made fast "
                f"({type(seen.error).__name__}: {seen.error}). Do without: --model.kernels torch."
            ) from seen.error
        return seen

    def _read(
        self, net: nn.Module, taps: Sequence[Tap], wanted: Sequence[int], images: Tensor
    ) -> list[LayerActivation]:
        """Read some taps, as they were before folding."""
        found = read_taps(net, [taps[index] for index in wanted], images)
        for place, index in enumerate(wanted):
            if str(index) in self.unfold:
                output = self.unfold[str(index)](found[place].post)
                found[place] = LayerActivation(output, output)
        return found

    def _crop(self, images: Tensor) -> Tensor:
        """What the network sees of whole images, in channels-last memory format."""
        return crop(images, self.window).contiguous(memory_format=torch.channels_last)

    def _normalise(self, images: Tensor) -> Tensor:
        """Normalise images in [0, 1] as the network expects them."""
        normal = (crop(images, self.window) - self.mean) / self.std
        return normal.to(self.dtype, memory_format=torch.channels_last)


def _check_climb(
    net: nn.Module,
    taps: Sequence[Tap],
    images: Tensor,
    expected: Sequence[LayerActivation],
    model: Model,
    layers: Sequence[str],
) -> Way:
    """Refuse layers that images cannot climb, each for itself; what their gradient takes."""

    def read(some: Tensor) -> list[Tensor]:
        return [activation.post for activation in read_taps(net, taps, some)]

    refuse_company(read, images, [activation.post for activation in expected], model.name, layers)
    return find_way(read, images, model.name, layers)


def _channels_second(activation: LayerActivation, layout: Layout) -> LayerActivation:
    """Move the channels of an activation to the second axis, where they mostly are."""
    axis = layout.channel_axis
    if axis == 1:
        return activation._replace(prefix=layout.prefix) if layout.prefix else activation
    post = activation.post.movedim(axis, 1)
    same = activation.pre is activation.post
    return LayerActivation(post, post if same else activation.pre.movedim(axis, 1), layout.prefix)


def _agree(found: Sequence[LayerActivation], expected: Sequence[LayerActivation]) -> bool:
    """Whether each activation is what it should be, relative to the largest value of its layer."""
    return all(is_close(f.post, e.post) for f, e in zip(found, expected, strict=True))
