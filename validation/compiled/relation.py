"""Where do a batch's rows come from? A table in memory, or a query that DuckDB runs over files, row by row in neither.

A relation has columns and, for DuckDB, `ROW`: a number that tells each row from all others and orders them.
"""

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from validation.interrupts import interruptible
from validation.mixed import rows_of

Numbers = npt.NDArray[np.int64]
ROW: Final = "_row"
"""The column of row numbers that a batch carries into a statement."""
CHUNK: Final = 65_536
"""Rows that are judged in Python at a time."""
_BATCH: Final = "batch"
_opening: Final = threading.Lock()


class Relation(Protocol):
    """The rows of a batch."""

    schema: pa.Schema
    """The columns, without `ROW`."""
    text: str
    """What follows FROM in a statement."""

    def ask(self, statement: str, parameters: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        """Runs a statement; its result is to be fetched before the next question."""
        ...

    def values(self, columns: Sequence[str], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The values of rows, in the order of the numbers."""
        ...

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Numbers, pa.Table]]:
        """All rows piece by piece, ascending: their numbers, and the columns that there are."""
        ...


@functools.cache
def _database() -> duckdb.DuckDBPyConnection:
    """The process's empty database: opening one costs more than judging a small batch; nothing is ever kept in it."""
    database = duckdb.connect(":memory:")
    # Zoned columns come out as UTC whatever the machine's zone is; cursors take the setting over.
    database.execute("SET GLOBAL TimeZone = 'UTC'")
    return database


class TableRows:
    """The rows of a table, numbered from 0; a context manager, since it has a connection of its own once asked."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        self.schema: pa.Schema = table.schema
        self.text = _BATCH
        self._connection: duckdb.DuckDBPyConnection | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connection is not None:
            self._connection.close()

    def ask(self, statement: str, parameters: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        """See Relation."""
        if self._connection is None:
            with _opening:
                self._connection = interruptible(_database().cursor())
            numbers = pa.array(np.arange(self.table.num_rows, dtype=np.int64))
            self._connection.register(_BATCH, self.table.append_column(ROW, numbers))
        return self._connection.execute(statement, dict(parameters))

    def values(self, columns: Sequence[str], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """See Relation."""
        return rows_of(self.table.select(list(columns)).take(pa.array(numbers, pa.int64())))

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Numbers, pa.Table]]:
        """See Relation."""
        narrow = self.table.select([name for name in columns if name in self.table.column_names])
        for start in range(0, self.table.num_rows, CHUNK):
            yield np.arange(start, min(start + CHUNK, self.table.num_rows)), narrow.slice(start, CHUNK)


class QueriedRows:
    """The rows of a query in a session of the caller's, which stays open as long as this is used.

    `text` follows FROM; it has the columns of `schema` and `ROW`, a BIGINT that is unique and not NULL. Nothing is held
    in memory: every question runs the query again.
    """

    def __init__(self, session: duckdb.DuckDBPyConnection, text: str, schema: pa.Schema) -> None:
        self.schema = schema
        self.text = text
        self._session = session
        # Parquet's statistics leave NaN out, and DuckDB concludes from them that a column has none.
        session.execute("SET disabled_optimizers = 'statistics_propagation'")

    def ask(self, statement: str, parameters: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        """See Relation."""
        return self._session.execute(statement, dict(parameters))

    def values(self, columns: Sequence[str], numbers: Sequence[int]) -> list[dict[str, Any]]:
        """See Relation."""
        listed = ", ".join([quoted(name) for name in columns] + [quoted(ROW)])
        text = f"SELECT {listed} FROM {self.text} WHERE {quoted(ROW)} IN (SELECT unnest($numbers::BIGINT[]))"  # noqa: S608
        found = self._session.sql(text, params={"numbers": [int(number) for number in numbers]}).to_arrow_table()
        by_number = {row.pop(ROW): row for row in found.to_pylist()}
        return [by_number[number] for number in numbers]

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[Numbers, pa.Table]]:
        """See Relation."""
        present = [name for name in columns if name in self.schema.names]
        listed = ", ".join([quoted(name) for name in present] + [quoted(ROW)])
        text = f"SELECT {listed} FROM {self.text} ORDER BY {quoted(ROW)}"  # noqa: S608  # quoted
        for batch in self._session.sql(text).to_arrow_reader(CHUNK):
            table = pa.Table.from_batches([batch])
            yield table.column(ROW).to_numpy(), table.drop_columns([ROW])


def quoted(name: str) -> str:
    """A quoted identifier.

    >>> quoted('a"b')
    '"a""b"'
    """
    return '"' + name.replace('"', '""') + '"'
