"""The neurons of a run on disk: Parquet parts that are whole or absent, one writer a rank."""

import errno
import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from polylight.errors import InputError, nearest
from polylight.run.atomic import check_writable, temporary_pattern, write_atomically
from polylight.run.false_discovery import q_values
from polylight.run.lock import HeldError, hold
from polylight.run.parts import list_parts, part_name, read_groups, write_part
from polylight.run.schema import SCHEMA, NeuronRow, float_array, rows_to_table, table_to_rows

log = logging.getLogger(__name__)

NEURONS_DIR = "neurons"
REFERENCE = "reference.safetensors"
"""The frame that a run's embeddings are compared in, as ``Reference.save`` writes it."""
# Rows with their pictures, of about 2 MB each.
_STREAMED = 4


class RunStore:
    """The one writer of a rank's parts; it also knows what every rank has finished.

    It holds the rank from construction to ``close`` (or to the end of the process, however it
    ends), so that the same command started twice cannot write the same neurons twice.
    """

    def __init__(self, run_dir: str | Path, rank: int = 0) -> None:
        """Take the rank's place as writer and clear away what a killed writer left.

        Args:
            run_dir: The run's directory; made if it is not there.
            rank: Number of this writer, >= 0; no two live writers of a run may share it.

        Raises:
            InputError: If the directory cannot be written, or the rank is held by a live process.
        """
        check_writable(run_dir)
        self.run_dir = Path(run_dir)
        self.rank = rank
        self._folder = self.run_dir / NEURONS_DIR
        self._folder.mkdir(exist_ok=True)
        self._release = _hold(self._folder / f".rank-{rank:05d}.lock", self.run_dir, rank)
        for leftover in self._folder.glob(temporary_pattern(f"part-{rank:05d}-*.parquet")):
            leftover.unlink()
        own = (part.number for part in list_parts(self._folder) if part.rank == rank)
        self._next = 1 + max(own, default=-1)

    def append(self, rows: Sequence[NeuronRow]) -> Path | None:
        """Write rows as one new part, whole or not at all.

        Args:
            rows: The rows; no neuron may be finished already.

        Returns:
            The part's path, once it is safe on the disk; None when there are no rows.

        Raises:
            OSError: If the disk is full or fails; no trace of the part is left.
            ValueError: If a row contradicts itself.
        """
        if not rows:
            return None
        table = rows_to_table(rows)
        path = self._folder / part_name(self.rank, self._next)
        if path.exists():
            raise FileExistsError(
                errno.EEXIST, f"another process writes as rank {self.rank}", str(path)
            )
        write_atomically(path, lambda file: write_part(table, file))
        self._next += 1
        return path

    def finished(self) -> set[str]:
        """Name the neurons that some rank has finished, as normalised text.

        Raises:
            InputError: If a part cannot be read.
        """
        return set(self.statuses())

    def statuses(self) -> dict[str, str]:
        """Map every finished neuron of every rank to ``ok``, ``dead`` or ``failed``.

        Raises:
            InputError: If a part cannot be read.
        """
        table = read_run(self.run_dir, columns=["neuron", "status"])
        return dict(zip(table["neuron"].to_pylist(), table["status"].to_pylist(), strict=True))

    def close(self) -> None:
        """Let another process write as this rank."""
        self._release()


