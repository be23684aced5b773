"""What were the windowed features of these entities worth at these instants?

`windowed_join` is a pure function from Arrow tables to an Arrow table. It sorts each chunk of whole keys once and
answers every window from it: the bits are those of the tiles that the stream keeps and the reader merges.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.aggregation.errors import NoResult
from featurestore.aggregation.partials import columns_of
from featurestore.aggregation.results import ColumnResult
from featurestore.aggregation.values import arrow_type
from featurestore.errors import UsageError
from featurestore.offline.windowed_chunk import Chunk, Events, Window, windows_of
from featurestore.offline.windowed_keys import KeyIndex, column_of, instants
from featurestore.offline.windowed_known import KnownChunk
from featurestore.offline.windowed_ranges import Ints
from featurestore.plan import Aggregation

CHUNK_ROWS = 250_000
"""Events and entity rows that are worked on at a time; a chunk holds whole keys."""
BATCH_BYTES = 200_000_000
"""Memory for the parts of the entity rows that are answered at a time."""

THREADS = max(1, min(8, (os.cpu_count() or 1)))
"""Chunks that are worked on side by side."""

_FAR = 1 << 62


def windowed_join(
    events: Any,
    entity_rows: Any,
    *,
    keys: Mapping[str, str],
    event_ts: str,
    entity_ts: str,
    aggregations: Sequence[Aggregation],
    arrival: str | None = None,
    as_known: bool = False,
    chunk_rows: int = CHUNK_ROWS,
    threads: int = THREADS,
) -> Any:
    """One row for every entity row, in their order; one column for every aggregation, named by its feature.

    `keys` maps key columns of the events to those of the entity rows; none at all is an entityless view. Times are
    Arrow timestamps (naive ones are UTC, nanoseconds are floored) or int64 microseconds. An entity row with a null
    key or time has only nulls; one without events has a count of 0 and nulls. Events with a null key or time count
    nowhere. With `as_known` an event counts only where its `arrival` is not after the entity row's time;
    one of unknown arrival was never known.

    Raises UsageError for columns that are missing or of the wrong type, DefinitionError for aggregations that cannot
    be told, MagnitudeTooLarge, ValueTooLong and LeavesType as the algebra does: all but the last before any work is
    done.

    >>> second = pa.timestamp("s")
    >>> taps = pa.table({"card": ["a", "a", "b"], "ts": pa.array([1, 2, 2], second), "fare": [2.5, 1.5, 9.0]})
    >>> asked = pa.table({"card": ["a"], "at": pa.array([60], second)})
    >>> total = Aggregation(feature="spent", column="fare", column_dtype="DOUBLE", function="sum", dtype="DOUBLE",
    ...                     window_us=3_600_000_000, hop_us=300_000_000)
    >>> joined = windowed_join(taps, asked, keys={"card": "card"}, event_ts="ts", entity_ts="at", aggregations=[total])
    >>> joined["spent"].to_pylist()
    [4.0]
    """
    if as_known and arrival is None:
        raise UsageError("an as-known join needs the events' arrival column; name it, or join without as_known")
    windows = windows_of(aggregations)
    t_us, asked = instants(column_of(entity_rows, entity_ts, "entity rows"), entity_ts)
    index = KeyIndex(entity_rows, keys, events.schema)
    known = _read(events, index, event_ts, aggregations, arrival if as_known else None)
    row_code = np.where(asked, index.rows, -1)
    batch_rows = max(1_000, BATCH_BYTES // _row_bytes(windows))
    values: dict[str, list[Any]] = {aggregation.feature: [] for aggregation in aggregations}
    answered: list[Ints] = []

    def answer(chunk_of: tuple[Ints, Ints]) -> list[tuple[Ints, list[tuple[str, Any]]]]:
        chosen, rows = chunk_of
        chunk = KnownChunk(known.take(chosen)) if as_known else Chunk(known.take(chosen))
        rows = rows[np.lexsort((t_us[rows], row_code[rows]))]
        batches = (rows[start : start + batch_rows] for start in range(0, len(rows), batch_rows))
        return [(batch, list(_answers(chunk, windows, row_code[batch], t_us[batch], batch))) for batch in batches]

    with ThreadPoolExecutor(threads) as pool:
        # numpy releases the interpreter for its long calls; chunks share nothing but what they read.
        for told in pool.map(answer, _chunks(known, row_code, index.size, chunk_rows)):
            for batch, columns in told:
                answered.append(batch)
                for feature, column in columns:
                    values[feature].append(column)
    return in_order(aggregations, values, answered, len(t_us))


def _read(
    events: Any, index: KeyIndex, event_ts: str, aggregations: Sequence[Aggregation], arrival: str | None
) -> Events:
    """The events as numbers."""
    ts_us, dated = instants(column_of(events, event_ts, "events"), event_ts)
    arrival_us = None
    if arrival is not None:
        arrival_us, arrived = instants(column_of(events, arrival, "events"), arrival)
        arrival_us = np.where(arrived, arrival_us, _FAR)
    columns = []
    for kept in columns_of(aggregations):
        read = kept.read(column_of(events, kept.column, "events"))
        kept.refuse_too_large(read.values)
        columns.append((kept, read))
    code = index.codes(events)
    if not dated.all():
        code = np.where(dated, code, -1)
    return Events(code, ts_us, arrival_us, tuple(columns))


def _chunks(events: Events, row_code: Ints, codes: int, chunk_rows: int) -> Iterator[tuple[Ints, Ints]]:
    """Positions of the events and of the entity rows of every chunk of whole keys that has entity rows."""
    if not codes:
        return
    weight = np.bincount(events.code[events.code >= 0], minlength=codes)
    weight += np.bincount(row_code[row_code >= 0], minlength=codes)
    by_rows = (np.cumsum(weight) - weight) // chunk_rows
    most_codes = max(1, _FAR // events.span_us - 1)
    by_codes = np.arange(codes) // most_codes
    number = np.cumsum(np.diff(by_rows, prepend=0).astype(bool) | np.diff(by_codes, prepend=0).astype(bool))
    count = int(number[-1]) + 1
    ours, theirs = _by_chunk(events.code, number, count), _by_chunk(row_code, number, count)
    for chosen, rows in zip(ours, theirs, strict=True):
        if len(rows):
            yield chosen, rows


def _by_chunk(code: Ints, number: Ints, count: int) -> list[Ints]:
    """The positions of every chunk's codes; -1 is in none."""
    # The smallest integers: numpy sorts those of 16 bits by counting.
    small = np.min_scalar_type(count)
    chunk = np.where(code < 0, count, number[code]).astype(small)
    order = np.argsort(chunk, kind="stable")
    ends = np.cumsum(np.bincount(chunk, minlength=count + 1))
    return np.split(order, ends)[:count]


