"""What a report shows of a run: data only, the same for the site and for the PDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from polylight.photos.store import Pair, PhotoRanking
from polylight.run.manifest import Manifest
from polylight.run.reported import SCORE_TITLES, ReportedScore

RunState = Literal["finished", "running", "interrupted", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Unreadable:
    """A file of a run that could not be read, and why."""

    path: Path
    reason: str
    is_partial: bool = False
    """Whether the rest of the file can be read."""


@dataclass(frozen=True, kw_only=True)
class Similar:
    """A neuron that shares a feature with another one of the run."""

    position: int
    """Of the neuron in ``Run.neurons``."""
    cosine: float
    """Of the two cluster centres that are nearest to each other, in [-1, 1]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronSummary:
    """A neuron in a table: all its numbers, none of its images."""

    position: int
    """In ``Run.neurons``."""
    slug: str
    """Name of its page and pictures: letters, digits, ``-``, ``_`` and ``.``, unique in a run even
    where case does not count, at most 100 characters."""
    values: Mapping[str, Any]
    """The columns of a run that hold one value (``neuron_table.SCALARS``), of a run with photos
    ``above_photos`` too; None where there is none."""
    median_activation: float | None
    weights: Sequence[float] = ()
    """Strength of each of its clusters, as part of the whole neuron's, the strongest first."""
    similar: Sequence[Similar]
    """The most similar neurons of the run, the nearest first."""
    reported: ReportedScore = "score"
    """The score that its run reports."""

    @property
    def score(self) -> float | None:
        """The reported score."""
        score: float | None = self.values[self.reported]
        return score

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval of the reported score, where it has one."""
        low, high = self.values["score_low"], self.values["score_high"]
        return None if self.reported != "score" or None in (low, high) else (low, high)

    @property
    def name(self) -> str:
        """The neuron as text."""
        return str(self.values["neuron"])

    @property
    def layer(self) -> str:
        """Its layer, or its parts' layers."""
        return str(self.values["layer"])


@dataclass(frozen=True, kw_only=True)
class LayerSummary:
    """The neurons of a layer."""

    name: str
    slug: str
    """As a neuron's."""
    positions: Sequence[int]
    """Of its neurons in ``Run.neurons``."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RunPhotos:
    """The photos of a run as far as they could be read; their pictures stay on the disk."""

    pairs: Sequence[Pair]
    """Where they are."""
    rankings: Mapping[str, tuple[str, PhotoRanking]]
    """By neuron, the key of the photos that it was shown and what they do to it."""
    numbers: Mapping[tuple[str, int], int]
    """By key and number among the files of the folder, the number of a photo in the report."""
    names: Sequence[str]
    """Of each photo of the report."""
    units: npt.NDArray[np.float32]
    """[number of photos, D]: their embeddings, centred as those of images, of length 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run as far as it could be read."""

    name: str
    path: Path
    state: RunState
    """As the manifest has it; ``running`` may also mean that it was killed; ``unknown`` without a
    manifest."""
    manifest: Manifest | None
    """That of rank 0, with the cost of all ranks added."""
    unreadable: Sequence[Unreadable]
    num_shards: int = 1
    """Processes among which the run's configuration divides its neurons."""
    missing_shards: int = 0
    """Those of them that have left no manifest here."""
    centre: npt.NDArray[np.float32] | None = None
    """[D]: the mean that embeddings are compared from; None leaves them raw."""
    photos: RunPhotos | None = None
    """None where the run had none."""
    layers: Sequence[LayerSummary]
    """In the order in which the run came to them."""
    neurons: Sequence[NeuronSummary]
    """By layer, then by channel, composites last."""
    reported: ReportedScore = "score"
    """The score that neurons are sorted by and shown with."""

    @property
    def score_title(self) -> str:
        """What that score is called."""
        return SCORE_TITLES[self.reported]

    @property
    def is_whole(self) -> bool:
        """Whether it is finished, all of it is here, and all of that could be read."""
        return self.state == "finished" and not self.missing_shards and not self.unreadable


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One image of a neuron."""

    tile: int
    """Place on the neuron's sheet, from 0, row by row."""
    image: int
    """Index in the neuron's row."""
    activation: float
    is_medoid: bool
    """Whether it is the image nearest to the centre of its cluster."""
    is_damaged: bool = False
    """Whether a crossed tile stands for it."""
    x: float
    """Place on the map of the images, in [0, 1] from left to right."""
    y: float
    """Likewise from top to bottom."""


@dataclass(frozen=True, kw_only=True)
class NearPhoto:
    """A photo that drives a neuron."""

    number: int
    """Its number in the report, by which its picture is named."""
    name: str
    """Its path below the folder of the run's photos."""
    activation: float
    cosine: float | None = None
    """Of its embedding to the centre of the cluster that it is nearest to, in [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class PhotoFacts:
    """What photos do to a neuron."""

    num_photos: int
    share_below: float | None
    """Share of the photos whose activation is below the median of the neuron's valid images."""
    strongest: Sequence[NearPhoto]
    """Those that drive it most, the strongest first."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Images of one feature."""

    number: int
    """1 for the strongest; 0 for the images that are not valid."""
    weight: float | None
    """Strength, as part of the whole neuron's; None for the images that are not valid."""
    pictures: Sequence[Picture]
    """The medoid first, then by falling activation."""
    photos: Sequence[NearPhoto] = ()
    """Those of the neuron's strongest photos that look most like it, the nearest first."""


@dataclass(frozen=True, kw_only=True, eq=False)
class NeuronDetail:
    """All that a neuron's page shows besides its numbers."""

    clusters: Sequence[Cluster]
    """The strongest first; invalid images, if there are any, last."""
    similarity: npt.NDArray[np.float64]
    """[N, N]: cosine of what the score compares, in the order of the tiles."""
    bic: Sequence[float]
    """For K = 1, 2, ...; NaN where K was out of reach. Empty where no K was within reach."""
    sheet: bytes
    """A JPEG file of all images: ``columns`` tiles a row, the pictures in the order of the
    clusters. Empty for a neuron without images."""
    columns: int
    tile: int
    """Side of a tile, in pixels."""
    thumb: bytes
    """A JPEG file: the medoids of the clusters side by side, each ``gather.THUMB`` pixels.
    Empty for a neuron without images."""
    thumbs: int
    """How many medoids it shows."""
    unreadable: Sequence[Unreadable] = ()
    """What of its images is damaged; on the sheet a crossed tile stands for each of them."""
    photos: PhotoFacts | None = None
    """None for a neuron that was shown none."""

    @property
    def pictures(self) -> Sequence[Picture]:
        """All pictures in the order of their tiles."""
        return [picture for cluster in self.clusters for picture in cluster.pictures]
