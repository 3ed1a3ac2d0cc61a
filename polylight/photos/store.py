"""The photos of a run on disk: which drive each neuron most, and what they look like, as Parquet.

A session of a rank leaves a pair of files in ``RUN/photos``: ``photos-<rank>-<n>.parquet`` with the
photos that some neuron needs, and ``neurons-<rank>-<n>.parquet`` with a row a neuron. The second is
written last: a pair counts once it is there.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from polylight.errors import InputError
from polylight.run.atomic import temporary_pattern, write_atomically

PHOTOS = "photos"
"""Folder of a run's directory."""

_VERSION = 1
_META = b"polylight_photos"
_NAME = re.compile(r"neurons-(\d+)-(\d+)\.parquet")
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_NEURONS = pa.schema(
    {
        "neuron": pa.string(),
        "num_photos": pa.int32(),
        "share_below": pa.float64(),
        "photo": pa.list_(pa.int32()),
        "activation": pa.list_(pa.float32()),
    }
)
_PHOTOS = pa.schema(
    {
        "photo": pa.int32(),
        "name": pa.string(),
        "image": _IMAGE,
        "embedding": pa.list_(pa.float32()),
    }
)
# Pictures are compressed already.
_COMPRESSION = {
    "photo": "zstd",
    "name": "zstd",
    "image.bytes": "none",
    "image.path": "zstd",
    "embedding.list.element": "zstd",
}
_MAKE_ANEW = "delete it and run the same fit again with --data.photos: it is made anew"
# By which ``datasets`` shows pictures.
_FEATURES = {
    "photo": {"dtype": "int32", "_type": "Value"},
    "name": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "embedding": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "List"},
}


@dataclass(frozen=True, kw_only=True)
class PhotoRanking:
    """What the photos do to a neuron."""

    neuron: str
    """The neuron as normalised text."""
    num_photos: int
    """Photos whose activation is finite."""
    share_below: float | None
    """Share of them whose activation is below the median of the neuron's valid images,
    in [0, 1]; None where there is no such image."""
    photo: Sequence[int]
    """The photos that drive it most, the strongest first; none on which its rectifier is silent."""
    activation: Sequence[float]
    """What each of them does."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Photo:
    """A photo that is among the strongest of some neuron."""

    photo: int
    """Its number among the files of the folder."""
    name: str
    """Its path below the folder."""
    jpeg: bytes
    """Its middle, as it was shown, in a small JPEG file."""
    embedding: npt.NDArray[np.float32]
    """[D], as those of a neuron's images."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """What a session has measured."""

    key: str
    """Of the photos: which files they were."""
    made: str
    """When, as ISO 8601 in UTC."""
    rank: int
    number: int
    neurons: Path
    photos: Path

    def rankings(self) -> list[PhotoRanking]:
        """Read its neurons.

        Raises:
            InputError: If the file cannot be read.
        """
        with _reading(self.neurons) as file:
            return [PhotoRanking(**row) for row in file.read().to_pylist()]

    def stream(self, columns: Sequence[str], at_once: int) -> Iterator[pa.Table]:
        """Read columns of its photos, so many of them at a time.

        Raises:
            InputError: If the file cannot be read.
        """
        with _reading(self.photos) as file:
            for batch in file.iter_batches(batch_size=at_once, columns=list(columns)):
                yield pa.Table.from_batches([batch])


def list_pairs(run_dir: str | Path) -> list[Pair]:
    """List what sessions have measured, the oldest first.

    Args:
        run_dir: The run's directory.

    Returns:
        Whole pairs; none where the run had no photos.

    Raises:
        InputError: If a file cannot be read, or is of a newer version.
    """
    pairs = [read_pair(path) for path in pair_paths(run_dir)]
    return sorted(pairs, key=lambda pair: (pair.made, pair.rank, pair.number))


def pair_paths(run_dir: str | Path) -> list[Path]:
    """List the files by which pairs are known."""
    paths = (Path(run_dir) / PHOTOS).glob("neurons-*.parquet")
    return sorted(path for path in paths if _NAME.fullmatch(path.name))


def read_pair(path: Path) -> Pair:
    """Read when and of which photos a pair was made.

    Args:
        path: The file with its neurons.

    Returns:
        The pair.

    Raises:
        InputError: If it cannot be read, or is of a newer version.
    """
    with _reading(path) as file:
        meta = json.loads(file.schema_arrow.metadata[_META])
    rank, number = map(int, path.stem.split("-")[1:])
    photos = path.with_name(path.name.replace("neurons", "photos", 1))
    return Pair(
        key=meta["key"], made=meta["made"], rank=rank, number=number, neurons=path, photos=photos
    )


