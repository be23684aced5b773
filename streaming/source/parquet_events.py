"""Which columns of a Parquet file are a message's key and time?"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from streaming.source.records import UnknownColumn
from validation.instant_columns import column_us


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open a Parquet file. Raises SourceError where it is missing or torn."""
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise SourceError(f"there is no file {path}") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path} is not a whole Parquet file: {error}") from error


def check_columns(path: Path, schema: pa.Schema, *, key: str | None, timestamp: str | None) -> None:
    """Raises UnknownColumn where the key or the time column is missing, or the time is of a type that none is."""
    for name in (key, timestamp):
        if name is not None and name not in schema.names:
            raise UnknownColumn(f"{path} has no column {name!r}; it has {', '.join(schema.names)}")
    if timestamp is not None:
        try:
            column_us(pa.nulls(1, schema.field(timestamp).type))
        except TypeError as error:
            raise UnknownColumn(f"column {timestamp!r} of {path}: {error}") from error


def keys_of(batch: pa.RecordBatch, key: str | None) -> list[bytes | None]:
    """Message keys: the column's values as UTF-8 text, None for nulls or where there is no key column."""
    if key is None:
        return [None] * batch.num_rows
    return list(batch.column(key).cast(pa.large_string()).cast(pa.large_binary()).to_pylist())


def times_of(path: Path, batch: pa.RecordBatch, timestamp: str) -> list[int]:
    """Record times in microseconds. Raises SourceError where one is null."""
    try:
        times = column_us(batch.column(timestamp))
    except ValueError as error:
        raise SourceError(f"column {timestamp!r} of {path}: {error}") from error
    if times.null_count:
        raise SourceError(f"{times.null_count} rows of {path} have no {timestamp!r}; a record needs a time")
    return list(times.to_pylist())
