"""What photos do to neurons, judged as a neuron's own images are, and how they are embedded."""

import io
import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from polylight.ascent.objective import Scale, Targets, make_targets, read
from polylight.ascent.precision import arithmetic
from polylight.ascent.transfer import to_device
from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.kernels import to_exact
from polylight.networks.images import from_picture
from polylight.networks.subject import LayerActivation, Subject
from polylight.neurons import Component, Neuron
from polylight.photos.folder import PhotoFolder, Pixels
from polylight.photos.store import Photo

KEPT = 16
"""Photos that are kept of each neuron."""

_logger = logging.getLogger(__name__)
# Multiples of 8: of other sizes, vectorised operations round the last images unlike the others.
_BATCH = {"cuda": 64}
_SMALL_BATCH = 16
# Numbers of the activations of some neurons that are worked on at a time.
_AT_ONCE = 1 << 22
_THUMB, _QUALITY = 128, 88
_SECONDS_BETWEEN_LINES = 10.0


class Strongest(NamedTuple):
    """The photos that drive each neuron most, on the CPU."""

    photo: Tensor
    """int64 [U, KEPT], numbers of photos, the strongest first."""
    activation: Tensor
    """float32 [U, KEPT]; -inf where there are fewer photos that drive the neuron."""
    finite: Tensor
    """int64 [U], photos whose activation is finite."""
    below: Tensor
    """int64 [U], those of them whose activation is below the neuron's threshold."""


class _Few(NamedTuple):
    """Some neurons, and as a whole batch of photos reads them."""

    layers: list[int]
    one: Targets
    batch: Targets


@torch.no_grad()
def strongest_photos(
    subject: Subject,
    neurons: Sequence[Neuron],
    scales: Mapping[Component, Scale],
    thresholds: Sequence[float],
    folder: PhotoFolder,
) -> Strongest:
    """Show photos to neurons and keep those that drive each most.

    A neuron's activation is what its images are judged by
    (:func:`polylight.ascent.objective.read`). Photos fill what the subject sees. Only those count
    as strong that a rectifier lets through.

    Args:
        subject: The network, on its device.
        neurons: The neurons, at least one.
        scales: Range of every component of a composite.
        thresholds: Of each neuron, the activation that photos are compared with, or NaN.
        folder: The photos; one batch of them is in memory at a time.

    Returns:
        The strongest photos; among equals the first.
    """
    device = subject.mean.device
    size = _BATCH.get(device.type, _SMALL_BATCH)
    groups = _group(subject, neurons, scales, size, device)
    count = len(neurons)
    threshold = torch.tensor(thresholds, dtype=torch.float64)[:, None]
    photo = torch.full((count, KEPT), -1, device=device)
    activation = torch.full((count, KEPT), -torch.inf, device=device)
    finite = torch.zeros(count, dtype=torch.int64, device=device)
    below = torch.zeros_like(finite)
    told = _Progress("measured", len(folder.names))
    with arithmetic("float32", device):
        for indices, (pixels,) in _batches(folder.read([subject.image_size]), size):
            images = from_picture(_on(pixels, size, device), len(subject.mean))
            value, inactive = _activations(subject, images, groups)  # [U, B]
            value, inactive = value[:, : len(indices)], inactive[:, : len(indices)]
            known = value.isfinite()
            finite += known.sum(1)
            exact = to_exact(value)
            below += (known & (exact < threshold.to(exact.device)).to(device)).sum(1)
            value = torch.where(known & ~inactive, value, -torch.inf)
            number = to_device(torch.tensor(indices), device).expand(count, -1)
            # A stable sort: among equals the earlier photo, whatever the batches.
            activation, order = torch.cat([activation, value], 1).sort(
                dim=1, descending=True, stable=True
            )
            photo = torch.cat([photo, number], 1).gather(1, order)[:, :KEPT]
            activation = activation[:, :KEPT]
            told(indices[-1] + 1)
    return Strongest(photo.cpu(), activation.cpu(), finite.cpu(), below.cpu())