def measured(run_dir: str | Path, key: str) -> set[str]:
    """Name the neurons that have been shown some photos, by any rank.

    Args:
        run_dir: The run's directory.
        key: Of the photos.

    Returns:
        Neurons as normalised text.

    Raises:
        InputError: If a file cannot be read.
    """
    pairs = [pair for pair in list_pairs(run_dir) if pair.key == key and pair.photos.is_file()]
    return {ranking.neuron for pair in pairs for ranking in pair.rankings()}


def write_pair(
    run_dir: str | Path,
    rank: int,
    key: str,
    photos: Iterable[Sequence[Photo]],
    rankings: Sequence[PhotoRanking],
) -> None:
    """Write what a session has measured, whole or not at all.

    Args:
        run_dir: The run's directory, in which this process is the one writer of the rank.
        rank: Its number, >= 0.
        key: Of the photos.
        photos: Every photo that a ranking names, once; some at a time, each a row group.
        rankings: A row for each neuron.

    Raises:
        OSError: If the disk is full or fails; nothing counts then.
    """
    folder = Path(run_dir) / PHOTOS
    folder.mkdir(exist_ok=True)
    own = [path.stem.split("-") for path in pair_paths(run_dir)]
    last = max((int(number) for _, owner, number in own if int(owner) == rank), default=-1)
    name = f"{_id(rank)}-{last + 1:06d}.parquet"
    made = datetime.now(UTC).isoformat(timespec="microseconds")
    meta = {_META: json.dumps({"schema_version": _VERSION, "key": key, "made": made})}
    shown = {b"huggingface": json.dumps({"info": {"features": _FEATURES}})}
    schema = _PHOTOS.with_metadata({**meta, **shown})
    _write(folder / f"photos-{name}", schema, map(_rows, photos), _COMPRESSION)
    rows = [asdict(ranking) for ranking in rankings]
    _write(folder / f"neurons-{name}", _NEURONS.with_metadata(meta), [rows], "zstd")


def remove_others(run_dir: str | Path, rank: int, key: str) -> None:
    """Remove what a rank has measured with other photos, and what it left when it was killed.

    Args:
        run_dir: The run's directory, in which this process is the one writer of the rank.
        rank: Its number, >= 0.
        key: Of the photos that count.
    """
    for pair in list_pairs(run_dir):
        if pair.rank == rank and (pair.key != key or not pair.photos.is_file()):
            # The other way round a killed process would leave half a pair that counts.
            pair.neurons.unlink()
            pair.photos.unlink(missing_ok=True)
    folder = Path(run_dir) / PHOTOS
    for kind in ("neurons", "photos"):
        for path in folder.glob(temporary_pattern(f"{kind}-{_id(rank)}-*.parquet")):
            path.unlink()


def _id(rank: int) -> str:
    return f"{rank:05d}"


def _rows(photos: Sequence[Photo]) -> list[dict[str, Any]]:
    return [
        {
            "photo": photo.photo,
            "name": photo.name,
            "image": {"bytes": photo.jpeg, "path": photo.name},
            "embedding": photo.embedding,
        }
        for photo in photos
    ]


def _write(
    path: Path,
    schema: pa.Schema,
    groups: Iterable[list[dict[str, Any]]],
    compression: str | dict[str, str],
) -> None:
    """Write rows, a row group at a time."""

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, schema, compression=compression) as parquet:
            for rows in groups:
                parquet.write_table(pa.Table.from_pylist(rows, schema=schema))

    write_atomically(path, write)


@contextmanager
def _reading(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a file of a pair.

    Raises:
        InputError: If it, or what is read of it, cannot be understood.
    """
    try:
        # A buffer would hold all pictures.
        with pq.ParquetFile(path, pre_buffer=False) as file:
            meta = (file.schema_arrow.metadata or {}).get(_META)
            version = json.loads(meta)["schema_version"] if meta else None
            if version == _VERSION:
                yield file
                return
    except (pa.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read {path}: {reason}; {_MAKE_ANEW}") from error
    known = f"but this polylight knows version {_VERSION}; {_MAKE_ANEW}"
    what = "it was not written by polylight" if version is None else f"it has version {version}"
    raise InputError(f"cannot read {path}: {what}, {known}")
