"""The photos of a run in a report: those that show a neuron's features."""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from polylight.errors import InputError
from polylight.photos.store import Pair, PhotoRanking, pair_paths, read_pair
from polylight.report import words
from polylight.report.content import (
    NearPhoto,
    NeuronDetail,
    NeuronSummary,
    PhotoFacts,
    RunPhotos,
    Unreadable,
)
from polylight.report.vectors import centred, cluster_centres, unit_vectors
from polylight.run.schema import NeuronRow

SHOWN = 6
"""The most photos that are shown of a cluster."""

_AT_ONCE = 64


def read_photos(
    run_dir: Path, centre: npt.NDArray[np.float32] | None
) -> tuple[RunPhotos | None, list[Unreadable]]:
    """Read which photos a run has, and what they do to its neurons.

    Of a neuron that was shown photos twice the last time counts.

    Args:
        run_dir: The run's directory.
        centre: [D], the mean that embeddings are compared from; None leaves them raw.

    Returns:
        The photos, or None where the run had none or none can be read; and what cannot be read.
    """
    found, unreadable = [], []
    for path in pair_paths(run_dir):
        try:
            pair = read_pair(path)
            found.append((pair, pair.rankings(), list(_units(pair, centre))))
        except InputError as error:
            unreadable.append(Unreadable(path=path, reason=str(error)))
    if not found:
        return None, unreadable
    found.sort(key=lambda each: (each[0].made, each[0].rank, each[0].number))
    rankings: dict[str, tuple[str, PhotoRanking]] = {}
    numbers: dict[tuple[str, int], int] = {}
    names, units = list[str](), []
    for pair, ranked, read in found:
        rankings.update((ranking.neuron, (pair.key, ranking)) for ranking in ranked)
        for photo, name, unit in read:
            # Ranks that were shown the same photos have some of them in common.
            if numbers.setdefault((pair.key, photo), len(names)) == len(names):
                names.append(name)
                units.append(unit)
    return RunPhotos(
        pairs=[pair for pair, _, _ in found],
        rankings=rankings,
        numbers=numbers,
        names=names,
        units=np.stack(units) if units else np.zeros((0, 0), np.float32),
    ), unreadable


def with_photos(detail: NeuronDetail, row: NeuronRow, photos: RunPhotos | None) -> NeuronDetail:
    """Add to a neuron's page which of its strongest photos resemble each of its features.

    A photo is of the cluster whose centre has the highest cosine to its embedding.

    Args:
        detail: What the page shows else.
        row: The neuron, its embeddings centred.
        photos: Those of the run.

    Returns:
        The same with what photos do to the neuron, and of each cluster up to ``SHOWN`` photos, the
        nearest first; a cluster may have none.
    """
    facts = _facts(photos, row.neuron)
    if photos is None or facts is None:
        return detail
    valid = [cluster for cluster in detail.clusters if cluster.number]
    near: dict[int, list[NearPhoto]] = {cluster.number: [] for cluster in valid}
    if valid and facts.strongest:
        label = np.full(len(row.embedding), -1)
        for place, cluster in enumerate(valid):
            label[[picture.image for picture in cluster.pictures]] = place
        units = photos.units[[photo.number for photo in facts.strongest]].astype(np.float64)
        cosine = units @ cluster_centres(row.embedding, label).T  # [photos, K]
        for i in np.argsort(-cosine.max(1), kind="stable").tolist():
            own = near[valid[int(cosine[i].argmax())].number]
            own.append(replace(facts.strongest[i], cosine=float(cosine[i].max())))
    clusters = [replace(c, photos=near.get(c.number, [])[:SHOWN]) for c in detail.clusters]
    return replace(detail, clusters=clusters, photos=facts)


def sentence(facts: PhotoFacts) -> str:
    """Say how photos drive a neuron, beside its own images."""
    photos = words.counted(facts.num_photos, "photo")
    if not facts.num_photos:
        return "No photo gives this neuron an activation that is a number."
    if not facts.strongest:
        return f"None of {photos} drives this neuron."
    best = f"The strongest of {photos} drives it to {words.number(facts.strongest[0].activation)}"
    match facts.share_below:
        case None:
            return f"{best}."
        case 1.0:
            return f"{best}; the median of its own images is above all of them."
        case 0.0:
            return f"{best}; the median of its own images is above none of them."
        case share:
            # Rounded down: "100 %" would say all of them.
            part = math.floor(1000 * share) / 10
            shown = f"{part:.1f}".removesuffix(".0") if part else "under 0.1"
            return f"{best}; the median of its own images is above {shown}\u00a0% of them."


def write_photos(photos: RunPhotos, folder: Path, wanted: Collection[int]) -> list[Unreadable]:
    """Write photos that pages show, each once, a few of them in memory at a time.

    Args:
        photos: Those of the run.
        folder: Where to write them, as ``<number>.jpg``; it exists.
        wanted: Numbers of photos in the report.

    Returns:
        Files that cannot be read any more; their photos are missing.

    Raises:
        OSError: If something cannot be written.
    """
    left, unreadable = set(wanted), []
    for pair in photos.pairs:
        try:
            for table in pair.stream(["photo", "image"], _AT_ONCE) if left else ():
                numbers = [photos.numbers[pair.key, i] for i in table["photo"].to_pylist()]
                for i, number in enumerate(numbers):
                    if number in left:
                        left.remove(number)
                        (folder / f"{number}.jpg").write_bytes(table["image"][i]["bytes"].as_py())
        except InputError as error:
            unreadable.append(Unreadable(path=pair.photos, reason=str(error)))
    return unreadable


def noting(
    details: Iterable[tuple[NeuronSummary, NeuronDetail]], wanted: set[int]
) -> Iterator[tuple[NeuronSummary, NeuronDetail]]:
    """Hand neurons on, and note the numbers of the photos that their pages show."""
    for neuron, detail in details:
        wanted.update(photo.number for photo in shown_photos(detail))
        yield neuron, detail


def shown_photos(detail: NeuronDetail) -> list[NearPhoto]:
    """List the photos on a neuron's page: those of its clusters, or else its strongest."""
    if any(cluster.number for cluster in detail.clusters):
        return [photo for cluster in detail.clusters for photo in cluster.photos]
    return list(detail.photos.strongest[:SHOWN]) if detail.photos else []


def _facts(photos: RunPhotos | None, neuron: str) -> PhotoFacts | None:
    """Sum up what photos do to a neuron; None where it was shown none."""
    if photos is None or neuron not in photos.rankings:
        return None
    key, ranking = photos.rankings[neuron]
    strongest = [
        NearPhoto(number=number, name=photos.names[number], activation=activation)
        for number, activation in zip(
            (photos.numbers[key, photo] for photo in ranking.photo),
            ranking.activation,
            strict=True,
        )
    ]
    return PhotoFacts(
        num_photos=ranking.num_photos, share_below=ranking.share_below, strongest=strongest
    )


def _units(
    pair: Pair, centre: npt.NDArray[np.float32] | None
) -> Iterator[tuple[int, str, npt.NDArray[np.float32]]]:
    """Read the photos of a pair: number, name, and embedding as images are compared."""
    for table in pair.stream(["photo", "name", "embedding"], _AT_ONCE):
        vectors = table["embedding"].combine_chunks()
        embedding = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(vectors), -1)
        unit = unit_vectors(centred(embedding, centre)).astype(np.float32)
        yield from zip(table["photo"].to_pylist(), table["name"].to_pylist(), unit, strict=True)
