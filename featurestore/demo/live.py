"""Which events have come due since the last look?

A demo that is kept running goes on replaying the year: events that lay in the future when it was landed are written to
their topics at the moment at which they happen.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.demo.children import start_producer
from featurestore.demo.processes import Processes

PAUSE_US = 15_000_000
"""Between two looks: producing starts a process, which a second's worth of flights is not worth."""

Produce = Callable[[str, pa.Table], None]
"""Writes events, ascending in time, to a topic."""


class Replay:
    """Hands over upcoming events as they come due, each once, in order.

    `upcoming` holds the events of each topic after `since_us`.
    """

    def __init__(self, upcoming: Mapping[str, pa.Table], since_us: int, produce: Produce) -> None:
        self._upcoming = upcoming
        self._until_us = since_us
        self._next_us = since_us
        self._produce = produce

    def produce_due(self, now_us: int) -> int:
        """Hands over what has happened since the last look, now and then; returns how many events."""
        if now_us < self._next_us:
            return 0
        self._next_us = now_us + PAUSE_US
        handed = 0
        for topic, events in self._upcoming.items():
            rows = due(events, self._until_us, now_us)
            if rows.num_rows:
                self._produce(topic, rows)
                handed += rows.num_rows
        self._until_us = now_us
        return handed


def by_process(processes: Processes, folder: Path, *, keys: Mapping[str, str], partitions: int, broker: str) -> Produce:
    """Writes events through a file in `folder` and the command that produces it; returns when all are acknowledged."""

    def produce(topic: str, rows: pa.Table) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{topic}.parquet"
        pq.write_table(rows, file)
        key = keys[topic]
        processes.finish(start_producer(processes, file, topic=topic, key=key, partitions=partitions, broker=broker))

    return produce


def due(events: pa.Table, after_us: int, until_us: int) -> pa.Table:
    """The events that happen after `after_us` and not after `until_us`.

    >>> times = pa.array([1, 2, 3], pa.int64()).cast(pa.timestamp("us", "UTC"))
    >>> due(pa.table({"event_timestamp": times}), 1, 2).num_rows
    1
    """
    instant = events["event_timestamp"].cast(pa.int64())
    return events.filter(pc.and_(pc.greater(instant, after_us), pc.less_equal(instant, until_us)))
