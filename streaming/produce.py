"""How does a file of events become messages of a topic?"""

import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from streaming.source.json_rows import encode_rows
from streaming.source.parquet_events import check_columns, keys_of, open_parquet, times_of
from streaming.source.publisher import Publisher

_ROWS = 20_000


class Produced(msgspec.Struct, frozen=True):
    """What was written and acknowledged."""

    topic: str
    messages: int
    partitions: int
    seconds: float
    oldest_us: int | None
    """The earliest time that a message bears; None without any."""


def produce_file(
    path: Path,
    publisher: Publisher,
    *,
    key: str | None,
    timestamp: str,
    progress: Callable[[int], None] = lambda _: None,
    clock_s: Callable[[], float] = time.perf_counter,
) -> Produced:
    """Write each row of a Parquet file as one JSON message, in the file's order, and wait until all are acknowledged.

    The message key is column `key` as text (none where it is null), the record's time column `timestamp`. `progress` is
    called with the number of rows handed over so far. Raises UnknownColumn, SourceError for a file that cannot be read
    or a null time, NotAcknowledged.
    """
    began = clock_s()
    sent, oldest_us = 0, None
    with open_parquet(path) as file:
        check_columns(path, file.schema_arrow, key=key, timestamp=timestamp)
        for batch in file.iter_batches(_ROWS):
            keys, times = keys_of(batch, key), times_of(path, batch, timestamp)
            oldest_us = min(times if oldest_us is None else (oldest_us, *times), default=oldest_us)
            for record_key, value, ts_us in zip(keys, encode_rows(batch), times, strict=True):
                publisher.send(record_key, value, timestamp_us=ts_us)
            sent += batch.num_rows
            progress(sent)
    acknowledged = publisher.flush()
    return Produced(publisher.topic, acknowledged, publisher.partitions, clock_s() - began, oldest_us)