def describe_photos(
    embedder: Embedder, folder: PhotoFolder, chosen: Sequence[int], side: int, device: torch.device
) -> Iterator[list[Photo]]:
    """Embed photos, and make small pictures of them.

    Args:
        embedder: The network that embeds, on its device.
        folder: The photos.
        chosen: Numbers of those that are wanted.
        side: Side that they are embedded at, as a neuron's images, in pixels.
        device: Where the embedder is.

    Yields:
        The photos in the order of ``chosen``, a batch at a time.

    Raises:
        InputError: If one of them cannot be read any more.
    """
    size = _BATCH.get(device.type, _SMALL_BATCH)
    told, done = _Progress("embedded", len(chosen)), 0
    for indices, (pixels, small) in _batches(folder.read([side, _THUMB], chosen), size):
        with arithmetic("float32", device):
            embedding = embedder(_on(pixels, size, device))[: len(indices)].cpu().numpy()
        yield [
            Photo(photo=index, name=_text(folder.names[index]), jpeg=_jpeg(thumb), embedding=vector)
            for index, thumb, vector in zip(indices, small, embedding, strict=True)
        ]
        done += len(indices)
        told(done)
    if done < len(chosen):
        raise InputError(
            f"{len(chosen) - done} of the photos of {folder.path} can no longer be read; run the "
            "same fit again: it shows those that are there"
        )


def _group(
    subject: Subject,
    neurons: Sequence[Neuron],
    scales: Mapping[Component, Scale],
    size: int,
    device: torch.device,
) -> list[_Few]:
    """Part neurons in groups whose activations, for a batch of photos, are not too many."""
    components = max(len(n.components) for n in neurons)
    targets = make_targets(neurons, subject.shapes, scales, components)
    places = max(layout.prefix + math.prod(layout.size) for layout in subject.layouts)
    few = max(1, _AT_ONCE // (size * components * places))
    groups = []
    for first in range(0, len(neurons), few):
        one = Targets(*(t[first : first + few] for t in targets))
        repeated = Targets(*(t.repeat(size, *[1] * (t.ndim - 1)) for t in one))
        # What is read has a component's own channel at the component's place.
        own = torch.arange(components).expand_as(repeated.channel)
        groups.append(
            _Few(
                sorted(set(one.layer.flatten().tolist())),
                one.to(device),
                repeated._replace(channel=own).to(device),
            )
        )
    return groups


def _activations(subject: Subject, images: Tensor, groups: Sequence[_Few]) -> tuple[Tensor, Tensor]:
    """Activation of each neuron by each image, and whether it is inactive: two [U, B]."""
    layers = sorted({layer for group in groups for layer in group.layers})
    seen = subject(images, layers)
    value, inactive = [], []
    for group in groups:
        picked = {i: _pick(seen[i], group.one, i) for i in group.layers}
        readings = read(picked, group.batch, group.one.channel.shape[1])
        value.append(readings.value.view(len(images), -1))
        inactive.append(readings.inactive.view(len(images), -1))
    return torch.cat(value, 1).mT, torch.cat(inactive, 1).mT


def _pick(activation: LayerActivation, targets: Targets, layer: int) -> LayerActivation:
    """Take the channels that neurons read of a layer: [B, C, ...] to [B * U, P, S]."""
    channel = torch.where(targets.layer == layer, targets.channel, 0)

    def pick(values: Tensor) -> Tensor:
        flat = values.flatten(2) if values.ndim > 2 else values[..., None]
        return flat[:, channel].flatten(0, 1)

    post = pick(activation.post)
    pre = post if activation.pre is activation.post else pick(activation.pre)
    return LayerActivation(post, pre, activation.prefix)


def _batches(
    photos: Iterable[tuple[int, list[Pixels]]], size: int
) -> Iterator[tuple[list[int], list[list[Pixels]]]]:
    """Gather photos: their numbers, and for each side their pixels."""
    indices, pixels = list[int](), list[list[Pixels]]()
    for index, at_sides in photos:
        indices.append(index)
        pixels.append(at_sides)
        if len(indices) == size:
            yield indices, [list(side) for side in zip(*pixels, strict=True)]
            indices, pixels = [], []
    if indices:
        yield indices, [list(side) for side in zip(*pixels, strict=True)]


def _on(pixels: Sequence[Pixels], size: int, device: torch.device) -> Tensor:
    """Photos as a network takes them, float32 [size, 3, H, W] in [0, 1].

    The batch is always as large, so that a photo's numbers do not depend on how many there are.
    """
    batch = torch.zeros(size, *pixels[0].shape, dtype=torch.uint8)
    batch[: len(pixels)] = torch.from_numpy(np.stack(pixels))
    return to_device(batch, device).permute(0, 3, 1, 2).contiguous() / 255.0


def _jpeg(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _text(name: str) -> str:
    """A file's name as text, whatever bytes it is of."""
    return name.encode(errors="surrogateescape").decode(errors="replace")


class _Progress:
    """Says now and then how far photos are."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._said = what, total, time.perf_counter()

    def __call__(self, done: int) -> None:
        if time.perf_counter() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.perf_counter()
            _logger.info("%s %d of %d photos", self._what, done, self._total)
