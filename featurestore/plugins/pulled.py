"""How are rows of another offline store read without holding them all? Slice by slice of event time, into files."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.offline.column_types import unified
from featurestore.offline.sources import Scan, scan_parquet
from validation.instant_columns import column_us

SLICE_ROWS = 250_000
"""What a slice should hold; where rows become denser all at once it holds more, and the next one less."""
_FIRST = timedelta(hours=1)
_MOST_STEP = 4.0
_SECOND = timedelta(seconds=1)
_LEAST = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Pull = Callable[[datetime, datetime], pa.Table]


class Pulled(msgspec.Struct, frozen=True):
    """Rows as they lie in files."""

    scan: Scan
    untyped: frozenset[str]
    """Columns in which no slice has a value: the store has not said what they would be."""

    def typed(self, rows: pa.Table) -> pa.Table:
        """Rows of the scan, their untyped columns null again."""
        for name in self.untyped & set(rows.column_names):
            rows = rows.set_column(rows.column_names.index(name), name, pa.nulls(len(rows)))
        return rows


def pulled(
    pull: Pull,
    timestamp: str,
    instants: list[datetime],
    folder: Path,
    *,
    name: str,
    declared: Mapping[str, str] | None = None,
) -> Pulled:
    """The rows dated from the first to the last of the instants, both included, in Parquet files below the folder.

    `pull` gives the rows between two instants, both included. No slice lies on both sides of one of the instants, where
    one begins right after it. They are asked for from the newest on, and each is as long as the one before suggests.
    Slices meet at whole seconds, which other stores may round to. Raises SourceError.
    """
    schemas: dict[str, pa.Schema] = {}
    for position, (first, last) in reversed(list(enumerate(pairwise(instants)))):
        upper, width = last + _LEAST, _FIRST
        while True:
            begin = max(first, _whole_second(upper - width))
            rows = pull(begin, min(upper, last)).replace_schema_metadata(None)  # What pandas noted.
            rows = _dated(rows, timestamp, begin + _LEAST if begin == first and position else begin, upper)
            schemas.setdefault(f"the rows from {begin:%Y-%m-%dT%H:%M:%S} on", rows.schema)
            if len(rows):
                pq.write_table(_without_untyped(rows), folder / f"{len(list(folder.iterdir())):08}.parquet")
            if begin <= first:
                break
            upper = begin
            factor = min(_MOST_STEP, max(1 / _MOST_STEP, SLICE_ROWS / max(1, len(rows))))
            # Bounded, since years before the first row are many times as long as what can be asked for.
            width = min(max(_SECOND, width * factor), upper - first)
    whole, apart = unified(schemas, declared)
    for column, why in apart.items():
        raise SourceError(f"{name}: rows of different times differ in the type of column {column!r}: {why}")
    untyped = frozenset(field.name for field in whole if pa.types.is_null(field.type))
    fields = [field.with_type(pa.string()) if field.name in untyped else field for field in whole]
    # A file for columns that no other has, and for a range without rows.
    pq.write_table(pa.schema(fields).empty_table(), folder / "columns.parquet")
    return Pulled(scan_parquet(folder, repo=folder, name=name, missing_columns="null", declared=declared), untyped)


def _dated(rows: pa.Table, timestamp: str, begin: datetime, upper: datetime) -> pa.Table:
    """The rows from an instant on, and before another; in the types that the source has."""
    try:
        dated = column_us(rows.column(timestamp))
    except (TypeError, ValueError) as error:
        raise SourceError(f"timestamp column {timestamp!r}: {error}") from error
    begin_us, upper_us = ((each - _EPOCH) // _LEAST for each in (begin, upper))
    return rows.filter(pc.and_(pc.greater_equal(dated, begin_us), pc.less(dated, upper_us)))


def _without_untyped(rows: pa.Table) -> pa.Table:
    return rows.select([field.name for field in rows.schema if not pa.types.is_null(field.type)])


def _whole_second(when: datetime) -> datetime:
    return _EPOCH + (when - _EPOCH) // _SECOND * _SECOND
