"""A neuron's row as its page shows it: clusters, medoids, a map of the images, a sheet of them."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylight.report.content import Cluster, NeuronDetail, Picture, Unreadable
from polylight.report.rasters import MOST_PIXELS, Sheet, draw_sheet, draw_strip, read_pictures
from polylight.report.vectors import cluster_centres, unit_vectors
from polylight.run.schema import NeuronRow

# Cosines and coordinates that differ by less than rounding are equal.
_ROUNDING = 1e-9


def neuron_detail(row: NeuronRow, thumb: int, part: Path) -> NeuronDetail:
    """Work out what a neuron's page shows.

    Clusters come by falling weight. The medoid of a cluster is the image whose embedding has the
    highest cosine to the cluster's centre, the strongest among equals.

    Args:
        row: The neuron with its images.
        thumb: Side of the images in the thumbnail, in pixels, > 0.
        part: The file that the row comes from, which is named if an image is damaged.

    Returns:
        Its clusters, their sheet and their thumbnail. Where no image is valid the thumbnail
        shows the strongest image. A crossed tile stands for an image that is damaged.
    """
    groups = _groups(row)
    images = read_pictures(row.image)
    damaged = [i for i, image in enumerate(images) if image is None]
    order = [image for _, members, _ in groups for image in members]
    place = image_map(row.embedding)
    clusters = []
    tile = 0
    for number, (weight, members, medoid) in enumerate(groups, start=1):
        pictures = [
            Picture(
                tile=tile + i,
                image=image,
                activation=float(row.activation[image]),
                is_medoid=image == medoid,
                is_damaged=images[image] is None,
                x=float(place[image, 0]),
                y=float(place[image, 1]),
            )
            for i, image in enumerate(members)
        ]
        tile += len(members)
        clusters.append(
            Cluster(number=0 if weight is None else number, weight=weight, pictures=pictures)
        )
    unit = unit_vectors(row.embedding[order])
    sheet, strip, thumbs = Sheet(b"", 0, 0), b"", 0
    if order:
        sheet = draw_sheet([images[i] for i in order])
        medoids = [medoid for _, _, medoid in groups if medoid is not None] or order[:1]
        strip, thumbs = draw_strip([images[i] for i in medoids], thumb), len(medoids)
    return NeuronDetail(
        clusters=clusters,
        similarity=np.clip(unit @ unit.T, -1.0, 1.0),
        bic=row.bic.tolist() if np.isfinite(row.bic).any() else [],
        sheet=sheet.jpeg,
        columns=sheet.columns,
        tile=sheet.tile,
        thumb=strip,
        thumbs=thumbs,
        unreadable=_unreadable(part, row.neuron, damaged),
    )


def image_map(embedding: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    r"""Place images so that those with similar embeddings are near each other.

    .. math:: X = V_2 \Lambda_2^{1/2}, \qquad J G J = V \Lambda V^T, \qquad J = I - 11^T / N

    Classical scaling (Torgerson 1952) of the Gram matrix G of the unit embeddings: their two
    principal axes, with one scale for both. Of each axis the farthest image is on the positive
    side, so that results can be repeated.

    Args:
        embedding: Float [N, D]; an image whose embedding is not finite is put in the middle.

    Returns:
        Places, float64 [N, 2] in [0, 1], centred; the longer of the two axes fills it.
    """
    place = np.full((len(embedding), 2), 0.5)
    finite = np.flatnonzero(np.isfinite(embedding).all(1))
    if len(finite) < 2:
        return place
    unit = unit_vectors(embedding[finite])
    centred = unit - unit.mean(0)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    axes = vectors[:, :-3:-1] * np.sqrt(np.maximum(values[:-3:-1], 0.0))
    # An axis of nothing but rounding would be blown up or turn with every machine.
    axes[:, np.abs(axes).max(0) <= math.sqrt(_ROUNDING)] = 0.0
    far = np.abs(axes)
    farthest = (far >= far.max(0) * (1.0 - _ROUNDING)).argmax(0)
    axes *= np.where(axes[farthest, [0, 1]] < 0, -1.0, 1.0)
    low, high = axes.min(0), axes.max(0)
    span = (high - low).max()
    if span > 0:
        place[finite] += (axes - (low + high) / 2) / span
    np.clip(place, 0.0, 1.0, out=place)
    return place


def _unreadable(part: Path, neuron: str, images: Sequence[int]) -> list[Unreadable]:
    """Say which images of a neuron are damaged, if any."""
    if not images:
        return []
    listed = ", ".join(map(str, images))
    which = f"images {listed} of neuron {neuron} are no readable PNG files"
    if len(images) == 1:
        which = f"image {listed} of neuron {neuron} is no readable PNG file"
    reason = f"{which} of at most {MOST_PIXELS:,} pixels"
    return [Unreadable(path=part, reason=reason, is_partial=True)]


def _groups(row: NeuronRow) -> list[tuple[float | None, list[int], int | None]]:
    """Part images in clusters: weight, images in the order of display, and which is the medoid."""
    activation = np.nan_to_num(row.activation.astype(np.float64), nan=-np.inf)
    present = np.unique(row.label[row.label >= 0])
    centres = dict(zip(present.tolist(), cluster_centres(row.embedding, row.label), strict=True))
    groups: list[tuple[float | None, list[int], int | None]] = []
    for cluster in np.argsort(-row.cluster_weight, kind="stable").tolist():
        if cluster not in centres:
            continue
        members = np.flatnonzero(row.label == cluster)
        members = members[np.argsort(-activation[members], kind="stable")]
        cosine = unit_vectors(row.embedding[members]) @ centres[cluster]
        # Both images of a pair are equally near to its centre.
        medoid = members[(cosine >= cosine.max() - _ROUNDING).argmax()]
        others = members[members != medoid]
        weight = float(row.cluster_weight[cluster])
        groups.append((weight, [int(medoid), *others.tolist()], int(medoid)))
    rest = np.flatnonzero(row.label < 0)
    if len(rest):
        rest = rest[np.argsort(-activation[rest], kind="stable")]
        groups.append((None, rest.tolist(), None))
    return groups
