"""Whether a neuron's images drive it more than any photo, by which Alic et al. (2025) validate."""

import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylight.errors import InputError
from polylight.photos.store import PhotoRanking, list_pairs

ABOVE_PHOTOS = "above_photos"
"""A column that is worked out on reading: see :func:`above_photos`."""

_logger = logging.getLogger(__name__)


def above_photos(valid: npt.NDArray[np.floating], ranking: PhotoRanking | None) -> float | None:
    """Compare a neuron's images with the photo that drives it most.

    Args:
        valid: [N], activations of its valid images.
        ranking: What photos do to it; None where it was shown none.

    Returns:
        Share of the images whose activation is above that of every photo, in [0, 1]; 1 where its
        rectifier is silent on every photo; None where there is no image or no photo.
    """
    if ranking is None or not ranking.num_photos or not len(valid):
        return None
    strongest = ranking.activation[0] if ranking.activation else -np.inf
    return float((valid > strongest).mean())


def read_rankings(run_dir: str | Path) -> Mapping[str, PhotoRanking]:
    """Read what photos do to each neuron of a run.

    Args:
        run_dir: The run's directory.

    Returns:
        By neuron as text, the last that was measured; none, with a warning, where the files
        cannot be read: they are no part of a score.
    """
    try:
        pairs = list_pairs(run_dir)
        return {ranking.neuron: ranking for pair in pairs for ranking in pair.rankings()}
    except InputError as error:
        _logger.warning("%s is left out: %s", ABOVE_PHOTOS, error)
        return {}
