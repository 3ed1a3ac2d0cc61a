"""A run's neurons and its photos: what is missing is measured, and kept in the run's directory."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polylight.ascent.objective import Scale
from polylight.embedding.embedder import Embedder
from polylight.networks import Model
from polylight.networks.subject import Subject
from polylight.neurons import Component, Neuron
from polylight.photos.folder import PhotoFolder
from polylight.photos.measure import describe_photos, strongest_photos
from polylight.photos.store import Photo, PhotoRanking, measured, remove_others, write_pair
from polylight.run.store import read_run

_logger = logging.getLogger(__name__)


def keep_photos(
    folder: PhotoFolder,
    run_dir: Path,
    rank: int,
    neurons: Sequence[Neuron],
    subject: Subject,
    embedder: Model,
    image_size: int,
    device: torch.device,
    *,
    plain: bool = False,
) -> None:
    """Show photos to those neurons of a run that have not seen them, and keep the strongest.

    The neurons are finished: their rows are on the disk, and stay as they are.

    Args:
        folder: The photos.
        run_dir: The run's directory, whose rank this process holds.
        rank: Number of this writer.
        neurons: The rank's neurons.
        subject: Cut where the neurons are.
        embedder: Embeds photos as it does images.
        image_size: Side of the run's images, pixels.
        device: Where to work.
        plain: Whether the embedder is a plain one.

    Raises:
        InputError: If something cannot be read.
    """
    done = measured(run_dir, folder.key)
    fresh = [neuron for neuron in neurons if str(neuron) not in done]
    if fresh:
        _logger.info(
            "showing the %d files of %s to %d neurons", len(folder.names), folder.path, len(fresh)
        )
        facts = _neuron_facts(run_dir, fresh)
        rankings = _rank(subject.to(device), fresh, *facts, folder)
        look = Embedder(embedder, plain=plain).to(device)
        photos = _describe(look, rankings, folder, image_size, device)
        write_pair(run_dir, rank, folder.key, photos, rankings)
    remove_others(run_dir, rank, folder.key)


def _neuron_facts(
    run_dir: Path, neurons: Sequence[Neuron]
) -> tuple[Mapping[Component, Scale], list[float]]:
    """Range of every component of a composite; median activation of each neuron's valid images.

    The median is NaN where no image is valid.
    """
    names = [str(neuron) for neuron in neurons]
    columns = ["neuron", "activation", "label", "component_scale"]
    rows = {row["neuron"]: row for row in read_run(run_dir, columns, names).to_pylist()}
    scales: dict[Component, Scale] = {}
    medians = []
    for neuron in neurons:
        row = rows[str(neuron)]
        if neuron.operation:
            known = (Scale(*scale) for scale in row["component_scale"])
            scales |= dict(zip(neuron.components, known, strict=True))
        valid = np.array(row["activation"], dtype=np.float64)[np.array(row["label"]) >= 0]
        medians.append(float(np.median(valid)) if len(valid) else math.nan)
    return scales, medians


def _rank(
    subject: Subject,
    neurons: Sequence[Neuron],
    scales: Mapping[Component, Scale],
    medians: Sequence[float],
    folder: PhotoFolder,
) -> list[PhotoRanking]:
    """Find the strongest photos of each neuron."""
    found = strongest_photos(subject, neurons, scales, medians, folder)
    rankings = []
    for i, neuron in enumerate(neurons):
        strong = found.activation[i] > -torch.inf
        count, is_known = int(found.finite[i]), not math.isnan(medians[i])
        rankings.append(
            PhotoRanking(
                neuron=str(neuron),
                num_photos=count,
                share_below=int(found.below[i]) / count if count and is_known else None,
                photo=found.photo[i][strong].tolist(),
                activation=found.activation[i][strong].tolist(),
            )
        )
    return rankings


def _describe(
    embedder: Embedder,
    rankings: Sequence[PhotoRanking],
    folder: PhotoFolder,
    image_size: int,
    device: torch.device,
) -> Iterator[list[Photo]]:
    """Embed the photos that some neuron needs, as its images are."""
    chosen = sorted({photo for ranking in rankings for photo in ranking.photo})
    return describe_photos(embedder, folder, chosen, image_size, device)