def _row_bytes(windows: Sequence[Window]) -> int:
    parts = [part for window in windows for kept in window.columns for part in kept.parts]
    return sum(part.empty(1).nbytes for part in parts)


def _answers(
    chunk: Chunk | KnownChunk, windows: Sequence[Window], code: Ints, t_us: Ints, rows: Ints
) -> Iterator[tuple[str, Any]]:
    """(feature, its values) for the entity rows at positions `rows`."""
    for window, found in zip(windows, chunk.parts(windows, code, t_us), strict=True):
        results = {kept.column: ColumnResult(kept, found[kept.column]) for kept in window.columns}
        for aggregation in window.aggregations:
            try:
                yield aggregation.feature, results[aggregation.column].value(aggregation)
            except NoResult as error:
                raise error.at(sorted(rows[error.rows].tolist())) from None


def in_order(
    aggregations: Sequence[Aggregation], values: dict[str, list[Any]], answered: Sequence[Ints], rows: int
) -> Any:
    """Columns in the entity rows' order, of values that were told for rows `answered`; the other rows are null.

    Takes the lists out of `values`, so that a column's parts are freed before the next is put together.
    """
    place = np.full(rows, -1)
    if answered:
        order = np.concatenate(answered)
        place[order] = np.arange(len(order))
    take = pa.array(place, mask=place < 0)
    columns = {}
    for aggregation in aggregations:
        dtype = arrow_type(aggregation.dtype)
        found = pa.concat_arrays(values.pop(aggregation.feature)) if answered else pa.nulls(0, dtype)
        columns[aggregation.feature] = found.take(take)
    return pa.table(columns)
