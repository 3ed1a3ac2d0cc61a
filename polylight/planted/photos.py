"""What photos tell of neurons: whether images drive them harder, and a second look at them."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polylight.embedding.embedder import Embedder
from polylight.errors import InputError
from polylight.networks import Model
from polylight.networks.subject import Subject
from polylight.photos.folder import PhotoFolder
from polylight.run.schema import NeuronRow

_logger = logging.getLogger(__name__)
_BATCH = 16
_FEWEST = 3


@dataclass(frozen=True)
class Strength:
    """How hard the images of single channels drive them, compared with photos.

    Attributes:
        photos: Photos that could be read.
        percentile: By channel as text, the share of the photos whose activation is below the
            median of the channel's images, in [0, 1]; 1 where they beat every photo.
        above_best: Share of the channels whose median beats the best photo, in [0, 1].
    """

    photos: int
    percentile: Mapping[str, float]
    above_best: float


@dataclass(frozen=True)
class Photos:
    """What a folder of photos tells of the channels of some layers.

    Attributes:
        count: Photos that could be read.
        pooled: By layer, mean activation of each channel for each photo, [N, C].
        screened: By channel as text, whether it is among the more monosemantic half of its layer
            (:func:`screen_channels`).
    """

    count: int
    pooled: Mapping[str, Tensor]
    screened: Mapping[str, bool]


def look_at(photos: Tensor, subject: Model, layers: Sequence[str], embedder: Model) -> Photos:
    """Show photos to a subject and an embedder, on the CPU.

    Args:
        photos: float32 [N, 3, H, W] in [0, 1] (:func:`read_photos`).
        subject: Whose channels are looked at.
        layers: The layers of these.
        embedder: What channels are screened by.

    Returns:
        What they tell.
    """
    device = torch.device("cpu")
    pooled = pooled_activations(subject, layers, photos, device)
    return Photos(len(photos), pooled, screen_channels(embedder, photos, pooled, device))


def read_photos(folder: str | Path, side: int) -> Tensor:
    """Read the photos of a folder, all at once (:class:`polylight.photos.folder.PhotoFolder`).

    Args:
        folder: Where they are.
        side: Photos are resized to it by their shorter side and cropped to the middle, pixels.

    Returns:
        float32 [N, 3, side, side] in [0, 1], by file name.

    Raises:
        InputError: If the folder does not exist, or not one photo can be read.
    """
    found = [pixels for _, (pixels,) in PhotoFolder(folder, "--images").read([side])]
    return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).contiguous() / 255.0


@torch.no_grad()
def pooled_activations(
    model: Model, layers: Sequence[str], photos: Tensor, device: torch.device
) -> dict[str, Tensor]:
    """Mean activation of every channel of some layers for each photo: by layer [N, C]."""
    cut = Subject(model, layers, photos.shape[-1]).to(device)
    pooled: dict[str, list[Tensor]] = {name: [] for name in cut.layers}
    for batch in torch.split(photos, _BATCH):
        for index, activation in cut(batch.to(device)).items():
            post = activation.post
            mean = post.flatten(2).mean(2) if post.ndim > 2 else post
            pooled[cut.layers[index]].append(mean.float().cpu())
    return {name: torch.cat(components) for name, components in pooled.items()}


def strength_of(rows: Sequence[NeuronRow], pooled: Mapping[str, Tensor]) -> Strength:
    """Compare the images of single channels with photos.

    Args:
        rows: Rows of single channels (their mean over positions).
        pooled: By layer, activations of the photos [N, C].

    Returns:
        Percentiles and the share that beats every photo.

    Raises:
        InputError: If no row has a score.
    """
    percentile, above = {}, []
    photos = 0
    for row in rows:
        if row.status != "ok" or row.channel is None:
            continue
        natural = pooled[row.layer][:, row.channel].double().numpy()
        photos = len(natural)
        middle = float(np.median(row.activation[row.label >= 0]))
        percentile[row.neuron] = float((natural < middle).mean())
        above.append(middle > natural.max())
    if not above:
        raise InputError("no single channel has a score to compare with photos.")
    return Strength(photos, percentile, float(np.mean(above)))


@torch.no_grad()
def screen_channels(
    embedder: Model, photos: Tensor, pooled: Mapping[str, Tensor], device: torch.device
) -> dict[str, bool]:
    """Find the channels that photos show to have one feature: an independent second look.

    One minus the monosemanticity score of Pach et al. 2025 over the photos, whose embeddings are
    centred on their mean: the half of a layer's channels for which it is lowest.

    Args:
        embedder: The network that embeds the photos.
        photos: float32 [N, 3, H, W] in [0, 1].
        pooled: By layer, activations of the photos [N, C].
        device: Where to work.

    Returns:
        By channel as text, whether it is in the lower half of its layer.
    """
    look = Embedder(embedder).to(device)
    embedded = torch.cat([look(batch.to(device)).cpu() for batch in torch.split(photos, _BATCH)])
    unit = F.normalize((embedded - embedded.mean(0)).double(), dim=1)
    if len(photos) < _FEWEST:
        _logger.warning("%d photos are too few to screen channels by", len(photos))
        return {}
    screened = {}
    for layer, activations in pooled.items():
        values = _one_minus_ms(unit, activations.double())
        middle = values.nanmedian()
        for channel, value in enumerate(values.tolist()):
            screened[f"{layer}:{channel}"] = value <= middle.item()
    return screened


def _one_minus_ms(unit: Tensor, activations: Tensor) -> Tensor:
    """One minus the weighted mean cosine of two photos for each channel, [C].

    As :func:`polylight.scoring.weighted_ms_score` of each, in one product: with weights a that
    run from 0 to 1, the sum over pairs is ``|sum a_n e_n|^2 - sum a_n^2``.
    """
    low, high = activations.amin(0), activations.amax(0)
    weight = (activations - low) / (high - low)  # [N, C], NaN for a channel that never moves
    square = weight.square().sum(0)
    alike = (weight.mT @ unit).square().sum(1) - square
    score = 1.0 - alike / (weight.sum(0).square() - square)
    # One photo alone makes no pair.
    return score.masked_fill((weight > 0).sum(0) < 2, torch.nan)
