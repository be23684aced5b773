"""How are events that were accepted long ago folded again, into another version or a store that lost its state?

The event log holds what was accepted: it is read partition by partition in the order of offsets, and comes out as
batches that were judged already, at the offsets that it had in its topic. So a shard that is built from the log goes on
from Kafka at the offset where the log ended, and one that is interrupted goes on from the offset beside its state.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import SourceError
from featurestore.offline.column_types import concatenated
from featurestore.offline.event_log import ARRIVAL, OFFSET, EventFile, event_files, stored_ranges
from featurestore.offline.stored import declared_types
from featurestore.plan import View
from streaming.judged import Judged
from streaming.source.records import Batch, TopicPartition
from validation.file_check import damage
from validation.place import Place, readable

OFFSETS_AT_ONCE: Final = 200_000
_KEPT_BYTES: Final = 256 << 20
"""What was read and may be asked for again: a range that was compacted has a file for each day and bucket."""


class Stretch(msgspec.Struct, frozen=True, order=True):
    """Offsets `first` to before `after` of a partition, whole in the log."""

    partition: TopicPartition
    first: int
    after: int


class EventLogReplay:
    """One topic's events as judged batches for one view."""

    def __init__(
        self,
        folder: Place,
        view: View,
        *,
        from_us: int | None = None,
        to_us: int | None = None,
        offsets_at_once: int = OFFSETS_AT_ONCE,
    ) -> None:
        self._folder = folder
        self._topic = folder.name
        self._from_us = from_us
        self._to_us = to_us
        self._at_once = offsets_at_once
        raw = {new: old for old, new in view.source.field_mapping.items()}
        self._timestamp = raw.get(view.source.timestamp_field, view.source.timestamp_field)
        names = [raw.get(name, name) for name in [each.name for each in view.columns or view.features]]
        names += [raw.get(key.name, key.name) for key in view.join_keys]
        topic = view.source.topic
        once = topic.event_id if topic is not None else None
        names += [] if once is None else [once]
        self._declared = declared_types(view)
        self._columns = list(dict.fromkeys([*names, self._timestamp, OFFSET, ARRIVAL]))
        self._tables: dict[Place, pa.Table] = {}

    def stretches(self) -> tuple[Stretch, ...]:
        """What the log holds without a gap of each partition that it has, those of former topics and files included."""
        found: dict[TopicPartition, tuple[int, int]] = {}
        for covered in stored_ranges(self._folder):
            partition = TopicPartition(self._topic, covered.topic_id, covered.partition)
            first, after = found.get(partition, (covered.first, covered.first))
            if covered.first <= after:
                found[partition] = (first, max(after, covered.last + 1))
        cut = {} if self._to_us is None else self._cuts(self._to_us)
        return tuple(
            Stretch(partition, first, max(min(after, cut.get(partition, after)), first))
            for partition, (first, after) in sorted(found.items())
        )

    def first_arrival_us(self, stretch: Stretch) -> int | None:
        """The arrival of the first event of a stretch; None where it holds none."""
        for judged in self.batches(stretch, stretch.first):
            if len(judged.arrival_us):
                return int(judged.arrival_us[0])
        return None

    def batches(self, stretch: Stretch, position: int) -> Iterator[Judged]:
        """The events of a stretch from `position` on. Raises SourceError where a file cannot be read."""
        partition = stretch.partition
        while position < stretch.after:
            end = min(position + self._at_once, stretch.after)
            # Listed each time: compaction deletes what it has made one of, some time after.
            files = [
                file
                for file in event_files(self._folder)
                if (file.range.topic_id, file.range.partition) == (partition.topic_id, partition.partition)
                and _overlaps(file, position, end)
            ]
            events = self._events(files, position, end)
            batch = Batch(partition.topic, partition.topic_id, partition.partition, (), position, end)
            arrival_us = _micros(events, ARRIVAL)
            yield Judged(batch, events, _micros(events, self._timestamp), arrival_us, _ints(events[OFFSET]), ())
            position = end

    def _events(self, files: Sequence[EventFile], first: int, after: int) -> pa.Table:
        parts = dict[str, pa.Table]()
        for file in files:
            table = self._read(file.path)
            offsets = table[OFFSET]
            chosen = pc.and_(pc.greater_equal(offsets, first), pc.less(offsets, after))
            if self._from_us is not None:
                chosen = pc.and_(chosen, pc.greater_equal(table[ARRIVAL].cast(pa.int64()), self._from_us))
            parts[str(file.path)] = table.filter(chosen)
        name = f"the event log {self._folder}"
        events = concatenated(parts, name=name, declared=self._declared) if parts else self._nothing()
        offsets = _ints(events[OFFSET])
        if len(offsets) > 1 and not (offsets[1:] > offsets[:-1]).all():
            # Ranges overlap after a crash, and a range has a part for each day: in order, each offset once.
            order = np.unique(offsets, return_index=True)[1]
            events = events.take(pa.array(order))
        return events.combine_chunks()

    def _read(self, path: Place) -> pa.Table:
        table = self._tables.pop(path, None)
        if table is None:
            try:
                if found := damage(path):
                    raise SourceError(f"the event log's file {found}; restore it from a backup")
                with pq.ParquetFile(readable(path)) as file:
                    there = set(file.schema_arrow.names)
                    table = file.read(columns=[name for name in self._columns if name in there])
            except (pa.ArrowInvalid, OSError) as error:
                raise SourceError(f"the event log's file {path} cannot be read: {error}") from error
        self._tables[path] = table
        while len(self._tables) > 1 and sum(kept.nbytes for kept in self._tables.values()) > _KEPT_BYTES:
            del self._tables[next(iter(self._tables))]
        return table

    def _nothing(self) -> pa.Table:
        times = pa.timestamp("us", "UTC")
        return pa.schema([(self._timestamp, times), (OFFSET, pa.int64()), (ARRIVAL, times)]).empty_table()

    def _cuts(self, to_us: int) -> dict[TopicPartition, int]:
        """The first offset of each partition that arrived at `to_us` or later; absent where none did."""
        day = f"day={np.datetime64(to_us, 'us').astype('datetime64[D]')}"
        cuts: dict[TopicPartition, int] = {}
        for file in event_files(self._folder):
            if file.path.parent.name < day:
                continue
            table = self._read(file.path)
            later = _ints(table[OFFSET])[_micros(table, ARRIVAL) >= to_us]
            if len(later):
                partition = TopicPartition(self._topic, file.range.topic_id, file.range.partition)
                cuts[partition] = min(cuts.get(partition, int(later.min())), int(later.min()))
        return cuts


def _overlaps(file: EventFile, first: int, after: int) -> bool:
    return file.range.first < after and file.range.last >= first


def _micros(table: pa.Table, name: str) -> "np.typing.NDArray[np.int64]":
    return _ints(table[name].cast(pa.timestamp("us", "UTC")).cast(pa.int64()))


def _ints(column: pa.ChunkedArray) -> "np.typing.NDArray[np.int64]":
    found: np.typing.NDArray[np.int64] = column.to_numpy()
    return found
