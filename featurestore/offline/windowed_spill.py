"""How are windows joined when the events do not fit in memory?

Events come in batches. Those whose key no entity row has are dropped, the others go to files on disk by buckets of
keys; then every bucket is joined on its own. The result is that of `windowed_join`, to the bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.aggregation.errors import NoResult
from featurestore.aggregation.partials import columns_of
from featurestore.errors import UsageError
from featurestore.offline.windowed import in_order, windowed_join
from featurestore.offline.windowed_keys import Ints, KeyIndex, column_of, field_of
from featurestore.plan import Aggregation

_KEY = "key code"
_AT = "entity row time"


def windowed_join_batches(
    events: Iterable[Any],
    entity_rows: Any,
    *,
    schema: Any,
    keys: Mapping[str, str],
    event_ts: str,
    entity_ts: str,
    aggregations: Sequence[Aggregation],
    folder: Path,
    buckets: int,
    arrival: str | None = None,
    as_known: bool = False,
) -> Any:
    """`windowed_join` of events that come as record batches or tables of `schema`, in any order.

    Holds the entity rows, the result and one of `buckets` shares of the events; the rest waits, uncompressed, in a
    temporary folder inside `folder`. Raises what `windowed_join` does; MagnitudeTooLarge names rows of a bucket.
    """
    if as_known and arrival is None:
        raise UsageError("an as-known join needs the events' arrival column; name it, or join without as_known")
    names = [event_ts, *(kept.column for kept in columns_of(aggregations))]
    if as_known and arrival is not None:
        names.append(arrival)
    names = list(dict.fromkeys(names))
    fields = [field_of(schema, name, "events") for name in names]
    index = KeyIndex(entity_rows, keys, schema)
    at = column_of(entity_rows, entity_ts, "entity rows")
    spilled = pa.schema([*fields, pa.field(_KEY, pa.int64())])
    with TemporaryDirectory(dir=folder, prefix="windowed-join-") as place:
        files = [Path(place) / f"{bucket}.arrow" for bucket in range(buckets)]
        _spill(events, spilled, names, index, files)
        values: dict[str, list[Any]] = {aggregation.feature: [] for aggregation in aggregations}
        answered: list[Ints] = []
        bucket_of = _bucket(index.rows, index.size, buckets)
        for bucket, file in enumerate(files):
            rows = np.flatnonzero(bucket_of == bucket)
            if not len(rows):
                continue
            answered.append(rows)
            asked = pa.table({_KEY: index.rows[rows], _AT: at.take(pa.array(rows))})
            with pa.memory_map(str(file)) as source:
                joined = _joined(
                    pa.ipc.open_file(source).read_all(),
                    asked,
                    rows,
                    event_ts=event_ts,
                    aggregations=aggregations,
                    arrival=arrival,
                    as_known=as_known,
                )
            for feature, columns in values.items():
                columns.extend(joined[feature].chunks)
            file.unlink()
    return in_order(aggregations, values, answered, len(entity_rows))


def _spill(events: Iterable[Any], schema: Any, names: Sequence[str], index: KeyIndex, files: Sequence[Path]) -> None:
    """Write every event whose key some entity row has to its bucket's file."""
    with ExitStack() as stack:
        writers = [stack.enter_context(pa.ipc.new_file(str(file), schema)) for file in files]
        for batch in events:
            table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
            code = index.codes(table)
            bucket = _bucket(code, index.size, len(files))
            order = np.argsort(bucket.astype(np.int16), kind="stable")
            ends = np.searchsorted(bucket[order], np.arange(len(files)), "right")
            starts = np.searchsorted(bucket[order], np.arange(len(files)), "left")
            kept = table.select(names).append_column(schema.field(_KEY), pa.array(code)).take(pa.array(order))
            for writer, start, end in zip(writers, starts.tolist(), ends.tolist(), strict=True):
                if end > start:
                    writer.write_table(kept.slice(start, end - start))


def _bucket(code: Ints, size: int, buckets: int) -> Ints:
    """The bucket of every key code; -1 stays."""
    return np.where(code < 0, -1, code * buckets // max(size, 1))


def _joined(events: Any, asked: Any, rows: Ints, **more: Any) -> Any:
    try:
        return windowed_join(events, asked, keys={_KEY: _KEY}, entity_ts=_AT, **more)
    except NoResult as error:
        raise error.at(rows[error.rows].tolist()) from None
