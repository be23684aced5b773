"""What were the windowed features of these entities worth at these instants?

`windowed_join` is a pure function from Arrow tables to an Arrow table. It sorts each chunk of whole keys once and
answers every window from it: the bits are those of the tiles that the stream keeps and the reader merges.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from featurestore.aggregation.errors import MagnitudeTooLarge, NoResult, ValueTooLong
from featurestore.aggregation.partials import columns_of
from featurestore.aggregation.results import ColumnResult
from featurestore.errors import UsageError
from featurestore.offline.windowed_chunk import Chunk, Events, Window, windows_of
from featurestore.offline.windowed_keys import KeyIndex, column_of, instants
from featurestore.offline.windowed_known import KnownChunk
from featurestore.offline.windowed_ranges import Ints
from featurestore.offline.windowed_results import Results
from featurestore.plan import Aggregation

CHUNK_ROWS = 250_000
"""Events and entity rows that are worked on at a time; a chunk holds whole keys."""
BATCH_BYTES = 200_000_000
"""Memory for the parts of the entity rows that are answered at a time."""

THREADS = max(1, min(8, (os.cpu_count() or 1)))
"""Chunks that are worked on side by side."""

_FAR = 1 << 62

T = TypeVar("T")
R = TypeVar("R")


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
    on_share: Callable[[float], None] | None = None,
) -> Any:
    """One row for every entity row, in their order; one column for every aggregation, named by its feature.

    `keys` maps key columns of the events to those of the entity rows; none at all is an entityless view. Times are
    Arrow timestamps (naive ones are UTC, nanoseconds are floored) or int64 microseconds. An entity row with a null
    key or time has only nulls; one without events has a count of 0 and nulls. Events with a null key or time count
    nowhere. With `as_known` an event counts only where its `arrival` is not after the entity row's time;
    one of unknown arrival was never known. `on_share` hears after every chunk which share of the rows is answered.

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
    t_us, dated = instants(column_of(entity_rows, entity_ts, "entity rows"), entity_ts)
    index = KeyIndex(entity_rows, keys, events.schema)
    known = read_events(events, index.codes(events), event_ts, aggregations, arrival if as_known else None)
    results = Results(aggregations, len(t_us))
    share = Share(known, np.where(dated, index.rows, -1), t_us, index.size)
    answer_shares(
        [share], windows, results, as_known=as_known, chunk_rows=chunk_rows, threads=threads, on_share=on_share
    )
    return results.table()


class Share(NamedTuple):
    """The events of some keys, and the entity rows of the same keys."""

    events: Events
    code: Ints
    """Key code of every entity row, from 0; -1: no key or no time."""
    t_us: Ints
    codes: int
    rows: Ints | None = None
    """Where the entity rows stand in the result; None: they are all of them, in order."""


