"""The Parquet parts that a run is kept in: their names, their versions, their row groups."""

import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from polylight.errors import InputError
from polylight.run.schema import SCHEMA, SCHEMA_VERSION

_MAKE_ANEW = "restore it, or delete it and run the same command again: its neurons are made anew"
_PART = re.compile(r"part-(\d+)-(\d+)\.parquet")
# With 64 images of 128 px a neuron has about 2 MB: a row group of 16 stays far below the 100 MB
# above which viewers refuse to show pictures.
_ROWS_PER_GROUP = 16


class PartError(InputError):
    """A part that cannot be read.

    Attributes:
        path: The part.
        reason: What is wrong with it, in a few words.
    """

    def __init__(self, path: Path, reason: str, advice: str) -> None:
        super().__init__(f"cannot read {path}: {reason}; {advice}")
        self.path = path
        self.reason = reason


class PartFile(NamedTuple):
    """A Parquet part by its name."""

    rank: int
    """Its writer."""
    number: int
    """Its age among those of its writer, from 0."""
    path: Path


def list_parts(folder: Path) -> list[PartFile]:
    """List the whole parts in a folder by rank, then by age; none if there is no such folder."""
    matches = (_PART.fullmatch(path.name) for path in folder.glob("part-*.parquet"))
    return sorted(PartFile(int(m[1]), int(m[2]), folder / m[0]) for m in matches if m)


def part_name(rank: int, number: int) -> str:
    """Name the file of a part."""
    return f"part-{rank:05d}-{number:06d}.parquet"


def write_part(table: pa.Table, file: BinaryIO) -> None:
    """Write a table as Parquet: all compressed but the pictures, which are compressed already."""
    leaves = [leaf for field in SCHEMA for leaf in _leaves(field.name, field.type)]
    pq.write_table(
        table,
        file,
        row_group_size=_ROWS_PER_GROUP,
        compression={leaf: "none" if leaf.endswith("bytes") else "zstd" for leaf in leaves},
        use_dictionary=["neuron", "layer", "status", "stop_reason"],
        write_statistics=["neuron", "layer", "status", "score", "score_paper"],
    )


def read_groups(
    path: Path,
    columns: Sequence[str],
    neurons: Collection[str] | None = None,
    *,
    at_once: int = _ROWS_PER_GROUP,
) -> Iterator[pa.Table]:
    """Read columns of a part, some rows at a time.

    Args:
        path: The part.
        columns: The columns wanted, in this order.
        neurons: The neurons wanted, as normalised text; None for all.
        at_once: The most rows to hold, > 0; fewer than a row group has where pictures are read and
            memory counts.

    Yields:
        The rows wanted, in their order; of a row group without any only the names are loaded.

    Raises:
        PartError: If the part is damaged, not polylight's, or of another version.
    """
    wanted = None if neurons is None else pa.array(list(neurons), type=pa.string())
    if path.exists() and not path.is_file():
        # To open a named pipe would wait for a writer for ever.
        raise PartError(path, "it is not a regular file", "move it out of the run directory")
    try:
        # A table without rows still holds its schema, and a run has thousands of parts.
        # A buffer would hold every part's pictures twice.
        with pq.ParquetFile(path, pre_buffer=False) as part:
            _check_version(path, part.schema_arrow.metadata or {})
            lacking = [name for name in columns if name not in part.schema_arrow.names]
            if lacking:
                raise PartError(path, f"it lacks the column {lacking[0]}", _MAKE_ANEW)
            for i in range(part.num_row_groups):
                if wanted is None or _has_any(part, i, wanted):
                    yield from _read_group(part, i, columns, wanted, at_once)
    except (pa.ArrowException, OSError) as error:
        raise PartError(
            path,
            (str(error) or type(error).__name__).splitlines()[0],
            _MAKE_ANEW,
        ) from error


def _has_any(part: pq.ParquetFile, index: int, wanted: pa.Array) -> bool:
    """Tell whether a row group has a wanted neuron."""
    names = part.read_row_group(index, columns=["neuron"])["neuron"]
    found: bool = pc.any(pc.is_in(names, value_set=wanted)).as_py()
    return found


def _read_group(
    part: pq.ParquetFile, index: int, columns: Sequence[str], wanted: pa.Array | None, at_once: int
) -> Iterator[pa.Table]:
    """Read the wanted rows of a row group."""
    named = columns if "neuron" in columns else [*columns, "neuron"]
    for batch in part.iter_batches(batch_size=at_once, row_groups=[index], columns=named):
        table = pa.Table.from_batches([batch])
        if wanted is not None:
            table = table.filter(pc.is_in(table["neuron"], value_set=wanted))
        if table.num_rows:
            yield table.select(columns)


def _check_version(path: Path, metadata: dict[bytes, bytes]) -> None:
    """Refuse a part that is not polylight's, or of another schema."""
    if b"polylight" not in metadata:
        raise PartError(path, "it was not written by polylight", "move it out of the run directory")
    version = json.loads(metadata[b"polylight"])["schema_version"]
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        raise PartError(
            path,
            f"it has schema version {version}, but this polylight knows version {SCHEMA_VERSION}",
            "upgrade polylight" if newer else "run the same fit again in another --run_dir",
        )


def _leaves(name: str, kind: pa.DataType) -> list[str]:
    """Name the leaf columns under a column in Parquet's own way."""
    if pa.types.is_list(kind):
        return _leaves(f"{name}.list.element", kind.value_type)
    if pa.types.is_struct(kind):
        return [leaf for part in kind for leaf in _leaves(f"{name}.{part.name}", part.type)]
    return [name]
