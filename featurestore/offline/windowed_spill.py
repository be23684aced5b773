"""How are windows joined when the events do not fit in memory?

Events come in batches. Those whose key no entity row has are dropped, the others go to files on disk by buckets of
keys; then every bucket is joined on its own. The result is that of `windowed_join`, to the bit.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.aggregation.partials import columns_of
from featurestore.errors import UsageError
from featurestore.offline.windowed import (
    CHUNK_ROWS,
    THREADS,
    Share,
    answer_shares,
    by_number,
    in_flight,
    read_events,
)
from featurestore.offline.windowed_chunk import windows_of
from featurestore.offline.windowed_keys import Ints, KeyIndex, column_of, field_of, instants
from featurestore.offline.windowed_results import Results
from featurestore.plan import Aggregation

KEY: Final = " key"
"""The events' key in a bucket, as one whole number; a blank first, so that no column of the events is called alike."""


def windowed_join_batches(
    events: Iterable[Any],
    entity_rows: Any,
    *,
    schema: Any,
    keys: Mapping[str, str],
    event_ts: str,
    entity_ts: str,
    aggregations: Sequence[Aggregation],
    folder: Path | None,
    buckets: int,
    arrival: str | None = None,
    as_known: bool = False,
    counted: Callable[[Any], Any] | None = None,
    more_columns: Sequence[str] = (),
    chunk_rows: int = CHUNK_ROWS,
    threads: int = THREADS,
    on_share: Callable[[float], None] | None = None,
) -> Any:
    """`windowed_join` of events that come as record batches or tables of `schema`, in any order.

    Holds the entity rows, the result and about two of `buckets` shares of the events; the rest waits, uncompressed, in
    a temporary folder inside `folder` (None: where the system keeps temporary files). `counted` is given each bucket's
    events, whole keys at a time, and returns those that count; it sees the event times, the aggregated columns,
    `more_columns`, and the key as the one column `KEY`. Raises what `windowed_join` does; MagnitudeTooLarge names rows
    of a bucket.
    """
    if as_known and arrival is None:
        raise UsageError("an as-known join needs the events' arrival column; name it, or join without as_known")
    windows = windows_of(aggregations)
    # What is not there yet `counted` makes.
    read = [kept.column for kept in columns_of(aggregations) if kept.column in schema.names]
    names = [event_ts, *read, *more_columns]
    if as_known and arrival is not None:
        names.append(arrival)
    names = list(dict.fromkeys(names))
    fields = [field_of(schema, name, "events") for name in names]
    index = KeyIndex(entity_rows, keys, schema)
    t_us, dated = instants(column_of(entity_rows, entity_ts, "entity rows"), entity_ts)
    row_code = index.rows if dated.all() else np.where(dated, index.rows, -1)
    results = Results(aggregations, len(t_us))
    with TemporaryDirectory(dir=folder, prefix="windowed-join-") as place:
        files = [Path(place) / f"{bucket}.arrow" for bucket in range(buckets)]
        _spill(events, pa.schema([*fields, pa.field(KEY, pa.int32())]), names, index, files, threads)

        def shares() -> Iterator[Share]:
            of_bucket = by_number(_bucket(row_code, index.size, buckets), buckets)
            for bucket, (file, rows) in enumerate(zip(files, of_bucket, strict=True)):
                if len(rows):
                    with pa.memory_map(str(file)) as source:
                        found = pa.ipc.open_file(source).read_all()
                        found = found if counted is None else counted(found)
                        first = -(-bucket * index.size // buckets)
                        code = found[KEY].to_numpy().astype(np.int64) - first
                        known = read_events(found, code, event_ts, aggregations, arrival if as_known else None)
                    codes = -(-(bucket + 1) * index.size // buckets) - first
                    yield Share(known, row_code[rows] - first, t_us[rows], codes, rows)
                file.unlink()

        answer_shares(
            shares(), windows, results, as_known=as_known, chunk_rows=chunk_rows, threads=threads, on_share=on_share
        )
    return results.table()


def _spill(
    events: Iterable[Any], schema: Any, names: Sequence[str], index: KeyIndex, files: Sequence[Path], threads: int
) -> None:
    """Write every event whose key some entity row has to its bucket's file."""
    with ExitStack() as stack:
        writers = [(stack.enter_context(pa.ipc.new_file(str(file), schema)), Lock()) for file in files]
        pool = stack.enter_context(ThreadPoolExecutor(threads))

        def write(batch: Any) -> None:
            table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
            code = index.codes(table)
            shares = by_number(_bucket(code, index.size, len(files)), len(files))
            order = np.concatenate(shares)
            ends = np.cumsum([len(share) for share in shares]).tolist()
            whose = pa.array(code.astype(np.int32))
            kept = table.select(names).append_column(schema.field(KEY), whose).take(pa.array(order))
            for (writer, lock), end, share in zip(writers, ends, shares, strict=True):
                if len(share):
                    with lock:
                        writer.write_table(kept.slice(end - len(share), len(share)))

        for _ in in_flight(pool, write, events, threads + 1):
            pass


def _bucket(code: Ints, size: int, buckets: int) -> Ints:
    """The bucket of every key code; -1 stays."""
    return np.where(code < 0, -1, code * buckets // max(size, 1))