def answer_shares(
    shares: Iterable[Share],
    windows: Sequence[Window],
    results: Results,
    *,
    as_known: bool,
    chunk_rows: int = CHUNK_ROWS,
    threads: int = THREADS,
    on_share: Callable[[float], None] | None = None,
) -> None:
    """Fill the results' rows of every share; a share is asked for when the one before it is nearly answered.

    `on_share` hears after every chunk which share of the entity rows is answered, 0 to 1.
    """
    batch_rows = max(1_000, BATCH_BYTES // _row_bytes(windows))

    def answer(share: Share, chosen: Ints, rows: Ints) -> int:
        chunk = KnownChunk(share.events.take(chosen)) if as_known else Chunk(share.events.take(chosen))
        rows = rows[np.lexsort((share.t_us[rows], share.code[rows]))]
        for start in range(0, len(rows), batch_rows):
            batch = rows[start : start + batch_rows]
            at = batch if share.rows is None else share.rows[batch]
            for feature, told in _answers(chunk, windows, share.code[batch], share.t_us[batch], at):
                results.put(feature, at, told)
        return len(rows)

    # numpy releases the interpreter for its long calls; chunks share nothing but what they read.
    with ThreadPoolExecutor(threads) as pool:
        tasks = ((share, *chunk) for share in shares for chunk in _chunks(share, chunk_rows))
        answered = 0
        for count in in_flight(pool, lambda task: answer(*task), tasks, threads + 1):
            answered += count
            if on_share is not None:
                on_share(answered / results.rows)


def in_flight(pool: ThreadPoolExecutor, work: Callable[[T], R], tasks: Iterable[T], at_most: int) -> Iterator[R]:
    """The works' results in the tasks' order; a task is asked for when fewer than `at_most` are unfinished."""
    waiting: deque[Future[R]] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) >= at_most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def read_events(
    events: Any, code: Ints, event_ts: str, aggregations: Sequence[Aggregation], arrival: str | None
) -> Events:
    """The events that count for somebody, as numbers; `code` says for whom, -1 for nobody.

    Raises MagnitudeTooLarge and ValueTooLong, which name rows of `events`: what nobody asks about harms nobody.
    """
    ts_us, dated = instants(column_of(events, event_ts, "events"), event_ts)
    arrival_us = None
    if arrival is not None:
        arrival_us, arrived = instants(column_of(events, arrival, "events"), arrival)
        arrival_us = np.where(arrived, arrival_us, _FAR)
    at = np.flatnonzero((code >= 0) & dated)
    if len(at) < len(code):
        code, ts_us, arrival_us = code[at], ts_us[at], None if arrival_us is None else arrival_us[at]
    columns = []
    for kept in columns_of(aggregations):
        column = column_of(events, kept.column, "events")
        try:
            read = kept.read(column if len(column) == len(at) else column.take(pa.array(at)))
            kept.refuse_too_large(read.values)
        except MagnitudeTooLarge as error:
            raise MagnitudeTooLarge(error.column, at[error.rows].tolist()) from None
        except ValueTooLong as error:
            raise ValueTooLong(error.column, at[error.rows].tolist(), error.max_bytes) from None
        columns.append((kept, read))
    return Events(code, ts_us, arrival_us, tuple(columns))


def _chunks(share: Share, chunk_rows: int) -> Iterator[tuple[Ints, Ints]]:
    """Positions of the events and of the entity rows of every chunk of whole keys that has entity rows."""
    events, row_code, codes = share.events, share.code, share.codes
    if not codes:
        return
    weight = np.bincount(events.code[events.code >= 0], minlength=codes)
    weight += np.bincount(row_code[row_code >= 0], minlength=codes)
    by_rows = (np.cumsum(weight) - weight) // chunk_rows
    most_codes = max(1, _FAR // events.span_us - 1)
    by_codes = np.arange(codes) // most_codes
    number = np.cumsum(np.diff(by_rows, prepend=0).astype(bool) | np.diff(by_codes, prepend=0).astype(bool))
    count = int(number[-1]) + 1
    ours, theirs = (by_number(np.where(code < 0, -1, number[code]), count) for code in (events.code, row_code))
    for chosen, rows in zip(ours, theirs, strict=True):
        if len(rows):
            yield chosen, rows


def by_number(number: Ints, count: int) -> list[Ints]:
    """The positions of every number from 0 to `count` - 1, ascending; -1 is in none.

    >>> [at.tolist() for at in by_number(np.array([1, -1, 0, 1]), 2)]
    [[2], [0, 3]]
    """
    # The smallest integers: numpy sorts those of 16 bits by counting.
    small = np.where(number < 0, count, number).astype(np.min_scalar_type(count))
    order = np.argsort(small, kind="stable")
    return np.split(order, np.cumsum(np.bincount(small, minlength=count + 1)))[:count]


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
                yield aggregation.feature, results[aggregation.column].told(aggregation)
            except NoResult as error:
                raise error.at(sorted(rows[error.rows].tolist())) from None
