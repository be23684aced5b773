"""Which events have come due since the last look?

A demo that is kept running goes on replaying the year: events that lay in the future when it was landed are written to
their topics at the moment at which they happen.
"""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.demo.children import start_producer
from featurestore.demo.flights import History
from featurestore.demo.processes import Processes

PAUSE_US = 15_000_000
"""Between two looks: producing starts a process, which a second's worth of flights is not worth."""


class Replay:
    """Writes upcoming events to their topics as they come due, each once."""

    def __init__(
        self,
        past: History,
        folder: Path,
        processes: Processes,
        *,
        broker: str,
        keys: Mapping[str, str],
        partitions: int,
    ) -> None:
        self._upcoming = {"departures": past.upcoming_departures, "arrivals": past.upcoming_arrivals}
        self._until_us = past.now_us
        self._next_us = 0
        self._folder = folder
        self._processes = processes
        self._broker = broker
        self._keys = keys
        self._partitions = partitions

    def produce_due(self, now_us: int) -> int:
        """Writes what has happened up to `now_us` and was not written yet, now and then; returns how many events."""
        if now_us < self._next_us:
            return 0
        self._next_us = now_us + PAUSE_US
        written = 0
        for topic, events in self._upcoming.items():
            rows = due(events, self._until_us, now_us)
            if rows.num_rows:
                self._produce(topic, rows)
                written += rows.num_rows
        self._until_us = now_us
        return written

    def _produce(self, topic: str, rows: pa.Table) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self._folder / f"{topic}.parquet"
        pq.write_table(rows, file)
        child = start_producer(
            self._processes, file, topic=topic, key=self._keys[topic], partitions=self._partitions, broker=self._broker
        )
        self._processes.finish(child)


def due(events: pa.Table, after_us: int, until_us: int) -> pa.Table:
    """The events that happen after `after_us` and not after `until_us`.

    >>> times = pa.array([1, 2, 3], pa.int64()).cast(pa.timestamp("us", "UTC"))
    >>> due(pa.table({"event_timestamp": times}), 1, 2).num_rows
    1
    """
    instant = events["event_timestamp"].cast(pa.int64())
    return events.filter(pc.and_(pc.greater(instant, after_us), pc.less_equal(instant, until_us)))