def read_run(
    run_dir: str | Path,
    columns: Sequence[str] | None = None,
    neurons: Collection[str] | None = None,
) -> pa.Table:
    """Read the finished neurons of a run, of all its ranks.

    Of a neuron that is there twice the first row wins. The ``q_value`` is worked out here from all
    the finished neurons of its layer. Without ``columns`` the pictures come too, and may be large:
    about 2 MB for a neuron of 64 images of 128 px.

    Args:
        run_dir: The run's directory.
        columns: The columns wanted, in this order; None for all.
        neurons: The neurons wanted, as normalised text; None for all. Unknown ones are left out.

    Returns:
        One row a neuron, in the order in which they were written; empty if none is finished.

    Raises:
        InputError: If there is no such directory or column, or a part cannot be read or is of
            another version.
    """
    columns = list(SCHEMA.names if columns is None else columns)
    for name in columns:
        if name not in SCHEMA.names:
            raise InputError(f"a run has no column {name!r}; {nearest(name, SCHEMA.names)}")
    needed = ("neuron", "layer", "p_value") if "q_value" in columns else ("neuron",)
    wanted = [*columns, *(name for name in needed if name not in columns)]
    paths = part_paths(run_dir)
    tables = [table for path in paths for table in read_groups(path, wanted, neurons)]
    schema = pa.schema([SCHEMA.field(n) for n in wanted], metadata=SCHEMA.metadata)
    # ``empty_table``, as ``pa.array`` of a list, would import all of pandas where there is one.
    empty = pa.Table.from_batches([], schema)
    table = _first_of_each(pa.concat_tables([empty, *tables]))
    if "q_value" in columns:
        whole = table if neurons is None else read_run(run_dir, columns=needed)
        table = _with_q_values(table, whole)
    return table.select(columns)


def read_rows(run_dir: str | Path, neurons: Collection[str] | None = None) -> list[NeuronRow]:
    """Read neurons with all that belongs to them, pictures included.

    Args:
        run_dir: The run's directory.
        neurons: The neurons wanted, as normalised text; None for all.

    Returns:
        The rows, in the order in which they were written.

    Raises:
        InputError: As for ``read_run``.
    """
    return table_to_rows(read_run(run_dir, neurons=neurons))


def part_paths(run_dir: str | Path) -> list[Path]:
    """List the whole parts of a run by rank, then by age.

    Args:
        run_dir: The run's directory.

    Returns:
        Their paths; none of a run that has not finished any neuron.

    Raises:
        InputError: If there is no such directory.
    """
    if not Path(run_dir).is_dir():
        raise InputError(f"expected the directory of a run, but {run_dir} is none")
    return [part.path for part in list_parts(Path(run_dir) / NEURONS_DIR)]


def stream_rows(
    paths: Sequence[Path], neurons: Collection[str] | None = None
) -> Iterator[NeuronRow]:
    """Read neurons with all that belongs to them, a few in memory at a time.

    Args:
        paths: Parts of a run.
        neurons: The neurons wanted, as normalised text; None for all.

    Yields:
        The rows in the order of the parts, of a neuron that is there twice the first. The
        ``q_value``, which takes the whole run, is None.

    Raises:
        PartError: If a part cannot be read.
    """
    seen: set[str] = set()
    for path in paths:
        for group in read_groups(path, SCHEMA.names, neurons, at_once=_STREAMED):
            for i, neuron in enumerate(group["neuron"].to_pylist()):
                if neuron not in seen:
                    seen.add(neuron)
                    # A row at a time: that of pictures is a copy.
                    yield from table_to_rows(group.slice(i, 1))


def _first_of_each(table: pa.Table) -> pa.Table:
    """Drop every row but the first of each neuron."""
    names = table["neuron"].to_pylist()
    first = {name: i for i, name in reversed(list(enumerate(names)))}
    if len(first) == len(names):
        return table
    return table.filter(pa.array([first[name] == i for i, name in enumerate(names)]))


def _with_q_values(table: pa.Table, whole: pa.Table) -> pa.Table:
    """Fill the q-values of a table from the p-values of the whole run."""
    adjusted = q_values(whole["p_value"].to_pylist(), whole["layer"].to_pylist()).tolist()
    q = dict(zip(whole["neuron"].to_pylist(), adjusted, strict=True))
    values = np.array([q[name] for name in table["neuron"].to_pylist()], dtype=np.float64)
    field, place = SCHEMA.field("q_value"), table.schema.get_field_index("q_value")
    return table.set_column(place, field, float_array(values))


def _hold(path: Path, run_dir: Path, rank: int) -> Callable[[], None]:
    """Hold a rank's lock as long as this process lives; return what lets go of it."""
    try:
        return hold(path)
    except HeldError as error:
        raise InputError(
            f"rank {rank} of {run_dir} is being written by {error}; "
            "wait for it or end it, or choose another --run_dir"
        ) from error
    except OSError:
        log.warning("%s has no file locks: do not start this run twice at a time", run_dir)
        return lambda: None
