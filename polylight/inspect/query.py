"""``polylight query``: SQL over the rows of a run, shut off from files and the network."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from rich.console import Console

from polylight.errors import InputError, nearest
from polylight.inspect.export import check_format, to_csv, to_json, write_out
from polylight.inspect.neuron_table import (
    MEDIAN,
    SCALARS,
    add_above_photos,
    add_median,
    shown_columns,
)
from polylight.inspect.result_table import Result, render_result
from polylight.photos.above import ABOVE_PHOTOS
from polylight.run.reported import read_reported_score
from polylight.run.schema import SCHEMA
from polylight.run.store import NEURONS_DIR, read_run

if TYPE_CHECKING:
    import duckdb

VIEW = "neurons"
"""Name of the one view that a query sees."""

# Those that are not in ``SELECT *``: an embedding has kilobytes and the images have megabytes.
_LISTS = tuple(name for name in SCHEMA.names if name not in SCALARS)
_DESCRIBES = re.compile(rf'\b(describe|desc|show)\s+(table\s+)?"?{VIEW}\b', re.IGNORECASE)


def query(run: str, sql: str, json: bool = False, csv: bool = False) -> None:
    """Print what an SQL query finds among the neurons of a run.

    The view ``neurons`` holds a row for each neuron; ``DESCRIBE neurons`` lists its columns.
    ``SELECT *`` has those of ``show --json``, and rows in the order of ``show``, the most
    polysemantic first. The columns that hold a list, such as ``label``, ``embedding``,
    ``layer_input`` and ``image``, come where the query names them, in the order of the run.

    Args:
        run: The run's directory.
        sql: One SELECT in duckdb's dialect, such as
            ``SELECT layer, avg(score) FROM neurons GROUP BY layer``.
        json: Print JSON instead of a table: a list of objects.
        csv: Print CSV instead of a table (RFC 4180).

    Raises:
        InputError: If the directory is no run or holds no finished neuron, the query cannot be
            answered, or duckdb is missing.
    """
    check_format(as_json=json, as_csv=csv)
    named = _words(sql)
    lists = [name for name in _LISTS if name in named]
    table = read_finished(run, [*shown_columns(run), *lists])
    if not lists:
        # Else images, which may be gigabytes, would be copied.
        table = table.sort_by([(read_reported_score(run), "descending"), ("neuron", "ascending")])
    if _DESCRIBES.search(sql):
        table = _with_all_columns(table)
    found = _each_once(select(table, sql), lists)
    if json:
        write_out(to_json(*found))
    elif csv:
        write_out(to_csv(*found))
    else:
        console = Console()
        console.print(render_result(found, console.width))


def read_finished(run: str | Path, columns: Sequence[str]) -> pa.Table:
    """Read columns of a run of which there is something to see.

    Args:
        run: The run's directory.
        columns: The columns wanted, in this order; ``activation_median`` and ``above_photos`` may
            be among them.

    Returns:
        As :func:`polylight.run.store.read_run`, with at least one row.

    Raises:
        InputError: If the directory is no run, or holds no finished neuron.
    """
    derived = [name for name in (MEDIAN, ABOVE_PHOTOS) if name in columns]
    needed = ("neuron", "activation", "label") if derived else ()
    stored = [name for name in columns if name not in derived]
    table = read_run(run, columns=[*stored, *(name for name in needed if name not in stored)])
    if not table.num_rows:
        found = (Path(run) / NEURONS_DIR).is_dir()
        raise InputError(
            f"{run} holds no finished neuron yet; wait for the first or look at its log"
            if found
            else f"{run} is not the directory of a run: expected {NEURONS_DIR}/part-*.parquet in it"
        )
    if MEDIAN in derived:
        table = add_median(table)
    if ABOVE_PHOTOS in derived:
        table = add_above_photos(table, run)
    return table.select(list(columns))


def select(table: pa.Table, sql: str) -> Result:
    """Answer a query about a table, which it knows as ``neurons``.

    Args:
        table: Any table.
        sql: One statement in duckdb's dialect that changes nothing.

    Returns:
        The columns and rows that it finds.

    Raises:
        InputError: If the query cannot be answered, does more than look, or duckdb is missing.
    """
    with _database(table, sql, "the query", [*SCHEMA.names, MEDIAN, ABOVE_PHOTOS]) as database:
        _check_statement(database.extract_statements(sql))
        cursor = database.execute(sql)
        names = [column[0] for column in cursor.description]
        return Result(names, cursor.fetchall())


def matching(table: pa.Table, condition: str) -> pa.ChunkedArray:
    """Find the neurons for which a condition holds.

    Args:
        table: Rows of a run: ``neuron``, and the columns that the condition may name.
        condition: An SQL expression in duckdb's dialect, such as
            ``score > 0.3 and layer = 'blocks.4'``. Where it is NULL it does not hold.

    Returns:
        Whether it holds, bool, for each row of the table.

    Raises:
        InputError: If the condition cannot be understood, or duckdb is missing.
    """
    with _database(table, condition, "--where", table.schema.names) as database:
        # Parsed as an expression, so that it cannot become a second query.
        kept = database.table(VIEW).filter(condition).project("neuron").to_arrow_table()
    return pc.is_in(table["neuron"], value_set=kept["neuron"].combine_chunks())


@contextmanager
def _database(
    table: pa.Table, asked: str, asker: str, columns: Sequence[str]
) -> Iterator["duckdb.DuckDBPyConnection"]:
    """Open a database with one view of a table and nothing else within its reach."""
    try:
        import duckdb
    except ModuleNotFoundError as error:
        raise InputError(
            f"{asker} needs duckdb, which is not installed; install it with "
            'pip install "polylight[query]"'
        ) from error

    if re.search("[\ud800-\udfff]", asked):
        raise InputError(f"{asker} is not valid UTF-8: {asked!r}; type it in a UTF-8 terminal")
    # Else a query could name Python's variables, and write down what memory cannot hold.
    closed: dict[str, Any] = {"python_enable_replacements": False, "temp_directory": ""}
    with duckdb.connect(":memory:", config=closed) as database:
        database.register(VIEW, table)
        database.execute("SET enable_external_access = false")
        database.execute("SET lock_configuration = true")
        try:
            yield database
        except duckdb.Error as error:
            raise InputError(f"{asker} failed: {_said(error, columns)}") from error


def _check_statement(statements: Sequence[Any]) -> None:
    """Refuse what is not one statement that only looks."""
    import duckdb

    # A PIVOT is a MULTI: it looks up the values first.
    kinds = duckdb.StatementType
    if len(statements) != 1 or statements[0].type not in (kinds.SELECT, kinds.EXPLAIN, kinds.MULTI):
        given = [str(statement.type).rpartition(".")[2] for statement in statements]
        raise InputError(
            "expected one SELECT, as a run is only read by a query, but the query has "
            f"{', '.join(given) or 'no statement'}"
        )


def _said(error: Exception, columns: Sequence[str]) -> str:
    """Put what duckdb says in a line, with the column that may have been meant."""
    # After an empty line comes the query with a mark under it, or a trace.
    first, *more = str(error).partition("\n\n")[0].splitlines() or [type(error).__name__]
    said = " ".join([first, *(m for m in more if m.startswith(("Candidate b", "Did you mean")))])
    unknown = re.search(r'column "(.+?)" not found|column named "(.+?)"', first)
    if unknown:
        return f"{said}; {nearest(unknown[1] or unknown[2], columns)}"
    if first.startswith("Permission"):
        return f"{said}; it can read the view {VIEW} and nothing else"
    return said


def _words(sql: str) -> set[str]:
    """Find the words of a query; in SQL case means nothing."""
    return set(re.findall(r"\w+", sql.lower()))


def _with_all_columns(table: pa.Table) -> pa.Table:
    """Add the columns that are lacking, of their types but without values: to be described."""
    for name in _LISTS:
        if name not in table.column_names:
            field = SCHEMA.field(name)
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table


def _each_once(found: Result, lists: Sequence[str]) -> Result:
    """Drop a list that stands in a star where the query has it by its name too."""
    names = found.names
    kept = [i for i, name in enumerate(names) if name not in lists or name not in names[i + 1 :]]
    return Result([names[i] for i in kept], [tuple(row[i] for i in kept) for row in found.rows])
